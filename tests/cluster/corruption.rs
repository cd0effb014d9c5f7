//! Invariant 3: no wrong byte leaves a node, and a bad copy costs a refetch,
//! never a recompile.

use kiln_proto::pb::{Outcome, Tier};

use crate::harness::{TestCluster, eventually, saxpy};

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_on_disk_is_found_and_refetched() {
    let mut cluster = TestCluster::start(3).await;
    let made = cluster.nodes[0].compile(saxpy("flip")).await.unwrap();
    let (_, bytes) = cluster.nodes[0].fetch(&made.key).await.unwrap();
    cluster.nodes[1].compile(saxpy("flip")).await.unwrap();

    // An empty L1, so that the disk is read.
    cluster.nodes[1].terminate().await;
    let packs = cluster.nodes[1].packs();
    assert_eq!(packs.len(), 1);
    let mut file = std::fs::read(&packs[0]).unwrap();
    let middle = file.len() / 2;
    file[middle] ^= 1;
    std::fs::write(&packs[0], &file).unwrap();
    cluster.nodes[1].restart().await;

    let (header, found) =
        eventually("a fetch", async || cluster.nodes[1].fetch(&made.key).await.ok()).await;
    assert_eq!(found, bytes);
    // From a peer or L3, or from memory where the warm-up found the bad copy first.
    assert_ne!(header.tier(), Tier::Disk);
    let metrics = crate::harness::metrics(&cluster.nodes[1]).await;
    let corrupt = metrics.lines().find(|l| l.starts_with("kiln_tier_corrupt")).unwrap_or_default();
    assert!(corrupt.ends_with(" 1"), "the bad copy is counted: {corrupt:?}");
    assert_eq!(cluster.counter("compiler_runs").await, 1, "the first one and no other");
    // The healed copy is served from this node again.
    assert_eq!(cluster.nodes[1].fetch(&made.key).await.unwrap().0.tier(), Tier::Memory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_cache_is_refetched_not_recompiled() {
    let mut cluster = TestCluster::start(3).await;
    let made = cluster.nodes[0].compile(saxpy("wipe")).await.unwrap();
    cluster.nodes[1].compile(saxpy("wipe")).await.unwrap();
    cluster.nodes[0].terminate().await;
    for pack in cluster.nodes[0].packs() {
        std::fs::remove_file(pack).unwrap();
    }
    cluster.nodes[0].restart().await;
    let again = cluster.nodes[0].compile(saxpy("wipe")).await.unwrap();
    // From a peer or L3, or from memory where the warm-up was quicker.
    assert_eq!((again.outcome, again.key), (Outcome::Hit, made.key));
    assert_ne!(again.tier, Tier::Disk);
    assert_eq!(cluster.nodes[0].counter("compiler_runs").await, 0);
}

/// Bytes that are gone everywhere are a miss, never an error.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_lost_everywhere_are_compiled_again() {
    let mut cluster = TestCluster::start_with(1, |_, config| config.object.url = None).await;
    let made = cluster.nodes[0].compile(saxpy("gone")).await.unwrap();
    cluster.nodes[0].terminate().await;
    for pack in cluster.nodes[0].packs() {
        std::fs::remove_file(pack).unwrap();
    }
    cluster.nodes[0].restart().await;
    let again = cluster.nodes[0].compile(saxpy("gone")).await.unwrap();
    assert_eq!((again.outcome, again.key), (Outcome::Compiled, made.key));
    assert_eq!(cluster.nodes[0].counter("lost_packs").await, 1);
}
