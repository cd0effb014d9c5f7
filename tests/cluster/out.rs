//! What is wrong is out of every node: what a person removed, and what rotted.

use std::{path::PathBuf, time::Duration};

use kiln_proto::{
    ArtifactKey,
    pb::{self, Outcome, Tier},
    value,
};
use tonic::Code;

use crate::{
    harness::{NAMESPACE, TestCluster, TestNode, bytes_of, eventually, saxpy},
    objects::objects,
    redis::Redis,
};

async fn remove(node: &TestNode, key: &ArtifactKey) {
    let request = pb::TombstoneRequest { key: bytes_of(key), reason: "a test".into() };
    assert!(node.client().await.tombstone(request).await.unwrap().into_inner().existed);
}

/// How many blobs the node has in memory.
async fn in_memory(node: &TestNode) -> u64 {
    let status = node.status().await.unwrap();
    let memory = status.tiers.iter().find(|tier| tier.name == "memory");
    memory.expect("a memory tier").entries
}

/// Waits until no node has anything of `keys`, nor any other pack.
async fn out_of_all(cluster: &TestCluster, keys: &[ArtifactKey]) {
    for node in &cluster.nodes {
        for key in keys {
            eventually("no entry", async || {
                node.lookup(key).await.unwrap().is_none().then_some(())
            })
            .await;
            assert_eq!(node.fetch(key).await.unwrap_err().code(), Code::NotFound);
        }
        eventually("no pack", async || {
            (node.packs().is_empty() && in_memory(node).await == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_leaves_memory_and_disk_of_every_node() {
    // Nobody waits for a SET that does not come.
    let mut cluster =
        TestCluster::start_with(3, |_, config| config.resp.wait = Duration::ZERO).await;
    let made = cluster.nodes[0].compile(saxpy("wrong")).await.unwrap();
    let keys = [made.key, value::components(NAMESPACE, b"value").key()];
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        assert_eq!(node.compile(saxpy("wrong")).await.unwrap().key, made.key);
        clients.push(Redis::connect(node).await);
    }
    clients[0].set("value", b"wrong").await;
    for client in &mut clients {
        assert_eq!(client.get("value").await.unwrap(), b"wrong");
    }
    for node in &cluster.nodes {
        assert_eq!((node.packs().len(), in_memory(node).await), (2, 2));
    }
    for key in &keys {
        remove(&cluster.nodes[1], key).await;
    }
    out_of_all(&cluster, &keys).await;
    for client in &mut clients {
        assert_eq!(client.get("value").await, None);
    }

    // Right for whoever asks now, and once for all.
    let again = cluster.nodes[2].compile(saxpy("wrong")).await.unwrap();
    assert_eq!((again.key, again.outcome), (made.key, Outcome::Compiled));
    eventually("the new entry", async || cluster.nodes[0].lookup(&made.key).await.unwrap()).await;
    assert_eq!(cluster.nodes[0].compile(saxpy("wrong")).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(cluster.counter("compiler_runs").await, 2);

    // A node that was not there for it does not have it when it is back.
    cluster.nodes[0].terminate().await;
    remove(&cluster.nodes[1], &made.key).await;
    cluster.nodes[0].restart().await;
    let gone = async || cluster.nodes[0].lookup(&made.key).await.ok()?.is_none().then_some(());
    eventually("it is known there too", gone).await;
    assert_eq!(cluster.nodes[0].fetch(&made.key).await.unwrap_err().code(), Code::NotFound);
}

/// Flips one bit in the middle of each.
fn rot(files: impl IntoIterator<Item = PathBuf>) -> Vec<u8> {
    let mut rotten = Vec::new();
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert!(rotten.is_empty() || rotten == bytes, "copies of one pack");
        rotten = bytes;
    }
    assert!(!rotten.is_empty());
    rotten
}

/// A cluster that has an artifact on every disk and in the object store, and in no memory.
async fn on_all_disks(name: &str) -> (TestCluster, ArtifactKey, Vec<u8>) {
    let cluster = TestCluster::start_with(3, |_, config| config.memory.bytes = 1).await;
    let made = cluster.nodes[0].compile(saxpy(name)).await.unwrap();
    let (_, bytes) = cluster.nodes[0].fetch(&made.key).await.unwrap();
    for node in &cluster.nodes {
        node.compile(saxpy(name)).await.unwrap();
        assert_eq!((node.packs().len(), in_memory(node).await), (1, 0));
    }
    for node in &cluster.nodes {
        eventually("all copies are recorded", async || {
            let entry = node.lookup(&made.key).await.unwrap()?;
            (entry.stored && entry.holders.len() == 3).then_some(())
        })
        .await;
    }
    assert_eq!(objects(&cluster).len(), 1);
    (cluster, made.key, bytes)
}

/// Waits until no file has `rotten` bytes, but for those set aside.
async fn nowhere(cluster: &TestCluster, rotten: &[u8]) {
    let is_rotten = |file: &PathBuf| std::fs::read(file).is_ok_and(|bytes| bytes == rotten);
    let packs = || cluster.nodes.iter().flat_map(TestNode::packs).chain(objects(cluster));
    eventually("the bytes are gone", async || {
        (!packs().any(|file| is_rotten(&file))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rotted_everywhere_is_removed_everywhere_and_compiled_again() {
    let (cluster, key, bytes) = on_all_disks("rotten").await;
    let rotten = rot(cluster.nodes.iter().flat_map(TestNode::packs).chain(objects(&cluster)));
    let again = cluster.nodes[1].compile(saxpy("rotten")).await.unwrap();
    assert_eq!((again.key, again.outcome), (key, Outcome::Compiled));
    nowhere(&cluster, &rotten).await;
    for node in &cluster.nodes {
        let hit = eventually("a hit", async || {
            let found = node.compile(saxpy("rotten")).await.unwrap();
            (found.outcome == Outcome::Hit).then_some(found)
        })
        .await;
        assert_eq!(hit.key, key);
        assert_eq!(node.fetch(&key).await.unwrap().1, bytes);
    }
    assert_eq!(cluster.counter("compiler_runs").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rotted_on_one_node_and_in_the_object_store_is_replaced_from_another() {
    let (cluster, key, bytes) = on_all_disks("mended").await;
    let finds = &cluster.nodes[1];
    let rotten = rot(finds.packs().into_iter().chain(objects(&cluster)));
    let (header, found) = finds.fetch(&key).await.unwrap();
    assert_eq!((found, header.tier()), (bytes.clone(), Tier::Peer));
    // Nobody looks into an object that no reader needed: one that has no other copy does.
    assert!(!finds.packs().iter().any(|file| std::fs::read(file).unwrap() == rotten));
    assert_eq!(cluster.counter("compiler_runs").await, 1);
    for node in &cluster.nodes {
        assert_eq!(node.fetch(&key).await.unwrap().1, bytes);
    }
}
