//! What the object store holds: what is needed, whole, and nothing else for long.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln::config::Config;

use crate::{
    harness::{TestCluster, eventually},
    redis::Redis,
};

fn collects_quickly(_: usize, config: &mut Config) {
    config.object.collect.orphan_after = Duration::ZERO;
    config.object.collect.grace = Duration::from_millis(200);
    config.object.collect.every = Duration::from_millis(100);
}

/// All packs in a folder store.
fn objects(cluster: &TestCluster) -> Vec<PathBuf> {
    let folders = |at: &Path| std::fs::read_dir(at).map(|all| all.flatten().map(|e| e.path()));
    let Ok(prefixes) = folders(&cluster.folder.path().join("object/packs")) else {
        return Vec::new();
    };
    // A file that is being written has another name until it is whole.
    let whole = |file: &PathBuf| !file.to_string_lossy().contains('#');
    prefixes.filter_map(|p| folders(&p).ok()).flatten().filter(whole).collect()
}

/// The settings of the collector arrive, and what an overwritten value leaves
/// behind goes; what is needed stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_values_object_is_collected() {
    let cluster = TestCluster::start_with(1, collects_quickly).await;
    let mut client = Redis::connect(&cluster.nodes[0]).await;
    client.set("key", [1; 5000]).await;
    let first = eventually("the first object", async || objects(&cluster).pop()).await;
    client.set("key", [2; 5000]).await;
    eventually("the first object is gone, the second there", async || {
        let objects = objects(&cluster);
        (objects.len() == 1 && objects[0] != first).then_some(())
    })
    .await;
    assert_eq!(client.get("key").await.unwrap(), [2; 5000]);
}

/// Defect 8 of issue 12: an object of the right size was never looked at again.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_object_of_the_right_size_is_replaced() {
    let cluster = TestCluster::start(1).await;
    let mut client = Redis::connect(&cluster.nodes[0]).await;
    let bytes = [7; 5000];
    client.set("first", bytes).await;
    let object = eventually("the object", async || objects(&cluster).pop()).await;
    let mut corrupt = bytes;
    corrupt[2500] ^= 1;
    std::fs::write(&object, corrupt).unwrap();
    // The same bytes under another key: their object seems to be there.
    client.set("second", bytes).await;
    eventually("the object is whole again", async || {
        (std::fs::read(&object).ok()? == bytes).then_some(())
    })
    .await;
}
