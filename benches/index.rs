//! The index: local look-ups by size, and publishing against etcd.
//!
//! `cargo bench --bench index -- [lookup|publish]`. `KILN_BENCH_KEYS` bounds the
//! look-up sizes (default 1000000), `KILN_BENCH_PUBLISHES` the rounds (default 300).
//!
//! Publishing is one acquire and one commit, and runs in turns with two puts to
//! an etcd of three members: the same disk, the same moment, both with fsync, so
//! that only the ratio is to be believed. Each round goes to the next member on
//! both sides. etcd is left out where its binary is not installed.

use std::{
    net::TcpListener as StdListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::SigningKey;
use futures::{StreamExt, future::try_join_all, stream};
use hdrhistogram::Histogram;
use kiln_cluster::{
    Acquired, Cluster, Index, NodeFacts, Published, Role, Settings, Start, Timings,
};
use kiln_proto::{
    ArtifactKey, Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest,
    NodeIdentity, SignedManifest, Target, claimed_components,
};
use tokio::{net::TcpListener, time::Instant};
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

const LOOKUPS: u64 = 200_000;
const SETTLE: Duration = Duration::from_secs(15);
const PUBLISHERS: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("lookup") {
        lookup().await?;
    }
    if wanted("publish") {
        publish().await?;
    }
    Ok(())
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("read {name}")),
        Err(_) => Ok(default),
    }
}

struct Member {
    cluster: Cluster,
    index: Index,
    identity: NodeIdentity,
}

/// Founds a cluster of `size` members in this process, on loopback.
async fn members(dir: &Path, size: usize) -> Result<Vec<Member>> {
    let mut seats = Vec::new();
    for _ in 0..size {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        seats.push((listener.local_addr()?.to_string(), listener));
    }
    let peers: Vec<String> = seats.iter().map(|(address, _)| address.clone()).collect();
    let starting = seats.into_iter().enumerate().map(|(n, (address, listener))| {
        let settings = Settings {
            data_dir: dir.join(format!("member-{n}")),
            start: Start::Expect { voters: size, peers: peers.clone() },
            facts: NodeFacts { grpc: address, ..NodeFacts::default() },
            timings: Timings::default(),
            voter: true,
            log_entries: kiln_cluster::LOG_ENTRIES,
            context: || None,
            dial: None,
            joining: kiln_cluster::Joining::default(),
        };
        async move {
            let seed = u8::try_from(n)? + 1;
            let (cluster, routes) = Cluster::open(settings, SigningKey::from_bytes(&[seed; 32]))?;
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let serving = Server::builder().add_routes(routes).serve_with_incoming(incoming);
            tokio::spawn(async move { serving.await.expect("serve a member") });
            let identity = cluster.start().await?;
            Ok::<_, anyhow::Error>(Member { index: cluster.index(), cluster, identity })
        }
    });
    try_join_all(starting).await
}

/// A manifest as large as a compiled graph's: six components, two files.
fn manifest(name: &str) -> Manifest {
    let fields = |component: &str, count: usize| {
        let field =
            |n| KeyField::of_bytes(format!("{n}.{component}"), format!("{name}{n}").as_bytes());
        Component::new(component, (0..count).map(field).collect())
    };
    let versions = [("nvrtc", "13.0.88"), ("headers", "13.0")];
    let (fingerprint, target) = (Fingerprint::new("cuda", versions), Target::cubin(90));
    let own = [fields("graph", 2), fields("inputs", 6), fields("options", 3)];
    let claims = claimed_components(&fingerprint, &target, "");
    let components = Components::new(own.into_iter().chain(claims).collect());
    let digest = Digest::of(name.as_bytes());
    let file = |path: &str, offset| FileEntry { path: path.into(), offset, size: 4096, digest };
    Manifest {
        key: components.key(),
        namespace: String::new(),
        components,
        fingerprint,
        target,
        files: vec![file("module.cubin", 0), file("plan.json", 4096)],
        pack_digest: digest,
        pack_size: 8192,
        producer: 0,
        compile_seconds: 1.5,
        created_unix_ms: 1,
        label: name.into(),
        pieces: Vec::new(),
        check: None,
    }
}

