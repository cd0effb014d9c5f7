//! Bytes that rotted, where there is no other copy.

use kiln_proto::pb::Outcome;

use super::{program, rung};
use crate::harness::TestCluster;

const BLOCK: &str = "block_f32.new.pt2";

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_entry_is_removed_and_compiled_anew() {
    let mut cluster = TestCluster::start_with(1, |_, config| config.object.url = None).await;
    let made = cluster.nodes[0].compile(program(BLOCK)).await.unwrap();
    cluster.nodes[0].terminate().await;
    let packs = cluster.nodes[0].packs();
    assert_eq!(packs.len(), 1);
    let mut bytes = std::fs::read(&packs[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&packs[0], &bytes).unwrap();
    cluster.nodes[0].restart().await;
    let again = cluster.nodes[0].compile(program(BLOCK)).await.unwrap();
    assert_eq!((again.key, again.outcome), (made.key, Outcome::Compiled));
    assert_eq!(rung(&again), "wanted", "it is the real thing");
    assert_eq!(again.manifest.read_unverified().unwrap().pack_digest.to_string(), {
        made.manifest.read_unverified().unwrap().pack_digest.to_string()
    });
    let quarantined = std::fs::read(&packs[0]).map(|found| found == bytes).unwrap_or(false);
    assert!(!quarantined, "the bad copy is in nobody's way");
    assert_eq!(cluster.nodes[0].compile(program(BLOCK)).await.unwrap().outcome, Outcome::Hit);
}
