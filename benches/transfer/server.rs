//! The node's servers in a process of their own: this binary again.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use kiln::{
    access::Shown,
    artifact,
    cache::{Blob, BlobWriter},
    transfer::{
        PeerAddress, Provider, Refusal, ServerSettings, bind_socket, serve_peers, serve_socket,
    },
};
use kiln_proto::{
    ArtifactKey, Component, Components, Digest, Fingerprint, Hasher, KeyField, Manifest, NodeId,
    NodeIdentity, SignedManifest, Target, claimed_components, pb,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The argument that makes this binary a server.
pub(crate) const FLAG: &str = "--serve";

/// A running server; it ends when this is dropped.
pub(crate) struct Node {
    process: Child,
    pub(crate) address: String,
    pub(crate) socket: PathBuf,
}

impl Node {
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(FLAG).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("start a server")?;
        let mut address = String::new();
        let output = process.stdout.take().context("the server's output")?;
        BufReader::new(output).read_line(&mut address)?;
        Ok(Self { process, address: address.trim().into(), socket: socket_in(dir) })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its input ends, and so does the server.
        drop(self.process.stdin.take());
        if let Err(error) = self.process.wait() {
            eprintln!("wait for the server: {error}");
        }
    }
}

fn socket_in(dir: &Path) -> PathBuf {
    dir.join("kiln.sock")
}

/// The blob of `size` bytes that everybody serves.
pub(crate) fn blob(size: usize) -> Blob {
    let mut bytes = vec![0; size];
    Hasher::new().finalize_xof().fill(&mut bytes);
    Blob::copy_of(&bytes).expect("memory for a blob")
}

/// Serves until the standard input ends.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let shelf = Shelf(crate::SIZES.map(|(size, _)| entry(blob(size))).into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shelf: Arc<dyn Provider> = Arc::new(shelf);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        let (local, _file) = bind_socket(&socket_in(dir), 0o600)?;
        let stop = CancellationToken::new();
        let settings = ServerSettings::default();
        let peers =
            tokio::spawn(serve_peers(listener, shelf.clone(), settings.clone(), stop.clone()));
        let clients = tokio::spawn(serve_socket(local, shelf, settings, stop.clone()));
        tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await??;
        stop.cancel();
        peers.await?;
        Ok(clients.await?)
    })
}

/// Blobs, each with the manifest of an artifact of which it is the pack.
struct Shelf(HashMap<Digest, (Blob, SignedManifest)>);

fn entry(blob: Blob) -> (Digest, (Blob, SignedManifest)) {
    let half = blob.len() / 2;
    let files = [("kernels.cu", &blob[..half]), ("module.cubin", &blob[half..])];
    let files = files.map(|(path, bytes)| (path.into(), bytes.to_vec().into()));
    let (pack, files) = {
        let packing = artifact::Packing::new(files.into()).expect("files");
        let writer = BlobWriter::with_size(packing.size()).expect("memory");
        packing.write(writer).expect("a pack")
    };
    let fields = vec![KeyField::of_bytes("structure", &blob)];
    let (fingerprint, target) = (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
    let claims = claimed_components(&fingerprint, &target, "");
    let graph = Component::new("graph", fields);
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let manifest = Manifest {
        key: components.key(),
        namespace: String::new(),
        components,
        fingerprint,
        target,
        files,
        pack_digest: pack.digest(),
        pack_size: pack.size(),
        producer: 1,
        compile_seconds: 1.0,
        created_unix_ms: 1,
        label: "bench".into(),
        pieces: Vec::new(),
        check: None,
    };
    let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let manifest = NodeIdentity::new(1, key).sign(manifest).expect("a valid manifest");
    (blob.digest(), (blob, manifest))
}

#[async_trait]
impl Provider for Shelf {
    async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Refusal> {
        Ok(self.0.get(digest).map(|(blob, _)| blob.clone()))
    }

    /// The key of an artifact here is the digest of its pack.
    async fn may_read_all(&self, _asks: &Shown) -> Result<(), Refusal> {
        Ok(())
    }

    async fn artifact(
        &self,
        _asks: &Shown,
        key: &ArtifactKey,
        _namespace: &str,
        _look: bool,
    ) -> Result<(SignedManifest, Blob, pb::Tier), Refusal> {
        let found = self.0.get(&Digest::from_bytes(*key.as_bytes())).ok_or(Refusal::NotFound)?;
        Ok((found.1.clone(), found.0.clone(), pb::Tier::Memory))
    }

    fn node(&self) -> NodeId {
        1
    }

    async fn keep(&self, _: &Digest, _: u64, _: PeerAddress<'_>) -> Result<(), Refusal> {
        Err(Refusal::Failed("this server has no disk".into()))
    }
}