/// One acquire and one commit.
async fn publish_one(member: &Member, key: ArtifactKey, signed: SignedManifest) -> Result<()> {
    let acquired = member.index.acquire(&key, None, Instant::now() + PATIENCE, || {}).await?;
    let Acquired::Granted(lease) = acquired else { bail!("the key is taken") };
    let published = member.index.publish(&lease, signed, Vec::new()).await?;
    ensure!(matches!(published, Published::Committed(_)), "another's artifact was there");
    Ok(())
}

fn micros(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

async fn lookup() -> Result<()> {
    let most = setting("KILN_BENCH_KEYS", 1_000_000)?;
    let dir = tempfile::tempdir()?;
    let members = members(dir.path(), 1).await?;
    let member = &members[0];
    println!("look-up of a hit in the local index, one thread, random keys");
    println!("{:>9} keys  {:>9}  {:>9}  {:>9}", "", "p50 us", "p99 us", "p99.9 us");
    let mut keys: Vec<ArtifactKey> = Vec::new();
    for size in [10_000, 100_000, 1_000_000].into_iter().filter(|size| *size <= most) {
        let from = keys.len() as u64;
        let publishing = stream::iter(from..size).map(|n| async move {
            let made = manifest(&format!("key {n}"));
            let key = made.key;
            publish_one(member, key, member.identity.sign(made)?).await?;
            Ok::<_, anyhow::Error>(key)
        });
        let mut publishing = publishing.buffer_unordered(PUBLISHERS);
        while let Some(key) = publishing.next().await {
            keys.push(key?);
        }
        // Flushes and compactions of what was just written come to an end.
        tokio::time::sleep(SETTLE).await;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut taken = Histogram::<u64>::new(3)?;
        for round in 0..LOOKUPS * 2 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = &keys[usize::try_from(random % size)?];
            let start = std::time::Instant::now();
            let found = member.index.lookup(key).await?;
            let nanos = u64::try_from(start.elapsed().as_nanos())?;
            ensure!(found.is_some(), "a published key is missing");
            // The first half warms the caches up.
            if round >= LOOKUPS {
                taken.record(nanos)?;
            }
        }
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| micros(&taken, q));
        println!("{size:>9} keys  {p50:>9.1}  {p99:>9.1}  {p999:>9.1}");
    }
    members[0].cluster.shutdown().await;
    Ok(())
}

async fn publish() -> Result<()> {
    let rounds = setting("KILN_BENCH_PUBLISHES", 300)?;
    let dir = tempfile::tempdir()?;
    let members = members(dir.path(), 3).await?;
    let etcd = Etcd::start(&dir.path().join("etcd")).await?;
    let mut ours = Histogram::<u64>::new(3)?;
    let mut theirs = Histogram::<u64>::new(3)?;
    let mut by_leader = Histogram::<u64>::new(3)?;
    let warm_up = rounds / 5;
    for round in 0..rounds + warm_up {
        let at = usize::try_from(round % 3)?;
        let member = &members[at];
        let made = manifest(&format!("publish {round}"));
        let key = made.key;
        let signed = member.identity.sign(made)?;
        let bytes = [signed.bytes.as_slice(), &signed.signature].concat();
        let start = Instant::now();
        publish_one(member, key, signed).await?;
        let nanos = u64::try_from(start.elapsed().as_nanos())?;
        if round >= warm_up {
            ours.record(nanos)?;
            if member.cluster.status().role == Role::Leader {
                by_leader.record(nanos)?;
            }
        }
        if let Some(etcd) = &etcd {
            let start = Instant::now();
            etcd.put(at, format!("lease/{key}").into(), b"one lease".to_vec()).await?;
            etcd.put(at, format!("artifact/{key}").into(), bytes).await?;
            if round >= warm_up {
                theirs.record(u64::try_from(start.elapsed().as_nanos())?)?;
            }
        }
    }
    println!("publish (acquire + commit), three members, one client, members in turn");
    let row = |name: &str, h: &Histogram<u64>| {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| micros(h, q) / 1000.0);
        println!(
            "{name:>24}: p50 {p50:.2} ms  p90 {p90:.2} ms  p99 {p99:.2} ms  mean {:.2} ms",
            h.mean() / 1e6
        );
    };
    row("kiln publish", &ours);
    row("  of these at the leader", &by_leader);
    if etcd.is_some() {
        row("two etcd puts", &theirs);
        let ratio = micros(&ours, 0.5) / micros(&theirs, 0.5);
        println!("{:>24}: p50 {ratio:.2}  mean {:.2}", "ratio", ours.mean() / theirs.mean());
    }
    concurrent(&members, etcd.as_ref(), rounds).await?;
    for member in &members {
        member.cluster.shutdown().await;
    }
    Ok(())
}

