//! The byte paths side by side with Redis, on loopback.
//!
//! `cargo bench --bench transfer` starts a node's servers and a real
//! `redis-server`, each in a process of its own, asks both for the same bytes
//! in turns, and prints a table. A Redis answer is received into a buffer that
//! is reused; a Kiln answer is fresh, sealed memory whose digest was checked.

mod redis;
mod server;
mod table;

use std::{net::TcpStream, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use kiln::{
    cache::{Blob, BlobWriter},
    net::tls::Dialer,
    transfer::{ClientSettings, LocalClient, PeerClient},
};
use kiln_proto::ArtifactKey;
use redis::Redis;
use server::Node;
use table::{Sample, Table};
use tokio::runtime::Runtime;

/// Bytes of a blob, and how often each connection fetches it in one round.
const SIZES: [(usize, usize); 3] = [(16 << 10, 400), (1 << 20, 20), (16 << 20, 2)];
/// Short rounds in which every contender has its turn: noise hits them alike.
const ROUNDS: usize = 30;

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
fn local(runtime: &Runtime, node: &Node, redis: &Redis, blobs: &[Blob]) -> Result<()> {
    let mut table = Table::new("same node, one connection", OURS[0]);
    let connect = LocalClient::connect(&node.socket, ClientSettings::default());
    let client = Arc::new(tokio::sync::Mutex::new(runtime.block_on(connect)?));
    let (mut tcp, mut unix) = (redis.tcp()?, redis.unix()?);
    for (blob, (size, count)) in blobs.iter().zip(SIZES) {
        let name = blob.digest().to_string();
        for _ in 0..ROUNDS {
            for (who, touch) in [(OURS[0], false), (OURS[1], true)] {
                let fetches = descriptors(client.clone(), blob.clone(), count, touch);
                // As in a service: on a worker of the runtime, not beside it.
                table.add(size, who, runtime.block_on(runtime.spawn(fetches))??);
            }
            table.add(size, "redis, TCP", tcp.sample(&name, blob, count, false)?);
            table.add(size, "redis, unix socket", unix.sample(&name, blob, count, false)?);
        }
    }
    table.print();
    Ok(())
}

const OURS: [&str; 2] = ["kiln, descriptor", "kiln, descriptor, every page read"];

async fn descriptors(
    client: Arc<tokio::sync::Mutex<LocalClient>>,
    blob: Blob,
    count: usize,
    touch: bool,
) -> Result<Sample> {
    let key = ArtifactKey::from_bytes(*blob.digest().as_bytes());
    let mut client = client.lock().await;
    let (mut sample, all) = (Sample::default(), Instant::now());
    for _ in 0..count {
        let start = Instant::now();
        let got = client.fetch(&key, "").await?;
        anyhow::ensure!(got.pack.len() == blob.len());
        if touch {
            let pages = got.pack.iter().step_by(4096);
            std::hint::black_box(pages.map(|byte| u64::from(*byte)).sum::<u64>());
        }
        sample.count(start, blob.len());
    }
    Ok(sample.since(all))
}

/// A node that fetches from another: until the bytes are verified and sealed.
fn remote(
    runtime: &Runtime,
    node: &Node,
    redis: &Redis,
    blobs: &[Blob],
    connections: usize,
) -> Result<()> {
    let title = format!("between nodes, {connections} connection(s)");
    let mut table = Table::new(&title, "kiln, peer");
    let settings = ClientSettings { idle_per_address: connections, ..Default::default() };
    let client = Arc::new(PeerClient::new(settings, Dialer::default()));
    let open = (0..connections).map(|_| redis.tcp());
    let mut clients = open.collect::<Result<Vec<_>>>()?;
    for (blob, (size, count)) in blobs.iter().zip(&SIZES[1..]) {
        let name = blob.digest().to_string();
        for round in 0..ROUNDS {
            let ours = peers(&client, node, blob, connections, *count);
            let ours = runtime.block_on(ours)?;
            // The first round warms connections and memory.
            if round > 0 {
                table.add(*size, "kiln, peer", ours);
            }
            for (who, keep) in [("redis, TCP", false), ("redis, TCP, then verified", true)] {
                let theirs = redis_threads(&mut clients, &name, blob, *count, keep)?;
                if round > 0 {
                    table.add(*size, who, theirs);
                }
            }
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
    count: usize,
) -> Result<Sample> {
    let start = Instant::now();
    let fetches = (0..connections).map(|_| {
        let (client, address) = (client.clone(), node.address.clone());
        let (digest, size) = (blob.digest(), blob.size());
        tokio::spawn(async move {
            let (mut sample, all) = (Sample::default(), Instant::now());
            for _ in 0..count {
                let start = Instant::now();
                let mut writer = BlobWriter::with_size(size)?;
                client
                    .fetch_into(
                        kiln::transfer::PeerAddress { node: 0, address: &address },
                        &digest,
                        &mut writer,
                    )
                    .await?;
                let blob = writer.finish_as(digest)?;
                sample.count(start, blob.len());
            }
            anyhow::Ok(sample.since(all))
        })
    });
    let mut samples = Vec::new();
    for fetch in fetches.collect::<Vec<_>>() {
        samples.push(fetch.await.context("a task of kiln")??);
    }
    Ok(Sample::together(samples, start.elapsed()))
}

fn redis_threads(
    clients: &mut [redis::Client<TcpStream>],
    name: &str,
    blob: &Blob,
    count: usize,
    keep: bool,
) -> Result<Sample> {
    let start = Instant::now();
    let samples = std::thread::scope(|scope| {
        let running = clients
            .iter_mut()
            .map(|client| scope.spawn(move || client.sample(name, blob, count, keep)))
            .collect::<Vec<_>>();
        let joined = running.into_iter().map(|r| r.join().expect("a thread of redis"));
        joined.collect::<Result<Vec<_>>>()
    })?;
    Ok(Sample::together(samples, start.elapsed()))
}
