//! The composition root: everything that exists in a node, in the order in
//! which it is built, and torn down in reverse.
//!
//! Invariant: the ready line is printed only when every port listens and this node
//! has its id in a cluster (one that left has it too, and refuses: see `service`); a
//! node that stops leaves no child, socket or lock behind.

mod bytes;
mod contact;
mod descriptors;
mod error;
mod follow;
mod format;
mod joined;
mod leftovers;
mod listeners;
mod local;
mod lock;
mod members;
mod object_store;
mod parts;
mod pins;
mod security;
mod services;
mod standing;
mod storage;
mod unnamed;
mod uploads;

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use kiln_cluster::Cluster;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::{error::NodeError, parts::object_settings};
use self::{listeners::Listeners, security::Security, services::Services, storage::Storage};
use crate::{
    access::Access,
    audit::Audit,
    config::Config,
    identity,
    manager::Manager,
    net::tls::Acceptor,
    service::{Meters, Readiness, dashboard::Page, http},
    telemetry::Recorder,
    transfer::SocketFile,
};

/// How long a stopping node waits for calls in progress.
const DRAIN: Duration = Duration::from_secs(10);

/// Where a ready node listens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReadyInfo {
    /// Minted by the cluster.
    pub id: u64,
    /// `host:port` of the gRPC API.
    pub grpc: String,
    /// `host:port` of `/metrics`, `/healthz`, `/readyz`.
    pub http: String,
    /// `host:port` of the members' port: Raft, membership, bytes.
    pub transfer: String,
    /// The unix socket for clients of this machine.
    pub socket: Option<PathBuf>,
    /// `host:port` for Redis clients.
    pub resp: Option<String>,
    /// The unix socket for Redis clients of this machine.
    pub resp_socket: Option<PathBuf>,
    /// The compilers that it has when it is ready; some take longer to be looked at.
    #[serde(default)]
    pub compilers: Vec<String>,
    /// Those that it does not have then, and why.
    #[serde(default)]
    pub missing: Vec<MissingCompiler>,
}

/// A compiler that a node does not have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MissingCompiler {
    /// Its name, as `--backend` takes it.
    pub compiler: String,
    /// What is not there, for people.
    pub why: String,
    /// Its library was found and is being loaded: it may be had in a moment.
    pub loading: bool,
}

/// A running node.
pub struct Node {
    ready: ReadyInfo,
    cluster: Arc<Cluster>,
    manager: Arc<Manager>,
    tasks: Tasks,
    /// Removed with the node.
    _sockets: Vec<SocketFile>,
    /// Held while the node runs: one process a data folder.
    _lock: File,
}

/// What runs until the node stops.
struct Tasks {
    stop: CancellationToken,
    set: JoinSet<()>,
}

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(task);
    }
}

impl Node {
    /// Listens, opens its storage and starts its services; returns when it is ready.
    pub async fn start(config: Config, metrics: Recorder) -> Result<Self, NodeError> {
        let (config, descriptors) = descriptors::fit(config);
        let data = &config.data_dir;
        std::fs::create_dir_all(data).map_err(|source| NodeError::Io {
            doing: format!("make {}", data.display()),
            source,
        })?;
        let lock = lock::lock(data)?;
        format::check(data)?;
        format::check_tier(&config.disk_path())?;
        leftovers::remove(data).map_err(|source| NodeError::Io {
            doing: format!("remove unfinished files from {}", data.display()),
            source,
        })?;
        let signing = identity::load_or_create(data)?;
        let mut tasks = Tasks { stop: CancellationToken::new(), set: JoinSet::new() };

        let security = Security::open(&config)?;
        let (listeners, http) = Listeners::bind(&config).await?;
        security.follow(&mut tasks);
        let accepted = security.http.clone();
        let audit = open_audit(&config, &mut tasks)?;
        let access = Arc::new(Access::new(config.access.settings(), audit));
        let page = serve_http(http, descriptors.http, accepted, metrics, access, &mut tasks);
        let (facts, dialer) = (listeners.facts.clone(), security.dialer.clone());
        let blobs = descriptors.blobs;
        let storage = Storage::open(&config, blobs, signing, facts, dialer, &page.access).await?;
        let (cluster, readiness) = (storage.cluster.clone(), &page.readiness);
        readiness.has_storage(cluster.clone());
        let services =
            Services::start(&config, descriptors, listeners, security, storage, &page, &mut tasks)
                .await?;

        let Services { ready, manager, sockets } = services;
        tracing::info!(node = ready.id, grpc = %ready.grpc, "ready");
        Ok(Self { ready, cluster, manager, tasks, _sockets: sockets, _lock: lock })
    }

    /// Where it listens.
    pub fn ready(&self) -> &ReadyInfo {
        &self.ready
    }

    /// Serves until `stop`, or until the index's storage fails: that error is
    /// returned. Ends calls, children and the cluster's part either way.
    pub async fn run_until(mut self, stop: CancellationToken) -> Result<(), NodeError> {
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            // A node that cannot write its log must not answer as if it could.
            e = self.cluster.failed() => Err(NodeError::Broken(e)),
        };
        tracing::info!(flights = self.manager.in_flight(), "stopping");
        self.tasks.stop.cancel();
        // First: Raft's own streams would hold up the drain below.
        self.cluster.shutdown().await;
        let running = &mut self.tasks.set;
        let drained = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("calls in progress were cut off");
            running.shutdown().await;
        }
        ended
    }
}

/// The audit log, written on a thread of its own until the node stops.
fn open_audit(config: &Config, tasks: &mut Tasks) -> Result<Audit, NodeError> {
    let Some(settings) = config.audit_settings() else { return Ok(Audit::off()) };
    let doing = format!("open the audit log in {}", settings.folder.display());
    let opened = Audit::open(settings, &tasks.stop);
    let (audit, writing) = opened.map_err(|source| NodeError::Io { doing, source })?;
    tasks.set.spawn_blocking(writing);
    Ok(audit)
}

/// Whether this process lives is answered before its storage is open.
fn serve_http(
    listener: TcpListener,
    connections: usize,
    acceptor: Acceptor,
    metrics: Recorder,
    access: Arc<Access>,
    tasks: &mut Tasks,
) -> http::Http {
    tasks.spawn(metrics.clone().keep_up(tasks.stop.clone()));
    let (readiness, metrics) = (Readiness::default(), Meters::new(metrics));
    let page = http::Http { readiness, metrics, page: Page::default(), access };
    let serving = http::serve(listener, connections, acceptor, page.clone(), tasks.stop.clone());
    tasks.spawn(async move {
        if let Err(e) = serving.await {
            tracing::error!(error = %e, "the HTTP port failed");
        }
    });
    page
}

/// Makes the recorder behind `/metrics`; once a process.
pub fn install_metrics() -> Result<Recorder, NodeError> {
    Recorder::install().map_err(|e| NodeError::Metrics(e.to_string()))
}

#[cfg(test)]
mod tests;
