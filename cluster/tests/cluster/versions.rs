//! Members that run different versions of the program, as while a cluster is upgraded.
//!
//! What a member's program calls itself is all that tells it apart here: that the programs
//! of two releases work together is shown on real processes, in `tests/cluster/upgrades.rs`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kiln_cluster::{AccessReport, ClusterError, Index, Published, Start};
use kiln_proto::ArtifactKey;

use crate::{
    harness::{Node, PATIENCE, Seat, TestCluster, manifest, wait_for},
    wholes::whole,
};

const OLD: &str = "0.1.0";
const NEW: &str = "0.2.0";

async fn start_all(size: usize, version: &'static str) -> TestCluster {
    let temp = tempfile::tempdir().unwrap();
    let mut seats = Vec::new();
    for n in 0..size {
        let seat = Seat::new(&temp.path().join(format!("node-{n}"))).await;
        seats.push(Seat { version, ..seat });
    }
    let peers: Vec<String> = seats.iter().map(|seat| seat.address.to_string()).collect();
    let starting = seats.into_iter().map(|seat| {
        let start = Start::Expect { voters: size, peers: peers.clone() };
        seat.start(start)
    });
    let nodes = futures::future::try_join_all(starting).await.unwrap();
    TestCluster { nodes, temp }
}

/// Stops the node at `at` and starts it with `version`, in the folder and at the port that
/// it had.
async fn restart(cluster: &mut TestCluster, at: usize, version: &'static str) {
    let node = cluster.nodes.remove(at);
    let (dir, address, id) = (node.dir.clone(), node.address, node.id());
    node.stop().await;
    let seat = Seat { version, ..Seat::at(&dir, address).await };
    let node = seat.start(Start::Join { peers: Vec::new() }).await.unwrap();
    cluster.nodes.insert(at, node);
    for node in &cluster.nodes {
        runs(node, id, version).await;
    }
}

/// Waits until `node` knows that the member `id` runs `version`.
async fn runs(node: &Node, id: u64, version: &str) {
    let what = format!("version {version} of node {id} at node {}", node.id());
    let known = async || {
        let known = node.index.node(id);
        known.is_some_and(|known| known.facts.version == version).then_some(())
    };
    wait_for(&what, known).await;
}

/// Tries again while the cluster has no leader.
async fn asked<T>(mut ask: impl AsyncFnMut() -> Result<T, ClusterError>) -> T {
    wait_for("an answer", async || match ask().await {
        Err(ClusterError::Unavailable(_) | ClusterError::Deadline) => None,
        answer => Some(answer.unwrap()),
    })
    .await
}

async fn report(node: &Node, key: ArtifactKey, hits: u32) {
    let report = || AccessReport { hits: vec![(key, hits)], ..AccessReport::default() };
    asked(async || node.index.report(report()).await).await;
}

/// Waits until `node` has `hits` of `key` at least, or none, by both ways to ask.
async fn has_hits(node: &Node, key: &ArtifactKey, hits: u64) {
    let what = format!("{hits} hits at node {}", node.id());
    wait_for(&what, async || {
        let (index, first) = (node.index.clone(), key.to_string());
        let scan = move || index.blocking_scan(None, &first, 1).unwrap();
        let scanned = tokio::task::spawn_blocking(scan).await.unwrap();
        let used = node.index.usage(key).await.unwrap();
        // A report may count twice when a leader changes.
        let reached = used.hits >= hits && (hits > 0 || used.hits == 0);
        (reached && scanned[0].hits == used.hits).then_some(())
    })
    .await;
}

/// Publishes one key after the other through `index` until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<ArtifactKey>>,
}

impl Load {
    fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (index, identity, stopped) =
            (node.index.clone(), node.identity.clone(), Arc::clone(&stop));
        let publish = async move |index: &Index, name: &str| -> Result<ArtifactKey, ClusterError> {
            let (key, manifest) = manifest(name, b"bytes");
            let deadline = tokio::time::Instant::now() + PATIENCE;
            if let kiln_cluster::Acquired::Granted(lease) =
                index.acquire(&key, None, deadline, || {}).await?
            {
                let signed = identity.sign(manifest).unwrap();
                index.publish(&lease, signed, Vec::new()).await?;
            }
            Ok(key)
        };
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("load {n}");
                match publish(&index, &name).await {
                    Ok(key) => acknowledged.push(key),
                    Err(ClusterError::Unavailable(_) | ClusterError::Deadline) => {}
                    Err(e) => panic!("{name}: {e}"),
                }
            }
            acknowledged
        });
        Self { stop, task }
    }

    async fn stop(self) -> Vec<ArtifactKey> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn try_whole(node: &Node) -> Result<ArtifactKey, ClusterError> {
    let (key, signed) = whole(node, &[("a", b"pa")]);
    let lease = node.granted(&key).await;
    match node.index.publish(&lease, signed, Vec::new()).await {
        Ok(Published::Committed(_)) => Ok(key),
        Ok(other) => panic!("{other:?}"),
        Err(e) => {
            let failure = kiln_proto::Failure::new(kiln_proto::FailureKind::Crashed, "not now");
            node.index.fail(&lease, failure).await.unwrap();
            Err(e)
        }
    }
}

