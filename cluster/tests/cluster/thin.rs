//! The path that everything else builds on.

use kiln_cluster::{Acquired, Published, Role};

use tokio::time::Instant;

use crate::harness::{TestCluster, manifest, timings, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_publishes_and_finds() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (key, _) = manifest("a", b"pack");
    assert_eq!(node.index.lookup(&key).await.unwrap(), None);
    let lease = node.granted(&key).await;
    let published = node.index.publish(&lease, node.sign("a", b"pack"), Vec::new()).await.unwrap();
    let Published::Committed(entry) = published else { panic!("{published:?}") };
    assert_eq!(node.index.lookup(&key).await.unwrap(), Some(entry.clone()));
    assert_eq!((entry.epoch, entry.holders.as_slice()), (1, &[node.id()][..]));
    assert!(matches!(node.acquire(&key).await.unwrap(), Acquired::Ready(_)));
    // A quorum of one does not go stale.
    let later = Instant::now() + timings().election_max * 2;
    wait_for("two election time-outs", async || (Instant::now() > later).then_some(())).await;
    let status = node.cluster.status();
    assert!(status.quorum);
    assert_eq!((status.role, status.entries, status.nodes.len()), (Role::Leader, 1, 1));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_publishes_all_nodes_read() {
    let cluster = TestCluster::start(3).await;
    let mut ids: Vec<_> = cluster.nodes.iter().map(|n| n.id()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    for (n, node) in cluster.nodes.iter().enumerate() {
        let name = format!("from {n}");
        let (key, _) = manifest(&name, b"pack");
        let published = node.publish(&name, b"pack").await.unwrap();
        assert!(matches!(published, Published::Committed(_)), "{published:?}");
        assert!(node.index.lookup(&key).await.unwrap().is_some(), "whoever published finds it");
        for reader in &cluster.nodes {
            let entry = reader.has(&key).await;
            let signer = reader.index.node(entry.manifest.signer).unwrap();
            entry.manifest.verify(&signer.key, &key).unwrap();
        }
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}
