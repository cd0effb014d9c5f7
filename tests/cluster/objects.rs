//! What the object store holds: what is needed, whole, and nothing else for long.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln::config::Config;
use kiln_proto::value;

use crate::{
    harness::{NAMESPACE, TestCluster, eventually},
    redis::Redis,
};

fn collects_quickly(_: usize, config: &mut Config) {
    // What an upload has not finished yet is older than nothing.
    config.object.collect.orphan_after = Duration::from_secs(1);
    config.object.collect.grace = Duration::from_millis(200);
    config.object.collect.every = Duration::from_millis(100);
}

/// All packs in a folder store.
pub(crate) fn objects(cluster: &TestCluster) -> Vec<PathBuf> {
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

/// What a reader finds corrupt, or not at all, a holder uploads again.
#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_corrupt_or_missing_are_replaced() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (holder, reader) = ((leader + 1) % 3, (leader + 2) % 3);
    let bytes = [[7; 5000], [8; 5000]];
    let mut client = Redis::connect(&cluster.nodes[holder]).await;
    let mut files = Vec::new();
    for (name, bytes) in ["corrupt", "missing"].iter().zip(bytes) {
        client.set(name, bytes).await;
        let file = eventually("its object", async || {
            objects(&cluster).into_iter().find(|file| std::fs::read(file).unwrap() == bytes)
        });
        files.push(file.await);
        eventually("recorded as stored everywhere", async || {
            let key = value::components(NAMESPACE, name.as_bytes()).key();
            let entry = cluster.nodes[reader].lookup(&key).await.unwrap()?;
            entry.stored.then_some(())
        })
        .await;
    }
    let mut corrupt = bytes[0];
    corrupt[2500] ^= 1;
    std::fs::write(&files[0], corrupt).unwrap();
    std::fs::remove_file(&files[1]).unwrap();

    cluster.nodes[holder].kill().await;
    let mut other = Redis::connect(&cluster.nodes[reader]).await;
    assert_eq!(other.get("corrupt").await, None, "no good copy can be reached");
    assert_eq!(other.get("missing").await, None);
    cluster.nodes[holder].restart().await;
    for (file, bytes) in files.iter().zip(bytes) {
        let whole = async || (std::fs::read(file).ok()? == bytes).then_some(());
        eventually("the object is whole", whole).await;
    }
}
