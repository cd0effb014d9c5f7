//! Servers and clients against each other, over real sockets.

#![allow(clippy::unwrap_used)]

mod local;
mod peers;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use kiln_proto::{ArtifactKey, Digest, NodeId, SignedManifest, pb};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::access::Shown;
use crate::{
    cache::{Blob, BlobWriter},
    net::tls::Dialer,
};

/// A node that has some blobs, and for each blob an artifact whose key has the
/// same 32 bytes.
#[derive(Default)]
struct Shelf {
    blobs: HashMap<Digest, Blob>,
    /// Held requests wait for it when it is there.
    gate: Option<Notify>,
    asked: AtomicUsize,
    /// Copies that were asked for: digest, size, and from whom.
    kept: Mutex<Vec<(Digest, u64, NodeId)>>,
    /// The tenants whose artifacts were asked for.
    tenants: Mutex<Vec<String>>,
}

/// The id of every such node.
const SHELF: NodeId = 5;

fn anyone(address: &(impl AsRef<str> + ?Sized)) -> PeerAddress<'_> {
    PeerAddress { node: 0, address: address.as_ref() }
}

impl Shelf {
    fn of(blobs: &[&Blob]) -> Arc<Self> {
        let blobs = blobs.iter().map(|blob| (blob.digest(), (*blob).clone())).collect();
        Arc::new(Self { blobs, ..Self::default() })
    }
}

#[async_trait]
impl Provider for Shelf {
    async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        Ok(self.blobs.get(digest).cloned())
    }

    async fn may_read_all(&self, _asks: &Shown) -> Result<(), Refusal> {
        Ok(())
    }

    async fn artifact(
        &self,
        _asks: &Shown,
        key: &ArtifactKey,
        namespace: &str,
        _look: bool,
    ) -> Result<(SignedManifest, Blob, pb::Tier), Refusal> {
        self.tenants.lock().push(namespace.to_owned());
        let digest = Digest::from_bytes(*key.as_bytes());
        let blob = self.blob(&digest).await?.ok_or(Refusal::NotFound)?;
        let manifest = SignedManifest {
            bytes: key.as_bytes().repeat(1000),
            signer: 3,
            signature: vec![9; 64],
        };
        Ok((manifest, blob, pb::Tier::Disk))
    }

    fn node(&self) -> NodeId {
        SHELF
    }

    async fn keep(&self, digest: &Digest, size: u64, from: PeerAddress<'_>) -> Result<(), Refusal> {
        if from.node != 7 {
            return Err(Refusal::Failed("no such node".into()));
        }
        self.kept.lock().push((*digest, size, from.node));
        Ok(())
    }
}

/// Bytes without a pattern that a shifted copy would share.
fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    kiln_proto::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes
}

fn blob(size: usize) -> Blob {
    Blob::copy_of(&noise(size)).unwrap()
}

fn writer_for(blob: &Blob) -> BlobWriter {
    BlobWriter::with_size(blob.size()).unwrap()
}

/// A server of peers that runs until it is stopped.
struct Peer {
    address: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Peer {
    async fn start(provider: Arc<Shelf>, settings: ServerSettings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve_peers(listener, provider, settings, stop.clone()));
        Self { address, stop, task }
    }

    async fn of(blobs: &[&Blob]) -> Self {
        Self::start(Shelf::of(blobs), ServerSettings::default()).await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn client() -> PeerClient {
    PeerClient::new(ClientSettings::default(), Dialer::default())
}

/// Open descriptors of this process that name sockets or blobs.
fn descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| {
            let target = target.to_string_lossy();
            target.starts_with("socket:") || target.contains("kiln-blob")
        })
        .count()
}

/// Runs `test` in a process in which nothing else opens descriptors: this test
/// binary again, with only the test `name`.
fn alone<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    const ALONE: &str = "KILN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(test());
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
