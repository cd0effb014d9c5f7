//! What a compile in pieces asks of the others, and how they take it.

use std::time::Duration;

use kiln_cluster::{ClusterError, IndexEvent, Lease, Start, Tried, Wanted, WantedPiece};
use kiln_proto::{ArtifactKey, Digest, Failure, FailureKind, Fingerprint};
use tokio::{sync::broadcast, time::Instant};

use crate::harness::{Node, Seat, TestCluster, manifest, timings, wait_for};

/// The list of `pieces` that the holder of `lease` wants.
fn list(node: &Node, lease: &Lease, pieces: &[ArtifactKey]) -> Wanted {
    let piece = |key: &ArtifactKey| WantedPiece { key: *key, seconds: 2.0, memory: 1 << 20 };
    Wanted {
        whole: *lease.key(),
        token: lease.token(),
        node: node.id(),
        request: Digest::of(b"request"),
        request_bytes: 7,
        pieces: pieces.iter().map(piece).collect(),
        fingerprint: Fingerprint::new("cuda", [("nvrtc", "13.0")]),
    }
}

/// A whole that `node` compiles in pieces, and the pieces.
async fn whole(node: &Node, pieces: &[&str]) -> (Lease, Wanted) {
    let lease = node.granted(&manifest("whole", b"").0).await;
    let pieces: Vec<_> = pieces.iter().map(|name| manifest(name, b"").0).collect();
    let wanted = list(node, &lease, &pieces);
    want(node, &lease, &wanted).await;
    (lease, wanted)
}

/// Asks until the cluster can be reached, as elections may be slow on a loaded machine.
async fn want(node: &Node, lease: &Lease, wanted: &Wanted) {
    wait_for("the list", async || match node.index.want(lease, wanted.clone()).await {
        Err(ClusterError::Unavailable(_)) => None,
        asked => {
            asked.unwrap();
            Some(())
        }
    })
    .await;
}

async fn tried(node: &Node, piece: &ArtifactKey) -> Tried {
    wait_for("a try", async || match node.index.try_acquire(piece).await {
        Err(ClusterError::Unavailable(_)) => None,
        tried => Some(tried.unwrap()),
    })
    .await
}

async fn has_lists(node: &Node, lists: &[&Wanted]) {
    wait_for(&format!("{} lists on node {}", lists.len(), node.id()), async || {
        let found = node.index.wanted();
        let same = found.len() == lists.len() && found.iter().zip(lists).all(|(a, b)| **a == **b);
        same.then_some(())
    })
    .await;
}

async fn told(events: &mut broadcast::Receiver<IndexEvent>, expected: &IndexEvent) {
    wait_for(&format!("{expected:?}"), async || match events.try_recv() {
        Ok(event) => (event == *expected).then_some(()),
        Err(_) => None,
    })
    .await;
}

