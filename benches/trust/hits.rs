//! Hits in memory: plain text, everything that is there against strangers, and a client that
//! checks as well.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::VerifyingKey;
use kiln_proto::{ArtifactKey, Hasher, SignedManifest, pb};
use serde_json::{Value, json};

use crate::{
    door::{Client, Cluster, fetch},
    number,
    table::Samples,
};

const LARGE: usize = 1 << 20;
const SMALL: usize = 16 << 10;
/// Of the throughput in plain text, what has to be left.
const THROUGHPUT: f64 = 0.85;
/// Of the median time in plain text, the most.
const LATENCY: f64 = 1.3;
/// The node that is asked, and another one that publishes.
const ASKED: usize = 1;
const FROM: usize = 0;

/// One who takes turns with others.
struct Contender {
    name: &'static str,
    clients: Vec<Client>,
    large: ArtifactKey,
    small: ArtifactKey,
    /// The signer's key, for who checks.
    signer: Option<Arc<VerifyingKey>>,
    throughput: Samples,
    latency: Samples,
    /// Not judged, but told: 99 of 100 are faster.
    slow: Samples,
}

pub(crate) async fn measure() -> Value {
    let (rounds, connections) = (number("ROUNDS", 7), number("CONNECTIONS", 8));
    let seconds = Duration::from_secs(number("TURN", 1) as u64);
    let plain = Cluster::plain().await;
    let secure = Cluster::secure(Duration::from_secs(3600), true).await;
    let mut all = vec![
        Contender::new("plain text", &plain, connections, false).await,
        Contender::new("TLS, token, root", &secure, connections, false).await,
        Contender::new("and a client that checks", &secure, connections, true).await,
    ];
    // The first round warms connections and memory.
    for round in 0..=rounds {
        for at in 0..all.len() {
            let turn = (round + at) % all.len();
            let contender = &mut all[turn];
            let throughput = contender.throughput(seconds).await;
            let (median, slow) = contender.latency(seconds).await;
            if round > 0 {
                contender.throughput.add(throughput);
                contender.latency.add(median);
                contender.slow.add(slow);
            }
        }
        eprintln!("round {round} of {rounds}");
    }
    table(&all, connections);
    let rows = all.iter().map(|of| {
        let small = json!({ "p50_us": of.latency.json(), "p99_us": of.slow.json() });
        json!({ "name": of.name, "mib_per_s": of.throughput.json(), "small": small })
    });
    json!({
        "rounds": rounds, "connections": connections, "seconds": seconds.as_secs(),
        "contenders": rows.collect::<Vec<_>>(),
    })
}

fn table(all: &[Contender], connections: usize) {
    println!(
        "| 1 MiB in memory, {connections} connections | MiB/s | least to most | of plain text |"
    );
    println!("|---|---|---|---|");
    let plain = &all[0];
    let verdict = |met: bool| if met { "met" } else { "missed" };
    for of in all {
        let (samples, ratio) = (&of.throughput, of.throughput.median() / plain.throughput.median());
        println!(
            "| {} | {:.0} | {:.0} to {:.0} | {:.2} (goal {THROUGHPUT}: {}) |",
            of.name,
            samples.median(),
            samples.least(),
            samples.most(),
            ratio,
            verdict(ratio >= THROUGHPUT)
        );
    }
    println!(
        "\n| 16 KiB in memory, 1 connection | p50 µs | least to most | p99 µs | of plain text |"
    );
    println!("|---|---|---|---|---|");
    for of in all {
        let (samples, ratio) = (&of.latency, of.latency.median() / plain.latency.median());
        println!(
            "| {} | {:.0} | {:.0} to {:.0} | {:.0} | {:.2} (goal {LATENCY}: {}) |",
            of.name,
            samples.median(),
            samples.least(),
            samples.most(),
            of.slow.median(),
            ratio,
            verdict(ratio <= LATENCY)
        );
    }
    println!();
}

/// Bytes that nothing else has.
fn bytes(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Contender {
    async fn new(name: &'static str, cluster: &Cluster, connections: usize, checks: bool) -> Self {
        let large = cluster.spread(FROM, &[ASKED], bytes(LARGE)).await;
        let small = cluster.spread(FROM, &[ASKED], bytes(SMALL)).await;
        let mut clients = Vec::new();
        for _ in 0..connections {
            clients.push(cluster.client(ASKED).await);
        }
        let signer = match checks {
            false => None,
            true => Some(Arc::new(signer(&mut clients[0], cluster.nodes().id(FROM)).await)),
        };
        let (throughput, latency, slow) = Default::default();
        Self { name, clients, large, small, signer, throughput, latency, slow }
    }

    /// MiB in a second, of as many connections as there are.
    async fn throughput(&self, time: Duration) -> f64 {
        let began = Instant::now();
        let tasks = self.clients.iter().map(|client| {
            let (mut client, key, signer) = (client.clone(), self.large, self.signer.clone());
            tokio::spawn(async move {
                let mut hits = 0;
                while began.elapsed() < time {
                    hit(&mut client, &key, LARGE, signer.as_deref()).await;
                    hits += 1;
                }
                hits
            })
        });
        let hits = futures::future::join_all(tasks.collect::<Vec<_>>()).await;
        let hits: usize = hits.into_iter().map(Result::unwrap).sum();
        (hits * LARGE) as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64()
    }

    /// The median and the 99th of 100 times of a hit, in microseconds.
    async fn latency(&self, time: Duration) -> (f64, f64) {
        let (mut client, key, signer) = (self.clients[0].clone(), self.small, self.signer.clone());
        let asking = tokio::spawn(async move {
            let (began, mut times) = (Instant::now(), Vec::new());
            while began.elapsed() < time {
                let asked = Instant::now();
                hit(&mut client, &key, SMALL, signer.as_deref()).await;
                times.push(asked.elapsed().as_secs_f64() * 1e6);
            }
            times
        });
        let mut times = asking.await.unwrap();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 99 / 100])
    }
}

/// The key with which a node signs.
async fn signer(client: &mut Client, node: u64) -> VerifyingKey {
    let signers = client.signers(pb::SignersRequest {}).await.unwrap().into_inner().signers;
    let of = signers.iter().rfind(|signer| signer.node == node).unwrap();
    VerifyingKey::from_bytes(&of.key[..].try_into().unwrap()).unwrap()
}

/// One hit, of so many bytes; with `signer`, its signature and its digest are checked.
async fn hit(client: &mut Client, key: &ArtifactKey, size: usize, signer: Option<&VerifyingKey>) {
    let (mut came, mut hasher) = (0, signer.map(|_| Hasher::new()));
    let header = fetch(client, key, |piece| {
        came += piece.len();
        if let Some(hasher) = &mut hasher {
            hasher.update(piece);
        }
    });
    let header = header.await.unwrap();
    assert_eq!(came, size);
    assert_eq!(header.tier(), pb::Tier::Memory);
    if let (Some(signer), Some(hasher)) = (signer, hasher) {
        let signed = SignedManifest::from(header.manifest.unwrap());
        let manifest = signed.verify(signer, key).unwrap();
        assert_eq!(manifest.pack_digest.as_bytes(), hasher.finalize().as_bytes());
    }
}
