//! What many clients at once may cost a node: descriptors, memory, threads.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use futures::future::join_all;
use kiln_proto::{Digest, pb, pb::publish_chunk::Chunk, value};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::{
    harness::{NAMESPACE, SOON, TestCluster, TestNode, eventually, http},
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

/// What a client that only asks whether the node is there is told.
async fn ping(address: SocketAddr) -> Option<(TcpStream, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(&request(["PING"])).await.ok()?;
    let mut line = String::new();
    let mut reader = BufReader::new(&mut stream);
    let read = timeout(SOON, reader.read_line(&mut line)).await.ok()?.ok()?;
    (read > 0).then_some((stream, line))
}

/// Connections to a port that say nothing; those that are still open.
async fn idlers(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = || async move { TcpStream::connect(address).await.ok() };
    join_all((0..count).map(|_| connect())).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_few_descriptors_refuses_and_serves_again() {
    const LIMIT: u64 = 256;
    let mut cluster = TestCluster::start(1).await;
    let node = &mut cluster.nodes[0];
    node.terminate().await;
    node.descriptors = Some(LIMIT);
    node.restart().await;
    let node = &cluster.nodes[0];
    let (pid, resp) = (node.pid(), node.config.resp_listen.unwrap());
    let work = async {
        let crowd = [node.config.grpc_listen, node.config.http_listen, node.config.transfer_listen];
        let idle = join_all(crowd.map(|address| idlers(address, 200))).await;
        let asked = join_all((0..200).map(|_| ping(resp))).await;
        let told =
            |word: &str| asked.iter().flatten().filter(|(_, line)| line.contains(word)).count();
        let served = told("PONG");
        assert!(served >= 8, "{served} of 200 have a place");
        assert!(told("max number of clients") > 0, "the others are told why not");
        drop(asked);
        // Those that have a place store more than can be in memory at once.
        let client = |n: usize| async move {
            let mut words = vec!["MSET".to_owned()];
            words.extend((0..100).flat_map(|v| [format!("{n}:{v}"), format!("value {n} {v}")]));
            let mut redis = Redis::connect(node).await;
            redis.send(&request(words)).await;
            // Refused, or answered: a cache never fails its clients.
            redis.try_reply().await;
        };
        join_all((0..CLIENTS).map(client)).await;
        drop(idle);
    };
    let most = most_descriptors(node, work).await;
    println!("{most} descriptors of {LIMIT}");
    assert!(most < LIMIT as usize, "no descriptor was left for a file");
    let mut again = eventually("a place", async || {
        let (stream, line) = ping(resp).await?;
        line.contains("PONG").then_some(stream)
    })
    .await;
    again.shutdown().await.unwrap();
    assert_eq!(node.pid(), pid, "it never stopped");
    let stored = async || {
        let mut redis = Redis::connect(node).await;
        redis.send(&request(["SET", "after", "all"])).await;
        let answer = redis.try_reply().await?;
        (text(answer) == "OK").then_some(())?;
        redis.get("after").await
    };
    assert_eq!(eventually("a value", stored).await, b"all");
    assert!(node.status().await.is_ok());
    assert_eq!(http(node, "/readyz").await.0, 200);
}
