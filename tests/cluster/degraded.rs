//! Invariant 11: whatever is missing, a node answers from what it has, or with
//! a clear error.

use kiln_proto::pb::{Outcome, Tier};
use tonic::Code;

use crate::harness::{TestCluster, code, eventually, http, kind, saxpy};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_nvrtc_serves_hits_and_names_what_is_missing() {
    let cluster = TestCluster::start_with(3, |i, config| {
        if i == 2 {
            config.compile.nvrtc = Some("/nowhere".into());
        }
    })
    .await;
    cluster.nodes[0].compile(saxpy("shared")).await.unwrap();
    let bare = &cluster.nodes[2];
    let hit = bare.compile(saxpy("shared")).await.unwrap();
    assert_eq!((hit.outcome, hit.tier), (Outcome::Hit, Tier::Peer));
    // What is not to be stored is not sent on to a node that could compile it.
    let mut uncached = saxpy("unseen");
    uncached.disable_cache = true;
    let refused = bare.compile(uncached).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C005"), Some("toolchain_missing")));
    // The key is not blocked for those who can, and they can be asked through it.
    let made = bare.compile(saxpy("unseen")).await.unwrap();
    assert_eq!((made.outcome, made.tier), (Outcome::Compiled, Tier::Peer));
    assert_ne!(made.manifest.read_unverified().unwrap().producer, bare.id);
    assert_eq!(cluster.nodes[1].compile(saxpy("unseen")).await.unwrap().outcome, Outcome::Hit);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_quorum_hits_go_on_and_misses_say_why() {
    let mut cluster = TestCluster::start(3).await;
    cluster.nodes[0].compile(saxpy("known")).await.unwrap();
    cluster.nodes[2].compile(saxpy("known")).await.unwrap();
    cluster.nodes[0].kill().await;
    cluster.nodes[1].kill().await;
    let alone = &cluster.nodes[2];
    let hit = alone.compile(saxpy("known")).await.unwrap();
    assert_eq!((hit.outcome, hit.tier), (Outcome::Hit, Tier::Memory));
    let mut miss = saxpy("unknown");
    miss.deadline_ms = 20_000;
    let refused = alone.compile(miss).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{refused}");
    eventually("loss of quorum in the status", async || {
        (!alone.status().await.unwrap().quorum).then_some(())
    })
    .await;
    assert_eq!(http(alone, "/healthz").await.0, 200);
    assert_eq!(http(alone, "/readyz").await.0, 200, "ready for reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_l3_away_compiles_commit_and_uploads_drain_later() {
    let mut cluster = TestCluster::start(3).await;
    let object = cluster.folder.path().join("object");
    let hidden = cluster.folder.path().join("away");
    std::fs::rename(&object, &hidden).unwrap();
    // A file where the folder was: writes fail, as they do when a mount is gone.
    std::fs::write(&object, b"").unwrap();
    let made = cluster.nodes[0].compile(saxpy("away")).await.unwrap();
    assert_eq!(made.outcome, Outcome::Compiled);
    let hit = cluster.nodes[1].compile(saxpy("away")).await.unwrap();
    assert_eq!((hit.outcome, hit.tier), (Outcome::Hit, Tier::Peer));
    assert!(!cluster.nodes[1].lookup(&made.key).await.unwrap().unwrap().stored);
    std::fs::remove_file(&object).unwrap();
    std::fs::rename(&hidden, &object).unwrap();
    eventually("the upload", async || {
        let entry = cluster.nodes[1].lookup(&made.key).await.unwrap().unwrap();
        entry.stored.then_some(())
    })
    .await;
    // L3 alone serves a node that has no peer with the bytes left.
    cluster.nodes[0].kill().await;
    cluster.nodes[1].kill().await;
    let (header, _) = cluster.nodes[2].fetch(&made.key).await.unwrap();
    assert_eq!(header.tier(), Tier::Object);
}

/// A disk tier that cannot be written: compiles are answered and shared all the same.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_tier_everything_is_still_answered() {
    let cluster = TestCluster::start_with(3, |i, config| {
        if i == 0 {
            // Smaller than any pack: nothing ever fits.
            config.disk.bytes = 1;
        }
    })
    .await;
    let made = cluster.nodes[0].compile(saxpy("full")).await.unwrap();
    assert_eq!(made.outcome, Outcome::Compiled);
    assert_eq!(cluster.nodes[0].compile(saxpy("full")).await.unwrap().tier, Tier::Memory);
    assert_eq!(cluster.nodes[1].compile(saxpy("full")).await.unwrap().outcome, Outcome::Hit);
}
