//! How long until a wrong artifact is out of every node: nobody is given it, and its bytes are
//! in no node's memory or disk.
//!
//! `cargo bench --bench out` starts three nodes with an object store (a local folder) and makes
//! `ROUNDS` (20) rounds of each kind. Each round publishes an artifact of 64 KiB that all three
//! nodes then have.
//!
//! - removed: in memory and on disk everywhere; from the call of Tombstone at one node.
//! - rotten: on disk everywhere and in the object store, one bit of each copy flipped; from the
//!   fetch of one client, who finds it.
//!
//! Both end when on each of the nodes the index has no entry and the file is gone: all are asked
//! again and again, so that the questions are part of the time.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

#[path = "failover/nodes.rs"]
mod nodes;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kiln_proto::{ArtifactKey, Digest, pb, pb::publish_chunk::Chunk, value};
use prost::bytes::Bytes;
use tonic::Code;

use self::nodes::Nodes;

const NODES: usize = 3;
const BYTES: usize = 64 << 10;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Removed,
    Rotten,
}

/// Nodes, and where each keeps its files.
struct Fleet {
    nodes: Nodes,
    data: Vec<PathBuf>,
}

struct Artifact {
    key: ArtifactKey,
    pack: Digest,
}

#[tokio::main]
async fn main() {
    let rounds = std::env::var("ROUNDS").map_or(20, |text| text.parse().unwrap());
    println!("| an artifact that is | rounds | median ms | worst ms |");
    println!("|---|---|---|---|");
    for kind in [Kind::Removed, Kind::Rotten] {
        let fleet = Fleet::start(kind).await;
        let mut times = Vec::new();
        for round in 0..rounds {
            let artifact = spread(&fleet, kind, round).await;
            times.push(out(&fleet, kind, &artifact, round % NODES).await);
        }
        times.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (median, worst) = (ms(times[rounds / 2]), ms(times[rounds - 1]));
        println!("| {kind:?} | {rounds} | {median:.1} | {worst:.1} |");
    }
}

impl Fleet {
    async fn start(kind: Kind) -> Self {
        let data = RefCell::new(Vec::new());
        let nodes = Nodes::start(|folder, config| {
            let object = folder.join("object");
            std::fs::create_dir_all(&object).unwrap();
            config.object.url = Some(format!("file://{}", object.display()));
            if kind == Kind::Rotten {
                // What is in memory does not rot.
                config.memory.bytes = 1;
            }
            data.borrow_mut().push(config.data_dir.clone());
        })
        .await;
        nodes.settled().await;
        Self { nodes, data: data.into_inner() }
    }

    /// Where the disk tier of a node has a pack.
    fn pack(&self, i: usize, pack: &Digest) -> PathBuf {
        let (name, blobs) = (pack.to_string(), self.data[i].join("tier/blobs"));
        blobs.join(&name[..2]).join(&name[2..])
    }
}

/// An artifact that all nodes have, with bytes of its own.
async fn spread(fleet: &Fleet, kind: Kind, round: usize) -> Artifact {
    let mut bytes = vec![0; BYTES];
    let name = format!("{kind:?} {round}");
    kiln_proto::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    let pack = Digest::of(&bytes);
    let manifest = value::manifest("default", name.as_bytes(), pack, BYTES as u64, 0.0);
    let key = manifest.key;
    let header = pb::PublishHeader {
        manifest: Some((&manifest).into()),
        replace: true,
        ..Default::default()
    };
    let chunks = [Chunk::Header(header), Chunk::Data(bytes.into())];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    let answer =
        fleet.nodes.grpc(round % NODES).publish(futures::stream::iter(chunks)).await.unwrap();
    assert!(answer.into_inner().committed);
    for i in 0..NODES {
        until(async || entry(fleet, i, &key).await.is_some_and(|entry| entry.stored)).await;
        fetch(fleet, i, &key).await.unwrap();
        until(async || fleet.pack(i, &pack).exists()).await;
    }
    // Who is not known to have it is not asked for it.
    let known = |entry: pb::Entry| entry.holders.len() == NODES;
    for i in 0..NODES {
        until(async || entry(fleet, i, &key).await.is_some_and(known)).await;
    }
    Artifact { key, pack }
}

/// Makes it wrong, and tells the node; how long until no node has it.
async fn out(fleet: &Fleet, kind: Kind, artifact: &Artifact, told: usize) -> Duration {
    let Artifact { key, pack } = artifact;
    let began = match kind {
        Kind::Removed => {
            let request = pb::TombstoneRequest { key: wire(key), reason: "a bench".into() };
            let began = Instant::now();
            assert!(fleet.nodes.grpc(told).tombstone(request).await.unwrap().into_inner().existed);
            began
        }
        Kind::Rotten => {
            for file in (0..NODES).map(|i| fleet.pack(i, pack)).chain(object(fleet, pack)) {
                let mut bytes = std::fs::read(&file).unwrap();
                bytes[BYTES / 2] ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
            let began = Instant::now();
            assert_eq!(fetch(fleet, told, key).await.unwrap_err().code(), Code::NotFound);
            began
        }
    };
    let gone = (0..NODES).map(async |i| {
        until(async || entry(fleet, i, key).await.is_none() && !fleet.pack(i, pack).exists()).await;
    });
    futures::future::join_all(gone).await;
    let took = began.elapsed();
    for i in 0..NODES {
        assert_eq!(fetch(fleet, i, key).await.unwrap_err().code(), Code::NotFound);
    }
    took
}

fn wire(key: &ArtifactKey) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

async fn entry(fleet: &Fleet, i: usize, key: &ArtifactKey) -> Option<pb::Entry> {
    let request =
        pb::LookupRequest { key: wire(key), namespace: "default".into(), linearizable: false };
    fleet.nodes.grpc(i).lookup(request).await.unwrap().into_inner().entry
}

/// Reads all of it.
async fn fetch(fleet: &Fleet, i: usize, key: &ArtifactKey) -> Result<(), tonic::Status> {
    let request =
        pb::FetchRequest { key: wire(key), namespace: "default".into(), ..Default::default() };
    let mut chunks = fleet.nodes.grpc(i).fetch(request).await?.into_inner();
    while chunks.message().await?.is_some() {}
    Ok(())
}

/// The objects of a pack, whatever their generation.
fn object(fleet: &Fleet, pack: &Digest) -> Vec<PathBuf> {
    fn walk(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                walk(&path, name, found);
            } else if path.file_name().unwrap().to_string_lossy().contains(name) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&fleet.data[0].with_file_name("object"), &pack.to_string(), &mut found);
    assert!(!found.is_empty(), "it is stored");
    found
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
