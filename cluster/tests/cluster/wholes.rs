//! Artifacts that are stitched of others: there with all of their pieces, or not at all.

use kiln_cluster::{ClusterError, IndexEvent, Published, Start};
use kiln_proto::{ArtifactKey, Digest, Manifest, PieceRef, SignedManifest};

use crate::harness::{Node, Seat, TestCluster, manifest, wait_for};

/// The manifest of a whole of `pieces`, by their names and packs.
pub fn whole(node: &Node, pieces: &[(&str, &[u8])]) -> (ArtifactKey, SignedManifest) {
    let (key, manifest) = manifest("whole", b"stitched");
    let piece = |(name, pack): &(&str, &[u8])| PieceRef {
        key: crate::harness::manifest(name, pack).0,
        pack: Digest::of(pack),
        pack_size: pack.len() as u64,
    };
    let pieces = pieces.iter().map(piece).collect();
    (key, node.identity.sign(Manifest { pieces, ..manifest }).unwrap())
}

async fn is_gone(node: &Node, key: &ArtifactKey) {
    let what = format!("the end of {} on node {}", key.short(), node.id());
    wait_for(&what, async || node.index.lookup(key).await.unwrap().is_none().then_some(())).await;
}

/// As a backup is restored, too: whoever brings a whole before its pieces is told which
/// one is missing, and brings it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_without_a_piece_is_refused_and_keeps_its_lease() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (key, signed) = whole(node, &[("a", b"pa"), ("b", b"pb")]);
    let lease = node.granted(&key).await;
    node.publish("a", b"pa").await.unwrap();
    let (b, _) = manifest("b", b"pb");
    let refused = node.index.publish(&lease, signed.clone(), Vec::new()).await;
    assert_eq!(refused, Err(ClusterError::NoPiece(b)));
    node.publish("b", b"other bytes").await.unwrap();
    let refused = node.index.publish(&lease, signed.clone(), Vec::new()).await;
    assert_eq!(refused, Err(ClusterError::NoPiece(b)), "it is another pack");
    assert!(node.index.tombstone(&b, "wrong".into()).await.unwrap());
    node.publish("b", b"pb").await.unwrap();
    let published = node.index.publish(&lease, signed, Vec::new()).await.unwrap();
    assert!(matches!(published, Published::Committed(_)), "{published:?}");
    assert_eq!(node.index.blocking_wholes(&b).unwrap(), [key]);
    assert_eq!(node.index.blocking_wholes(&key).unwrap(), []);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_piece_takes_its_whole_from_all_nodes() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.wait_leader().await;
    let away = cluster.nodes.remove((leader + 1) % 3);
    let (dir, address) = (away.dir.clone(), away.address);
    away.stop().await;
    let node = &cluster.nodes[0];
    node.publish("a", b"pa").await.unwrap();
    node.publish("b", b"pb").await.unwrap();
    let (key, signed) = whole(node, &[("b", b"pb"), ("a", b"pa")]);
    let lease = node.granted(&key).await;
    node.index.publish(&lease, signed, Vec::new()).await.unwrap();
    // The third one hears of it by a snapshot.
    for node in &cluster.nodes {
        node.has(&key).await;
        node.cluster.compact().await.unwrap();
    }
    let back = Seat::at(&dir, address).await.open(Start::Join { peers: Vec::new() });
    let mut events = back.cluster.index().events();
    let back = back.start().await.unwrap();
    back.has(&key).await;
    let (a, _) = manifest("a", b"pa");
    assert_eq!(back.index.blocking_wholes(&a).unwrap(), [key]);

    assert!(back.index.tombstone(&a, "wrong".into()).await.unwrap());
    cluster.nodes.push(back);
    for node in &cluster.nodes {
        is_gone(node, &key).await;
    }
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push(event);
    }
    assert!(told.contains(&IndexEvent::Reset), "no snapshot came: {told:?}");
    let dropped = IndexEvent::Tombstoned { key, pack: Digest::of(b"stitched") };
    assert!(told.contains(&dropped), "{told:?}");
    let (b, _) = manifest("b", b"pb");
    assert!(cluster.nodes[0].index.lookup(&b).await.unwrap().is_some(), "the other piece stays");
    cluster.states_are_equal().await;
    cluster.stop().await;
}
