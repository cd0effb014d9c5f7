//! What many clients at once may cost a node: descriptors, memory, threads.

use std::{path::PathBuf, time::Duration};

use futures::future::join_all;
use kiln_proto::{Digest, pb, pb::publish_chunk::Chunk, value};
use tonic::Code;

use crate::{
    harness::{NAMESPACE, TestCluster, TestNode},
    redis::{Redis, request, text},
};

const CLIENTS: usize = 16;
const ENTRIES: usize = 128;
/// Beside L1's entries and the connections: files of RocksDB and of the disk tier,
/// listeners, the runtime's own, and eight stores at once of each client.
const OTHERS: usize = 256;

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A number of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> usize {
    let text = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status"))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// The most descriptors of `node` while `work` runs.
async fn most_descriptors(node: &TestNode, work: impl Future<Output = ()>) -> usize {
    let (pid, mut most) = (node.pid(), 0);
    let mut looks = tokio::time::interval(Duration::from_millis(2));
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            () = &mut work => return most,
            _ = looks.tick() => most = most.max(descriptors(pid)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_values_at_once_hold_few_descriptors() {
    const VALUES: usize = 250;
    let cluster = TestCluster::start_with(1, |_, config| config.memory.entries = ENTRIES).await;
    let node = &cluster.nodes[0];
    let work = async {
        let client = |n: usize| async move {
            let mut words = vec!["MSET".to_owned()];
            words.extend((0..VALUES).flat_map(|v| [format!("{n}:{v}"), format!("value {n} {v}")]));
            let mut redis = Redis::connect(node).await;
            redis.send(&request(words)).await;
            assert_eq!(text(redis.reply().await), "OK");
        };
        join_all((0..CLIENTS).map(client)).await;
    };
    let most = most_descriptors(node, work).await;
    let (peak, threads) = (status(node.pid(), "VmHWM") >> 10, status(node.pid(), "Threads"));
    let cap = ENTRIES + CLIENTS + OTHERS;
    println!("MSET: {most} descriptors of {cap}, {peak} MiB at most, {threads} threads");
    assert!(most <= cap, "{most} descriptors, {cap} at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_in_that_may_not_be_published() {
    const BYTES: u64 = 256 << 20;
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let before = status(node.pid(), "VmHWM") >> 10;
    let client = |n: usize| async move {
        let name = format!("never {n}");
        let manifest = value::manifest(NAMESPACE, name.as_bytes(), Digest::of(b""), BYTES, 0.0);
        let manifest = Some((&manifest).into());
        let header = pb::PublishHeader { token: 7, manifest, ..Default::default() };
        let data = prost::bytes::Bytes::from(vec![0; 1 << 20]);
        let chunks = std::iter::once(Chunk::Header(header))
            .chain((0..BYTES >> 20).map(move |_| Chunk::Data(data.clone())))
            .map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
        let sent = node.client().await.publish(futures::stream::iter(chunks)).await;
        assert_eq!(sent.unwrap_err().code(), Code::FailedPrecondition);
    };
    let work = async {
        join_all((0..CLIENTS).map(client)).await;
    };
    let most = most_descriptors(node, work).await;
    let peak = status(node.pid(), "VmHWM") >> 10;
    println!("publish: {most} descriptors, {before} -> {peak} MiB at most");
    assert!(peak - before < 256, "{before} -> {peak} MiB for 4 GiB that were refused");
}