/// Whoever runs an earlier version holds back what is new, by name, and nothing else; the
/// new way is taken without a restart once it does not any more, and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_under_load_and_takes_the_new_way_after_the_last_node() {
    let mut cluster = start_all(4, OLD).await;
    // The load comes from a node that is upgraded first, and stays.
    restart(&mut cluster, 0, NEW).await;
    let load = Load::start(&cluster.nodes[0]);
    asked(async || cluster.nodes[0].publish("a", b"pa").await).await;
    let (a, _) = manifest("a", b"pa");
    for at in 1..4 {
        let reporter = &cluster.nodes[at];
        reporter.has(&a).await;
        report(reporter, a, 1).await;
        for node in &cluster.nodes {
            has_hits(node, &a, at as u64).await;
        }
        let held_back = cluster.nodes[3].id();
        let refused = try_whole(&cluster.nodes[0]).await;
        let Err(ClusterError::Unavailable(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("runs Kiln 0.1.0"), "{why}");
        assert!(at < 3 || why.contains(&format!("node {held_back} runs")), "{why}");
        // One that was upgraded goes back, and forth again, while nothing new was written.
        if at == 1 {
            restart(&mut cluster, 1, NEW).await;
            restart(&mut cluster, 1, OLD).await;
        }
        restart(&mut cluster, at, NEW).await;
    }
    for node in &cluster.nodes {
        has_hits(node, &a, 0).await;
    }
    report(&cluster.nodes[1], a, 5).await;
    for node in &cluster.nodes {
        has_hits(node, &a, 5).await;
    }
    let key = asked(async || try_whole(&cluster.nodes[0]).await).await;
    let acknowledged = load.stop().await;
    assert!(acknowledged.len() > 4, "{} publications", acknowledged.len());
    for node in &cluster.nodes {
        node.has(&key).await;
        for key in &acknowledged {
            node.has(key).await;
        }
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

/// Once something new was written, an earlier version neither opens the folder nor joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_upgrade_an_earlier_version_is_refused_and_harms_nothing() {
    let mut cluster = start_all(3, NEW).await;
    let join = async |cluster: &TestCluster, version: &'static str| {
        let seat = Seat {
            version,
            ..Seat::new(&cluster.temp.path().join(format!("newcomer {version}"))).await
        };
        let peers = cluster.nodes.iter().map(|node| node.address.to_string()).collect();
        seat.start(Start::Join { peers }).await
    };
    asked(async || cluster.nodes[0].publish("a", b"pa").await).await;
    let (a, _) = manifest("a", b"pa");
    report(&cluster.nodes[0], a, 1).await;
    has_hits(&cluster.nodes[1], &a, 1).await;

    let Err(ClusterError::Invalid(why)) = join(&cluster, OLD).await.map(|node| node.id()) else {
        panic!("it joined")
    };
    assert!(why.contains("runs Kiln 0.1.0") && why.contains("only 0.2.0 or later"), "{why}");

    let node = cluster.nodes.remove(1);
    let (dir, address) = (node.dir.clone(), node.address);
    node.stop().await;
    let seat = Seat { version: OLD, ..Seat::at(&dir, address).await };
    let opened = seat.try_open(Start::Join { peers: Vec::new() }).map(|opened| opened.address);
    let Err(ClusterError::Storage(why)) = opened else { panic!("{opened:?}") };
    assert!(why.contains("needs Kiln 0.2.0 or later") && why.contains("Kiln 0.1.0"), "{why}");
    let seat = Seat { version: NEW, ..Seat::at(&dir, address).await };
    let back = seat.start(Start::Join { peers: Vec::new() }).await.unwrap();
    has_hits(&back, &a, 1).await;
    cluster.nodes.insert(1, back);
    cluster.nodes.push(join(&cluster, NEW).await.unwrap());
    cluster.states_are_equal().await;
    cluster.stop().await;
}

/// An old node that joins while nothing new was written holds back what is new from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_joins_while_nothing_new_was_written() {
    let mut cluster = start_all(1, NEW).await;
    let seat = Seat { version: OLD, ..Seat::new(&cluster.temp.path().join("old")).await };
    let peers = vec![cluster.nodes[0].address.to_string()];
    let old = seat.start(Start::Join { peers }).await.unwrap();
    runs(&cluster.nodes[0], old.id(), OLD).await;
    asked(async || cluster.nodes[0].publish("a", b"pa").await).await;
    let refused = try_whole(&cluster.nodes[0]).await;
    let Err(ClusterError::Unavailable(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains(&format!("node {} runs Kiln 0.1.0", old.id())), "{why}");
    cluster.nodes.push(old);
    cluster.states_are_equal().await;
    cluster.stop().await;
}
