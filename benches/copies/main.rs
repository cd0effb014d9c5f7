//! What an acknowledgement costs by what it promises: `publish.copies` of 1, 2 and 3
//! nodes, and of the object store (a local folder here, which is the least it can cost).
//!
//! `cargo bench --bench copies` runs a cluster of three for each setting, all at once,
//! and publishes values of their own bytes in turns, one at a time: `ROUNDS` (5) rounds
//! of `PUBLISHES` (40) for each size and setting. The table has the median of each
//! round's medians, the least and the most of them, and the ratio to one copy.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

#[path = "../failover/nodes.rs"]
mod nodes;

use std::time::{Duration, Instant};

use kiln::config::Copies;
use kiln_proto::{Digest, pb, pb::kiln_client::KilnClient, pb::publish_chunk::Chunk, value};
use tonic::transport::Channel;

use self::nodes::Nodes;

const SIZES: [usize; 3] = [4 << 10, 256 << 10, 4 << 20];

#[tokio::main]
async fn main() {
    let (rounds, publishes) = (count("ROUNDS", 5), count("PUBLISHES", 40));
    let settings = [
        ("1", Copies::default()),
        ("2", Copies::Nodes(2.try_into().unwrap())),
        ("3", Copies::Nodes(3.try_into().unwrap())),
        ("object", Copies::Object),
    ];
    let mut clusters = Vec::new();
    for (_, copies) in &settings {
        let nodes = Nodes::start(|folder, config| {
            let object = folder.join("object");
            std::fs::create_dir_all(&object).unwrap();
            config.object.url = Some(format!("file://{}", object.display()));
            config.publish.copies = *copies;
        })
        .await;
        nodes.settled().await;
        clusters.push(nodes);
    }
    println!("| bytes | copies | median ms | least | most | ratio |");
    println!("|---|---|---|---|---|---|");
    for size in SIZES {
        let mut medians = vec![Vec::new(); settings.len()];
        for round in 0..rounds {
            for (nodes, medians) in clusters.iter().zip(&mut medians) {
                let mut node = nodes.grpc(0);
                let mut times = Vec::new();
                for n in 0..publishes {
                    times.push(publish(&mut node, size, round * publishes + n).await);
                }
                medians.push(median(&mut times).as_secs_f64() * 1e3);
            }
        }
        let mut base = None;
        for ((name, _), medians) in settings.iter().zip(&mut medians) {
            medians.sort_by(f64::total_cmp);
            let (median, least, most) =
                (medians[medians.len() / 2], medians[0], medians[medians.len() - 1]);
            let ratio = median / *base.get_or_insert(median);
            println!("| {size} | {name} | {median:.2} | {least:.2} | {most:.2} | {ratio:.2} |");
        }
    }
}

fn count(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Publishes bytes that no other publication has.
async fn publish(node: &mut KilnClient<Channel>, size: usize, n: usize) -> Duration {
    let mut bytes = vec![0; size];
    let mut hasher = kiln_proto::Hasher::new();
    hasher.update(&n.to_le_bytes()).update(&size.to_le_bytes()).finalize_xof().fill(&mut bytes);
    let (digest, name) = (Digest::of(&bytes), format!("copies-{size}-{n}"));
    let manifest = value::manifest("default", name.as_bytes(), digest, size as u64, 0.0);
    let header = pb::PublishHeader {
        manifest: Some((&manifest).into()),
        replace: true,
        ..Default::default()
    };
    let data = prost::bytes::Bytes::from(bytes);
    let mut chunks = vec![Chunk::Header(header)];
    chunks.extend(
        (0..size)
            .step_by(256 << 10)
            .map(|at| Chunk::Data(data.slice(at..size.min(at + (256 << 10))))),
    );
    let chunks: Vec<_> =
        chunks.into_iter().map(|chunk| pb::PublishChunk { chunk: Some(chunk) }).collect();
    let began = Instant::now();
    let answer = node.publish(futures::stream::iter(chunks)).await.unwrap();
    assert!(answer.into_inner().committed);
    began.elapsed()
}