/// The same work from many clients at once: what batching is worth.
async fn concurrent(members: &[Member], etcd: Option<&Etcd>, rounds: u64) -> Result<()> {
    const CLIENTS: usize = 32;
    let rounds = rounds * 4;
    let mut signed = Vec::new();
    for n in 0..rounds {
        let at = usize::try_from(n % 3)?;
        let made = manifest(&format!("concurrent {n}"));
        signed.push((at, made.key, members[at].identity.sign(made)?));
    }
    let start = Instant::now();
    let publishing = stream::iter(signed.clone())
        .map(|(at, key, signed)| async move { publish_one(&members[at], key, signed).await });
    publishing
        .buffer_unordered(CLIENTS)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<()>>()?;
    let ours = rounds as f64 / start.elapsed().as_secs_f64();
    println!("{CLIENTS} clients at once: kiln {ours:.0} publishes/s");
    let Some(etcd) = etcd else { return Ok(()) };
    let start = Instant::now();
    let putting = stream::iter(signed).map(|(at, key, signed)| async move {
        etcd.put(at, format!("lease/{key}").into(), b"one lease".to_vec()).await?;
        etcd.put(at, format!("artifact/{key}").into(), signed.bytes).await
    });
    putting
        .buffer_unordered(CLIENTS)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<()>>()?;
    let theirs = rounds as f64 / start.elapsed().as_secs_f64();
    println!(
        "{CLIENTS} clients at once: etcd {theirs:.0} pairs of puts/s, kiln/etcd {:.2}",
        ours / theirs
    );
    Ok(())
}

/// Three etcd members and a connection to each.
struct Etcd {
    clients: Vec<Channel>,
    processes: Vec<Child>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let stopped = process.kill().and_then(|()| process.wait());
            if let Err(e) = stopped {
                eprintln!("etcd does not stop: {e}");
            }
        }
    }
}

/// `etcdserverpb.PutRequest`, as far as it is used here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`, which nobody reads.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

impl Etcd {
    /// Starts etcd below `dir`; `None` where it is not installed.
    async fn start(dir: &Path) -> Result<Option<Self>> {
        if Command::new("etcd").arg("--version").output().is_err() {
            println!("etcd is not installed: nothing to compare with");
            return Ok(None);
        }
        std::fs::create_dir_all(dir)?;
        // Bound together, so that no port is given out twice.
        let free: Vec<StdListener> =
            (0..6).map(|_| StdListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let urls = free.iter().map(|l| Ok(format!("http://{}", l.local_addr()?)));
        let urls = urls.collect::<std::io::Result<Vec<String>>>()?;
        drop(free);
        let names = ["a", "b", "c"];
        let cluster: Vec<String> =
            names.iter().zip(&urls).map(|(name, peer)| format!("{name}={peer}")).collect();
        let mut processes = Vec::new();
        for (n, name) in names.into_iter().enumerate() {
            let (peer, client) = (&urls[n], &urls[n + 3]);
            let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
            let mut command = Command::new("etcd");
            command.args(["--name", name, "--initial-cluster", &cluster.join(",")]);
            command.arg("--data-dir").arg(dir.join(name));
            command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
            command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
            processes.push(command.stdout(Stdio::null()).stderr(log).spawn()?);
        }
        let clients = urls[3..]
            .iter()
            .map(|url| Ok(Endpoint::from_shared(url.clone())?.tcp_nodelay(true).connect_lazy()));
        let etcd = Self { clients: clients.collect::<Result<_>>()?, processes };
        let deadline = Instant::now() + PATIENCE;
        for at in 0..3 {
            while let Err(e) = etcd.put(at, b"ready".to_vec(), Vec::new()).await {
                ensure!(Instant::now() < deadline, "etcd does not start: {e:#}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(Some(etcd))
    }

    async fn put(&self, at: usize, key: Vec<u8>, value: Vec<u8>) -> Result<()> {
        let mut client = tonic::client::Grpc::new(self.clients[at].clone());
        client.ready().await?;
        let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
        client.unary(tonic::Request::new(PutRequest { key, value }), path, codec).await?;
        Ok(())
    }
}
