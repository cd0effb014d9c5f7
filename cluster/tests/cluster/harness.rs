//! Members on loopback, started and stopped as a test likes.
//!
//! Nothing here sleeps for a fixed time: every wait is for a state, and fails
//! loudly after [`PATIENCE`].

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use kiln_cluster::{
    Acquired, Cluster, ClusterError, Index, Joining, LOG_ENTRIES, Lease, NodeFacts, Published,
    Settings, Start, Timings,
};
use kiln_proto::{
    ArtifactKey, Component, Components, Digest, FileEntry, Fingerprint, KeyField, Manifest, NodeId,
    NodeIdentity, SignedManifest, Target, claimed_components,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Quick, and safe on a loaded machine with two cores.
pub fn timings() -> Timings {
    Timings {
        heartbeat: Duration::from_millis(150),
        election_min: Duration::from_millis(600),
        election_max: Duration::from_millis(1200),
        lease_ttl: Duration::from_secs(3),
        failure_ttl: Duration::from_secs(60),
        resource_failure_ttl: Duration::from_secs(1),
        dead_after: Duration::from_secs(4),
        patience: Duration::from_secs(6),
    }
}

/// One running member and its server.
pub struct Node {
    pub cluster: Cluster,
    pub index: Index,
    pub identity: NodeIdentity,
    pub address: SocketAddr,
    pub dir: PathBuf,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Node {
    pub fn id(&self) -> NodeId {
        self.identity.node
    }

    /// Stops the member and its server.
    pub async fn stop(self) {
        self.cluster.shutdown().await;
        self.stop.cancel();
        self.server.await.unwrap();
    }
}

/// A bound port and what a member on it is started with.
pub struct Seat {
    pub listener: TcpListener,
    pub address: SocketAddr,
    pub dir: PathBuf,
    /// Whether the member may vote.
    pub voter: bool,
    pub timings: Timings,
    /// What the member's program calls itself; empty: no version, which counts as the newest.
    pub version: &'static str,
    pub joining: Joining,
}

impl Seat {
    pub async fn new(dir: &Path) -> Self {
        Self::at(dir, "127.0.0.1:0".parse().unwrap()).await
    }

    /// A seat at a known port: one that a stopped node had.
    pub async fn at(dir: &Path, address: SocketAddr) -> Self {
        let listener =
            wait_for("a free port", async || TcpListener::bind(address).await.ok()).await;
        let address = listener.local_addr().unwrap();
        let (dir, voter, timings) = (dir.to_owned(), true, timings());
        let joining = Joining::default();
        Self { listener, address, dir, voter, timings, version: "", joining }
    }

    /// Opens and serves a member without starting it.
    pub fn open(self, start: Start) -> Opened {
        self.try_open(start).unwrap()
    }

    /// The same, where it may be refused.
    pub fn try_open(self, start: Start) -> Result<Opened, ClusterError> {
        let (grpc, version) = (self.address.to_string(), self.version.to_owned());
        let facts = NodeFacts { grpc, version, ..NodeFacts::default() };
        let data_dir = self.dir.clone();
        let (timings, voter, log_entries) = (self.timings, self.voter, LOG_ENTRIES);
        let (context, dial, joining) = (|| None, None, self.joining);
        let settings = Settings {
            data_dir,
            start,
            facts,
            timings,
            voter,
            log_entries,
            context,
            dial,
            joining,
        };
        let (cluster, routes) = Cluster::open(settings, signing_key(&self.dir))?;
        let stop = CancellationToken::new();
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .unwrap();
        });
        Ok(Opened { cluster, address: self.address, dir: self.dir, stop, server })
    }

    pub async fn start(self, start: Start) -> Result<Node, ClusterError> {
        self.open(start).start().await
    }
}

