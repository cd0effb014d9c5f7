//! The byte paths side by side with Redis, on loopback.
//!
//! `cargo bench --bench transfer` starts a node's servers and a real
//! `redis-server`, each in a process of its own, asks both for the same bytes
//! in turns, and prints a table. A Redis answer is received into a buffer that
//! is reused; a Kiln answer is fresh, sealed memory whose digest was checked.

mod redis;
mod server;
mod table;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use kiln::{
    cache::{Blob, BlobWriter},
    transfer::{ClientSettings, LocalClient, PeerClient},
};
use kiln_proto::ArtifactKey;
use redis::Redis;
use server::Node;
use table::{Sample, Table};

/// Bytes of a blob, and how often it is fetched in one round.
const SIZES: [(usize, usize); 3] = [(16 << 10, 2000), (1 << 20, 320), (16 << 20, 32)];
/// Rounds in which every contender has its turn: noise hits them alike.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, dir] = &arguments[..]
        && flag == server::FLAG
    {
        return server::run(dir.as_ref());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let dir = tempfile::tempdir()?;
    let node = Node::start(dir.path())?;
    let redis = Redis::start(dir.path())?;
    let blobs = SIZES.map(|(size, _)| server::blob(size));
    for blob in &blobs {
        redis.set(&blob.digest().to_string(), blob)?;
    }
    let wanted = |name: &str| {
        let filters: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
        filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()))
    };
    if wanted("local") {
        local(&runtime, &node, &redis, &blobs)?;
    }
    if wanted("remote") {
        for connections in [1, 16] {
            remote(&runtime, &node, &redis, &blobs[1..], connections)?;
        }
    }
    Ok(())
}

/// A client on the same node: until the bytes are mapped and their seals checked.
fn local(
    runtime: &tokio::runtime::Runtime,
    node: &Node,
    redis: &Redis,
    blobs: &[Blob],
) -> Result<()> {
    let mut table = Table::new("same node, one connection", "kiln, descriptor");
    for (blob, (_, count)) in blobs.iter().zip(SIZES) {
        let name = blob.digest().to_string();
        let key = ArtifactKey::from_bytes(*blob.digest().as_bytes());
        for _ in 0..ROUNDS {
            for touch in [false, true] {
                let socket = node.socket.clone();
                let size = blob.len();
                let sample = runtime.block_on(runtime.spawn(async move {
                    let mut client =
                        LocalClient::connect(&socket, ClientSettings::default()).await?;
                    let mut times = Vec::with_capacity(count);
                    let start = Instant::now();
                    for _ in 0..count {
                        let start = Instant::now();
                        let got = client.fetch(&key).await?;
                        assert_eq!(got.pack.len(), size);
                        if touch {
                            let pages = got.pack.iter().step_by(4096);
                            std::hint::black_box(pages.map(|b| u64::from(*b)).sum::<u64>());
                        }
                        times.push(start.elapsed());
                    }
                    anyhow::Ok(Sample { times, bytes: size * count, wall: start.elapsed() })
                }))??;
                let who = if touch { "kiln, every page touched" } else { "kiln, descriptor" };
                table.add(blob.len(), who, sample);
            }
            table.add(blob.len(), "redis, TCP", redis.tcp()?.sample(&name, blob, count)?);
            table.add(blob.len(), "redis, unix socket", redis.unix()?.sample(&name, blob, count)?);
        }
    }
    table.print();
    Ok(())
}

/// A node that fetches from another: until the bytes are verified and sealed.
fn remote(
    runtime: &tokio::runtime::Runtime,
    node: &Node,
    redis: &Redis,
    blobs: &[Blob],
    connections: usize,
) -> Result<()> {
    let title = format!("between nodes, {connections} connection(s)");
    let mut table = Table::new(&title, "kiln, peer");
    for (blob, (_, count)) in blobs.iter().zip(&SIZES[1..]) {
        let name = blob.digest().to_string();
        let each = (count / connections).max(4);
        for _ in 0..ROUNDS {
            let settings = ClientSettings { idle_per_address: 16, ..Default::default() };
            let client = Arc::new(PeerClient::new(settings));
            let sample = runtime.block_on(async {
                peers(&client, node, blob, connections, 1).await?;
                peers(&client, node, blob, connections, each).await
            })?;
            table.add(blob.len(), "kiln, peer", sample);
            let open = (0..connections).map(|_| redis.tcp());
            let mut clients = open.collect::<Result<Vec<_>>>()?;
            for client in &mut clients {
                client.sample(&name, blob, 1)?;
            }
            let start = Instant::now();
            let samples = std::thread::scope(|scope| {
                let running = clients
                    .iter_mut()
                    .map(|client| scope.spawn(|| client.sample(&name, blob, each)))
                    .collect::<Vec<_>>();
                let joined = running.into_iter().map(|r| r.join().expect("a thread of redis"));
                joined.collect::<Result<Vec<_>>>()
            })?;
            table.add(blob.len(), "redis, TCP", Sample::together(samples, start.elapsed()));
        }
    }
    table.print();
    Ok(())
}

async fn peers(
    client: &Arc<PeerClient>,
    node: &Node,
    blob: &Blob,
    connections: usize,
    each: usize,
) -> Result<Sample> {
    let start = Instant::now();
    let fetches = (0..connections).map(|_| {
        let (client, address) = (client.clone(), node.address.clone());
        let (digest, size) = (blob.digest(), blob.size());
        tokio::spawn(async move {
            let mut times: Vec<Duration> = Vec::with_capacity(each);
            for _ in 0..each {
                let start = Instant::now();
                let mut writer = BlobWriter::with_size(size)?;
                client.fetch_into(&address, &digest, &mut writer).await?;
                std::hint::black_box(writer.finish_as(digest)?);
                times.push(start.elapsed());
            }
            anyhow::Ok(Sample { bytes: size as usize * each, times, wall: start.elapsed() })
        })
    });
    let mut samples = Vec::new();
    for fetch in fetches.collect::<Vec<_>>() {
        samples.push(fetch.await.context("a task of kiln")??);
    }
    Ok(Sample::together(samples, start.elapsed()))
}
