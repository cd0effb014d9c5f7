//! What clients do meanwhile, and what they were promised.
//!
//! Invariant: a key has one writer, so the ledger knows after each call which values the
//! key may have: the acknowledged one alone, or also what calls without a clear end may
//! make of it, now or later. A put that a node gave up may cost the key its value: a
//! client that was told of a failure rather finds none than an old one.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kiln_proto::{
    ArtifactKey, Digest, MAX_MESSAGE_BYTES, Manifest, pb, pb::kiln_client::KilnClient, value,
};
use parking_lot::Mutex;
use pb::publish_chunk::Chunk;
use tokio::{sync::RwLock, time::timeout};
use tonic::{Status, transport::Channel};

use crate::harness::{NAMESPACE, bytes_of};

/// Writers, and the keys of each.
pub(crate) const WRITERS: usize = 3;
const KEYS: usize = 10;
/// Of these, those that are pinned now and then.
const PINNED: usize = 2;
/// Bytes of a value: a few dozen are more than the disk tier has.
const SIZE: usize = 128 << 10;
/// Bound on a call.
const CALL: Duration = Duration::from_secs(30);

/// A value as its number; 0: none.
type Version = u64;

/// Which values each key may have.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<BTreeMap<String, Vec<Version>>>);

/// What the clients did.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) ledger: Ledger,
    pub(crate) done: AtomicU64,
    versions: AtomicU64,
    /// Writers share it; whoever checks has it alone.
    pub(crate) turn: RwLock<()>,
}

impl Ledger {
    pub(crate) fn keys(&self) -> Vec<(String, Vec<Version>)> {
        self.0.lock().iter().map(|(name, may)| (name.clone(), may.clone())).collect()
    }

    fn may_also(&self, name: &str, version: Version) {
        self.0.lock().entry(name.into()).or_insert_with(|| vec![0]).push(version);
    }

    fn is(&self, name: &str, version: Version) {
        self.0.lock().insert(name.into(), vec![version]);
    }
}

pub(crate) fn bytes(name: &str, version: Version) -> Vec<u8> {
    format!("{name} {version} ").into_bytes().repeat(SIZE / 4)[..SIZE].to_vec()
}

pub(crate) fn manifest(name: &str, pack: &[u8]) -> Manifest {
    value::manifest(NAMESPACE, name.as_bytes(), Digest::of(pack), pack.len() as u64, 0.0)
}

pub(crate) fn key(name: &str) -> ArtifactKey {
    manifest(name, b"").key
}

pub(crate) fn client(at: SocketAddr) -> KilnClient<Channel> {
    let endpoint = Channel::from_shared(format!("http://{at}")).unwrap();
    let channel = endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy();
    KilnClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Load {
    /// One writer at the nodes `at`, for ever.
    pub(crate) async fn write(self: Arc<Self>, writer: usize, at: Vec<SocketAddr>) {
        for n in 0.. {
            let turn = self.turn.read().await;
            let name = format!("writer {writer} key {}", n % KEYS);
            let node = at[(n + writer) % at.len()];
            let ended = timeout(CALL, self.call(n, &name, node)).await;
            drop(turn);
            match ended {
                Ok(Ok(())) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
                // A node that is down answers at once: its clients do not ask in a circle.
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => eprintln!("a call took more than {CALL:?}"),
            }
        }
    }

    /// Writes what a leader without followers cannot commit, and waits until it is logged.
    pub(crate) async fn put_alone(&self, node: SocketAddr) {
        let version = self.versions.fetch_add(1, Ordering::Relaxed) + 1;
        let name = "alone";
        self.ledger.may_also(name, version);
        self.ledger.may_also(name, 0);
        let logged = Duration::from_millis(500);
        drop(timeout(logged, put(&mut client(node), name, version)).await);
    }

    async fn call(&self, n: usize, name: &str, node: SocketAddr) -> Result<(), Status> {
        let mut client = client(node);
        let key = bytes_of(&key(name));
        match n % 13 {
            3 => {
                self.ledger.may_also(name, 0);
                let reason = "a test".into();
                client.tombstone(pb::TombstoneRequest { key, reason }).await?;
                self.ledger.is(name, 0);
            }
            6 | 9 => {
                // Few, or pins would fill the small disks and push out what is nowhere else.
                let writer = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
                let key = bytes_of(&self::key(&format!("{writer}{}", n % PINNED)));
                // A key that has no value cannot be pinned: that is an answer as well.
                let pinned = client.pin(pb::PinRequest { key, pinned: n % 13 == 6 }).await;
                pinned.map(drop).or_else(|e| match e.code() {
                    tonic::Code::NotFound => Ok(()),
                    _ => Err(e),
                })?;
            }
            _ => {
                let version = self.versions.fetch_add(1, Ordering::Relaxed) + 1;
                self.ledger.may_also(name, version);
                self.ledger.may_also(name, 0);
                put(&mut client, name, version).await?;
                self.ledger.is(name, version);
            }
        }
        Ok(())
    }
}

pub(crate) async fn put(
    client: &mut KilnClient<Channel>,
    name: &str,
    version: Version,
) -> Result<(), Status> {
    let pack = bytes(name, version);
    let manifest = Some((&manifest(name, &pack)).into());
    let header = pb::PublishHeader { manifest, replace: true, ..Default::default() };
    let chunks = [Chunk::Header(header), Chunk::Data(pack.into())];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    client.publish(futures::stream::iter(chunks)).await.map(drop)
}
