//! What the index takes, refuses and tells.

use kiln_cluster::{AccessReport, Acquired, ClusterError, IndexEvent, Published, Usage};
use kiln_proto::{Digest, NodeIdentity, SignedManifest};

use crate::harness::{TestCluster, manifest, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_with_an_old_token_is_refused() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (key, _) = manifest("a", b"pack");
    let old = node.granted(&key).await;
    let stale = old.token();
    drop(old);
    let new = node.granted(&key).await;
    assert!(new.token() > stale);
    let refused = node.index.publish_as(&key, stale, node.sign("a", b"pack"), Vec::new()).await;
    assert_eq!(refused, Err(ClusterError::StaleToken));
    assert_eq!(node.index.lookup(&key).await.unwrap(), None);
    node.index.publish(&new, node.sign("a", b"pack"), Vec::new()).await.unwrap();
    let late =
        node.index.publish_as(&key, stale, node.sign("a", b"other"), Vec::new()).await.unwrap();
    let Published::Existing(entry) = late else { panic!("{late:?}") };
    assert_eq!(entry.pack, Digest::of(b"pack"));
    assert_eq!(node.cluster.status().differing, 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_registered_nodes_signature_counts() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let (key, made) = manifest("a", b"pack");
    let lease = node.granted(&key).await;
    let mut altered = node.sign("a", b"pack");
    let last = altered.bytes.len() - 1;
    altered.bytes[last] ^= 1;
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let by_a_stranger = NodeIdentity::new(node.id(), stranger.clone()).sign(made.clone()).unwrap();
    let by_nobody = NodeIdentity::new(77, stranger).sign(made).unwrap();
    let of_another_key = node.sign("b", b"pack");
    let unsigned = SignedManifest { signature: Vec::new(), ..node.sign("a", b"pack") };
    for wrong in [altered, by_a_stranger, by_nobody, of_another_key, unsigned] {
        let refused = node.index.publish(&lease, wrong, Vec::new()).await;
        assert!(matches!(refused, Err(ClusterError::Invalid(_))), "{refused:?}");
    }
    assert!(!lease.is_lost());
    node.index.publish(&lease, node.sign("a", b"pack"), Vec::new()).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_deleted_only_when_nothing_refers_to_it() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let index = &node.index;
    let mut events = index.events();
    let (key, _) = manifest("a", b"pack");
    let pack = Digest::of(b"pack");
    node.publish("a", b"pack").await.unwrap();
    let state =
        async || index.pack(&pack).await.unwrap().map(|p| (p.referenced, p.condemned, p.stored));
    let generation = index.lookup(&key).await.unwrap().unwrap().generation;
    assert_eq!(state().await, Some((true, false, false)));
    assert!(!index.condemn(&pack, generation).await.unwrap(), "an entry refers to it");
    assert!(!index.mark_stored(&pack, generation + 1).await.unwrap(), "an object of another name");
    assert!(index.mark_stored(&pack, generation).await.unwrap());
    assert!(index.lookup(&key).await.unwrap().unwrap().stored);
    assert!(index.set_pinned(&key, true).await.unwrap());
    assert!(index.lookup(&key).await.unwrap().unwrap().pinned);

    assert!(index.tombstone(&key, "wrong".into()).await.unwrap());
    assert!(!index.tombstone(&key, "wrong".into()).await.unwrap());
    assert!(!index.set_pinned(&key, true).await.unwrap());
    assert_eq!(state().await, Some((false, false, true)));
    let lease = node.granted(&key).await;
    assert!(!index.condemn(&pack, generation).await.unwrap(), "the open lease may bring it back");
    drop(lease);
    let condemn = async || index.condemn(&pack, generation).await.unwrap().then_some(());
    wait_for("the release", condemn).await;
    assert_eq!(state().await, Some((false, true, true)));
    // The bytes are published again before the object is deleted: under another name.
    let lease = node.granted(&key).await;
    let published = index.publish(&lease, node.sign("a", b"pack"), Vec::new()).await.unwrap();
    let Published::Committed(entry) = published else { panic!("{published:?}") };
    assert_eq!((entry.epoch, entry.stored, entry.pinned), (2, false, false));
    assert!(entry.generation > generation);
    index.forget(&pack, generation).await.unwrap();
    assert_eq!(state().await, Some((true, false, false)), "a late deletion touches nothing");

    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push(event);
    }
    let expected = [
        IndexEvent::Published { key, pack },
        IndexEvent::Stored { pack },
        IndexEvent::Pinned { key, pinned: true },
        IndexEvent::Tombstoned { key, pack },
        IndexEvent::Condemned { pack },
        IndexEvent::Published { key, pack },
    ];
    assert_eq!(told, expected);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_and_holders_are_hints_that_arrive() {
    let cluster = TestCluster::start(3).await;
    let (key, _) = manifest("a", b"pack");
    let pack = Digest::of(b"pack");
    cluster.nodes[0].publish("a", b"pack").await.unwrap();
    // Another key with the same bytes, which nobody uses.
    cluster.nodes[0].publish("b", b"pack").await.unwrap();
    let (beside, _) = manifest("b", b"pack");
    let gained =
        AccessReport { hits: vec![(key, 3)], gained: vec![pack], ..AccessReport::default() };
    cluster.nodes[1].index.report(gained).await.unwrap();
    let lost = AccessReport { lost: vec![pack], ..AccessReport::default() };
    cluster.nodes[0].index.report(lost).await.unwrap();
    for node in &cluster.nodes {
        wait_for("hits and holders", async || {
            let entry = node.index.lookup(&key).await.unwrap()?;
            let used = node.index.usage(&key).await.unwrap();
            (used.hits == 3 && entry.holders == [cluster.nodes[1].id()]).then_some(())
        })
        .await;
        let used = node.index.usage(&key).await.unwrap();
        assert!(used.last_unix_ms > 0);
        assert_eq!(node.index.usage(&beside).await.unwrap(), Usage::default());
        let scanned = node.index.blocking_scan(None, "", 10).unwrap();
        let listed = |key| {
            let entry = scanned.iter().find(|entry| entry.key == key).unwrap();
            (entry.hits, entry.last_used_unix_ms)
        };
        assert_eq!((listed(key), listed(beside)), ((3, used.last_unix_ms), (0, 0)));
    }
    cluster.states_are_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_listed_in_order_by_prefix_and_page() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let mut keys = Vec::new();
    for n in 0..40 {
        let name = format!("key {n}");
        keys.push(manifest(&name, b"pack").0);
        node.publish(&name, b"pack").await.unwrap();
    }
    keys.sort_unstable();
    let all = node.index.blocking_scan(None, "", 100).unwrap();
    assert_eq!(all.iter().map(|e| e.key).collect::<Vec<_>>(), keys);
    let page = node.index.blocking_scan(Some(&keys[9]), "", 10).unwrap();
    assert_eq!(page.iter().map(|e| e.key).collect::<Vec<_>>(), keys[10..20]);
    for prefix in ["0", "7f", "e"] {
        let with: Vec<_> =
            keys.iter().filter(|k| k.to_string().starts_with(prefix)).copied().collect();
        let found = node.index.blocking_scan(None, prefix, 100).unwrap();
        assert_eq!(found.iter().map(|e| e.key).collect::<Vec<_>>(), with);
    }
    assert!(matches!(node.index.blocking_scan(None, "XY", 1), Err(ClusterError::Invalid(_))));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linearizable_lookup_sees_every_acknowledged_publication() {
    let cluster = TestCluster::start(3).await;
    for n in 0..12 {
        let name = format!("key {n}");
        let (key, _) = manifest(&name, b"pack");
        cluster.nodes[n % 3].publish(&name, b"pack").await.unwrap();
        let reader = &cluster.nodes[(n + 1) % 3];
        assert!(reader.index.lookup_linearizable(&key).await.unwrap().is_some());
    }
    let (missing, _) = manifest("missing", b"pack");
    assert_eq!(cluster.nodes[0].index.lookup_linearizable(&missing).await.unwrap(), None);
    assert!(matches!(cluster.nodes[0].acquire(&missing).await.unwrap(), Acquired::Granted(_)));
    cluster.stop().await;
}