async fn taken(node: &Node, piece: &ArtifactKey) -> Lease {
    wait_for("the lease", async || match tried(node, piece).await {
        Tried::Granted(lease) => Some(lease),
        Tried::Held => None, // this replica has not heard of the end yet
        other => panic!("not granted: {other:?}"),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wanted_is_told_to_all_until_the_whole_is_there() {
    let cluster = TestCluster::start(3).await;
    let [asking, others @ ..] = &cluster.nodes[..] else { panic!("three nodes") };
    let mut events: Vec<_> = others.iter().map(|node| node.index.events()).collect();
    let (lease, wanted) = whole(asking, &["a", "b"]).await;
    assert_eq!(*asking.index.wanted()[0], wanted, "the node that asks has it at once");
    for (node, events) in others.iter().zip(&mut events) {
        has_lists(node, &[&wanted]).await;
        told(events, &IndexEvent::Wanted { whole: wanted.whole }).await;
    }
    let piece = wanted.pieces[0].key;
    let taken = taken(&others[0], &piece).await;
    others[0].index.publish(&taken, others[0].sign("a", b"pa"), Vec::new()).await.unwrap();
    asking.has(&piece).await;
    let ready = tried(asking, &piece).await;
    assert!(matches!(ready, Tried::Ready(_)), "{ready:?}");
    let signed = asking.sign("whole", b"stitched");
    asking.index.publish(&lease, signed, Vec::new()).await.unwrap();
    for node in &cluster.nodes {
        has_lists(node, &[]).await;
    }
    let late = asking.index.want(&lease, wanted).await;
    assert_eq!(late, Err(ClusterError::StaleToken));
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_another_lease_is_refused_here_already() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (lease, wanted) = whole(node, &["a"]).await;
    let many = vec![wanted.pieces[0]; 1025];
    for wrong in [
        Wanted { whole: wanted.pieces[0].key, ..wanted.clone() },
        Wanted { node: 7, ..wanted.clone() },
        Wanted { pieces: many, ..wanted.clone() },
    ] {
        let refused = node.index.want(&lease, wrong).await;
        assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{refused:?}");
    }
    has_lists(node, &[&wanted]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anothers_lease_is_not_waited_for() {
    let cluster = TestCluster::start(3).await;
    let (piece, _) = manifest("a", b"");
    let lease = taken(&cluster.nodes[0], &piece).await;
    for node in &cluster.nodes {
        let tried = tried(node, &piece).await;
        assert!(matches!(tried, Tried::Held), "{tried:?}");
        assert!(!lease.is_lost(), "it waited for the end");
    }
    let failure = Failure::new(FailureKind::CompileError, "no");
    cluster.nodes[0].index.fail(&lease, failure.clone()).await.unwrap();
    for node in &cluster.nodes {
        wait_for("the failure", async || match tried(node, &piece).await {
            Tried::Held => None, // this replica has not heard of it
            Tried::Failed(told) => {
                assert_eq!(told, failure);
                Some(())
            }
            other => panic!("{other:?}"),
        })
        .await;
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

/// As many tries at once as there are nodes and more: one is granted, none waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_tries_one_is_granted() {
    let cluster = TestCluster::start(3).await;
    let (piece, _) = manifest("a", b"");
    let tries = (0..30).map(|n| cluster.nodes[n % 3].index.try_acquire(&piece));
    let tried = futures::future::try_join_all(tries).await.unwrap();
    let granted: Vec<_> = tried.iter().filter(|t| matches!(t, Tried::Granted(_))).collect();
    assert_eq!(granted.len(), 1, "{tried:?}");
    assert!(tried.iter().all(|t| matches!(t, Tried::Granted(_) | Tried::Held)), "{tried:?}");
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_still_has_what_is_wanted() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let asking = cluster.nodes[(leader + 1) % 3].id();
    let by_id =
        |cluster: &TestCluster| cluster.nodes.iter().position(|node| node.id() == asking).unwrap();
    let (lease, wanted) = whole(&cluster.nodes[by_id(&cluster)], &["a", "b"]).await;
    cluster.nodes.remove(leader).stop().await;
    cluster.wait_leader().await;
    for node in &cluster.nodes {
        has_lists(node, &[&wanted]).await;
    }
    let node = &cluster.nodes[by_id(&cluster)];
    let rest = Wanted { pieces: vec![wanted.pieces[1]], ..wanted };
    want(node, &lease, &rest).await;
    for node in &cluster.nodes {
        has_lists(node, &[&rest]).await;
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_vanished_node_wanted_or_took_is_over_with_its_leases() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let (lease, wanted) = whole(&cluster.nodes[leader], &["a", "b"]).await;
    let worker = cluster.nodes.remove((leader + 1) % 3);
    let piece = wanted.pieces[0].key;
    let old = taken(&worker, &piece).await;
    let token = old.token();
    let mut events = cluster.nodes[0].index.events();
    // Gone without a word: nothing gives the lease back.
    std::mem::forget(old);
    worker.stop().await;
    let gone = Instant::now();
    told(&mut events, &IndexEvent::Free { key: piece }).await;
    let bound = timings().lease_ttl + timings().election_max * 2;
    assert!(gone.elapsed() < bound + Duration::from_secs(2), "after {:?}", gone.elapsed());
    let again = taken(&cluster.nodes[0], &piece).await;
    assert!(again.token() > token, "tokens rise");
    for node in &cluster.nodes {
        has_lists(node, &[&wanted]).await;
    }
    // The one that asked goes the same way, as far as the others can see.
    drop(lease);
    for node in &cluster.nodes {
        has_lists(node, &[]).await;
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_node_vanished_runs_out_with_the_lease() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let asking = cluster.nodes.remove((leader + 1) % 3);
    let (lease, wanted) = whole(&asking, &["a"]).await;
    for node in &cluster.nodes {
        has_lists(node, &[&wanted]).await;
    }
    std::mem::forget(lease);
    asking.stop().await;
    for node in &cluster.nodes {
        has_lists(node, &[]).await;
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

/// Free is a piece that was given back, whose failure was lifted, or whose artifact is gone;
/// only a wanted one is told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_that_can_be_taken_again_is_told_of() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (_lease, wanted) = whole(node, &["a"]).await;
    let piece = wanted.pieces[0].key;
    let free = IndexEvent::Free { key: piece };
    let mut events = node.index.events();
    drop(taken(node, &piece).await);
    told(&mut events, &free).await;
    // Remembered for a short time.
    let failure = Failure::new(FailureKind::Timeout, "too slow");
    node.index.fail(&taken(node, &piece).await, failure).await.unwrap();
    told(&mut events, &free).await;
    let lease = taken(node, &piece).await;
    node.index.publish(&lease, node.sign("a", b"pa"), Vec::new()).await.unwrap();
    assert!(node.index.tombstone(&piece, "wrong".into()).await.unwrap());
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    let pack = Digest::of(b"pa");
    let expected = [
        IndexEvent::Published { key: piece, pack },
        IndexEvent::Tombstoned { key: piece, pack },
        free,
    ];
    assert_eq!(seen, expected, "a publication frees nothing");
    drop(taken(node, &manifest("nobody wants it", b"").0).await);
    drop(taken(node, &piece).await);
    told(&mut events, &IndexEvent::Free { key: piece }).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_brings_what_is_wanted() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let asking = cluster.nodes[leader].id();
    let away = cluster.nodes.remove((leader + 1) % 3);
    let (dir, address) = (away.dir.clone(), away.address);
    away.stop().await;
    let node = cluster.nodes.iter().find(|node| node.id() == asking).unwrap();
    let (_lease, wanted) = whole(node, &["a", "b"]).await;
    for n in 0..30 {
        cluster.nodes[0].publish(&format!("key {n}"), b"pack").await.unwrap();
    }
    for node in &cluster.nodes {
        node.cluster.compact().await.unwrap();
    }
    let back = Seat::at(&dir, address).await.open(Start::Join { peers: Vec::new() });
    let mut events = back.cluster.index().events();
    let back = back.start().await.unwrap();
    told(&mut events, &IndexEvent::Reset).await;
    has_lists(&back, &[&wanted]).await;
    let held = taken(&back, &wanted.pieces[0].key).await;
    drop(held);
    told(&mut events, &IndexEvent::Free { key: wanted.pieces[0].key }).await;
    cluster.nodes.push(back);
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_try_is_refused_within_the_usual_bound() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let node = cluster.nodes.remove(leader);
    cluster.stop().await;
    let (asked, piece) = (Instant::now(), manifest("a", b"").0);
    let refused = node.index.try_acquire(&piece).await;
    assert!(matches!(refused, Err(ClusterError::Unavailable(_))), "{refused:?}");
    let bound = timings().patience + timings().election_max * 2;
    assert!(asked.elapsed() < bound * 2, "after {:?}", asked.elapsed());
    node.stop().await;
}