/// A member that is served and not started.
pub struct Opened {
    pub cluster: Cluster,
    pub address: SocketAddr,
    dir: PathBuf,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Opened {
    pub async fn start(self) -> Result<Node, ClusterError> {
        let identity = tokio::time::timeout(PATIENCE, self.cluster.start()).await.unwrap()?;
        let Self { cluster, address, dir, stop, server } = self;
        Ok(Node { index: cluster.index(), cluster, identity, address, dir, stop, server })
    }
}

/// One key a data folder, kept beside it.
fn signing_key(dir: &Path) -> SigningKey {
    let path = dir.join("signing-key");
    if let Ok(bytes) = std::fs::read(&path) {
        return SigningKey::from_bytes(&bytes.try_into().unwrap());
    }
    let seed = *Digest::of(format!("{}{:?}", dir.display(), std::time::Instant::now()).as_bytes())
        .as_bytes();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(&path, seed).unwrap();
    SigningKey::from_bytes(&seed)
}

/// Members in one temporary folder.
pub struct TestCluster {
    pub nodes: Vec<Node>,
    pub temp: TempDir,
}

impl TestCluster {
    /// Founds a cluster of `size` voters.
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, &timings()).await
    }

    /// The same with other timings.
    pub async fn start_with(size: usize, timings: &Timings) -> Self {
        trace();
        let temp = tempfile::tempdir().unwrap();
        let mut seats = Vec::new();
        for n in 0..size {
            let seat = Seat::new(&temp.path().join(format!("node-{n}"))).await;
            seats.push(Seat { timings: timings.clone(), ..seat });
        }
        let peers: Vec<String> = seats.iter().map(|s| s.address.to_string()).collect();
        let starting = seats.into_iter().map(|seat| {
            let start = Start::Expect { voters: size, peers: peers.clone() };
            seat.start(start)
        });
        let nodes = futures::future::try_join_all(starting).await.unwrap();
        Self { nodes, temp }
    }

    /// Waits until one of the nodes leads with a quorum, and tells which.
    pub async fn wait_leader(&self) -> usize {
        wait_for("a leader", async || {
            self.nodes.iter().position(|n| {
                let status = n.cluster.status();
                status.role == kiln_cluster::Role::Leader && status.quorum
            })
        })
        .await
    }

    pub async fn stop(self) {
        futures::future::join_all(self.nodes.into_iter().map(Node::stop)).await;
    }

    /// Waits until all nodes applied the same log, and compares their states.
    pub async fn states_are_equal(&self) {
        let states = wait_for("one applied index on all nodes", async || {
            let states: Vec<_> =
                self.nodes.iter().map(|n| n.cluster.state_digest().unwrap()).collect();
            states.iter().all(|(applied, _)| *applied == states[0].0).then_some(states)
        })
        .await;
        for (node, (applied, digest)) in self.nodes.iter().zip(&states) {
            assert_eq!(digest, &states[0].1, "node {} differs at {applied}", node.id());
        }
    }
}

/// Waits until `found` finds something.
pub async fn wait_for<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A manifest of `pack` for the key that `name` makes, and that key.
pub fn manifest(name: &str, pack: &[u8]) -> (ArtifactKey, Manifest) {
    let graph = Component::new("graph", vec![KeyField::new("name", name)]);
    let (fingerprint, target) = (Fingerprint::new("cuda", [("nvrtc", "13.0")]), Target::cubin(90));
    let claims = claimed_components(&fingerprint, &target, "");
    let components = Components::new([graph].into_iter().chain(claims).collect());
    let size = pack.len() as u64;
    let file = FileEntry { path: "module.cubin".into(), offset: 0, size, digest: Digest::of(pack) };
    let manifest = Manifest {
        key: components.key(),
        namespace: String::new(),
        components,
        fingerprint,
        target,
        files: vec![file],
        pack_digest: Digest::of(pack),
        pack_size: size,
        producer: 0,
        compile_seconds: 1.5,
        created_unix_ms: 1,
        label: name.into(),
        pieces: Vec::new(),
        check: None,
    };
    (manifest.key, manifest)
}

impl Node {
    pub fn sign(&self, name: &str, pack: &[u8]) -> SignedManifest {
        self.identity.sign(manifest(name, pack).1).unwrap()
    }

    pub async fn acquire(&self, key: &ArtifactKey) -> Result<Acquired, ClusterError> {
        self.index.acquire(key, None, Instant::now() + PATIENCE, || {}).await
    }

    pub async fn granted(&self, key: &ArtifactKey) -> Lease {
        match self.acquire(key).await.unwrap() {
            Acquired::Granted(lease) => lease,
            other => panic!("not granted: {other:?}"),
        }
    }

    /// Compiles `name` to `pack`, so to speak.
    pub async fn publish(&self, name: &str, pack: &[u8]) -> Result<Published, ClusterError> {
        let (key, _) = manifest(name, pack);
        match self.acquire(&key).await? {
            Acquired::Granted(lease) => {
                self.index.publish(&lease, self.sign(name, pack), Vec::new()).await
            }
            Acquired::Ready(entry) => Ok(Published::Existing(entry)),
            Acquired::Failed(failure) => panic!("failed: {failure}"),
        }
    }

    /// Waits until this node's replica has `key`.
    pub async fn has(&self, key: &ArtifactKey) -> kiln_cluster::Entry {
        let what = format!("{} on node {}", key.short(), self.id());
        wait_for(&what, async || self.index.lookup(key).await.unwrap()).await
    }
}

/// `RUST_LOG` shows what the members do.
pub fn trace() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
    drop(subscriber.try_init());
}
