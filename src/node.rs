//! The composition root: everything that exists in a node, in the order in
//! which it is built, and torn down in reverse.
//!
//! Invariant: the ready line is told only when every port listens and this
//! node is a member; a node that stops leaves no child, socket or lock behind.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use kiln_cluster::{Cluster, ClusterError, IndexEvent, NodeFacts};
use kiln_proto::{ArtifactKey, Digest, SignedManifest, pb, pb::kiln_server::KilnServer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{Blob, Change, TierError, Tiers},
    compiler::Compilers,
    config::Config,
    error::Error,
    identity::{self, IdentityError},
    manager::{Fetcher, Manager, Reporter},
    service::{self, api, http},
    transfer::{self, PeerClient, Provider, Refusal},
    warmup,
};

/// How long a stopping node waits for calls in progress.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A port or folder is not to be had.
    #[error("{doing}: {source}")]
    Io {
        /// The action.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another process uses the data folder: stop it, or choose another folder.
    #[error("the data folder {0} is in use by another process")]
    Locked(PathBuf),
    /// No usable signing key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// L1, L2 or L3 cannot be opened.
    #[error("open the cache tiers: {0}")]
    Tier(#[from] TierError),
    /// The index cannot be opened or joined.
    #[error("open the index: {0}")]
    Cluster(#[from] ClusterError),
    /// Two nodes in one process share one metrics recorder, which cannot be.
    #[error("install the metrics recorder: {0}")]
    Metrics(String),
    /// The configuration cannot be.
    #[error("configuration: {0}")]
    Config(String),
}

/// Where a ready node listens.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ReadyInfo {
    /// Minted by the cluster.
    pub id: u64,
    /// `host:port` of the gRPC API.
    pub grpc: String,
    /// `host:port` of `/metrics`, `/healthz`, `/readyz`.
    pub http: String,
    /// `host:port` of the peers' byte path.
    pub transfer: String,
    /// The unix socket for clients of this machine.
    pub socket: Option<PathBuf>,
}

/// A running node.
pub struct Node {
    ready: ReadyInfo,
    cluster: Arc<Cluster>,
    manager: Arc<Manager>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Held while the node runs: one process a data folder.
    _lock: std::fs::File,
}

impl Node {
    /// Builds and joins everything; returns when the node is ready.
    pub async fn start(config: Config, metrics: PrometheusHandle) -> Result<Self, NodeError> {
        let io = |doing: String| move |source| NodeError::Io { doing, source };
        let data = config.data_dir.clone();
        std::fs::create_dir_all(&data).map_err(io(format!("make {}", data.display())))?;
        let lock = lock(&data)?;
        let signing = identity::load_or_create(&data)?;

        // Ports first: a port that is taken should fail before anything is opened.
        let bind = async |address: std::net::SocketAddr| {
            TcpListener::bind(address).await.map_err(io(format!("listen on {address}")))
        };
        let grpc = bind(config.grpc_listen).await?;
        let http_port = bind(config.http_listen).await?;
        let transfer_port = bind(config.transfer_listen).await?;
        let advertised = |listener: &TcpListener| -> Result<String, NodeError> {
            let local = listener.local_addr().map_err(io("read a listener's address".into()))?;
            Ok(match &config.advertise {
                Some(host) => format!("{host}:{}", local.port()),
                None => local.to_string(),
            })
        };
        let facts_of = |compilers: &Compilers| -> Result<NodeFacts, NodeError> {
            Ok(NodeFacts {
                grpc: advertised(&grpc)?,
                transfer: advertised(&transfer_port)?,
                http: advertised(&http_port)?,
                compilers: compilers.fingerprints(),
                version: env!("CARGO_PKG_VERSION").into(),
            })
        };

        let stop = CancellationToken::new();
        let tiers = config.open_tiers().await?;
        let compilers = config.open_compilers().await?;
        let facts = facts_of(&compilers)?;
        let (cluster, routes) = Cluster::open(config.cluster_settings(facts.clone()), signing)?;
        let cluster = Arc::new(cluster);

        let api = api::Api::default();
        let mut tasks = JoinSet::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_not_serving::<KilnServer<api::Api>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| NodeError::Config(format!("reflection: {e}")))?;
        let kiln = KilnServer::new(api.clone())
            .max_decoding_message_size(service::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(service::MAX_MESSAGE_BYTES);
        let routes =
            routes.add_service(kiln).add_service(health_service).add_service(reflection);
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .tcp_nodelay(true)
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(grpc),
                stop.clone().cancelled_owned(),
            );
        tasks.spawn(async move {
            if let Err(e) = server.await {
                tracing::error!(error = %e, "the gRPC port failed");
            }
        });
        let page = http::Http { cluster: cluster.clone(), metrics };
        let serving = http::serve(http_port, page, stop.clone());
        tasks.spawn(async move {
            if let Err(e) = serving.await {
                tracing::error!(error = %e, "the HTTP port failed");
            }
        });

        let identity = cluster.start().await?;
        let (node, index) = (identity.node, cluster.index());
        let reporter = Reporter::default();
        let fetcher = Fetcher {
            node,
            index: index.clone(),
            tiers: tiers.clone(),
            peers: PeerClient::default(),
        };
        let settings = config.manager_settings();
        let manager = Arc::new(Manager::new(
            settings,
            identity,
            fetcher,
            compilers,
            reporter.clone(),
            stop.clone(),
        ));
        let provider: Arc<dyn Provider> =
            Arc::new(NodeBytes { tiers: tiers.clone(), manager: manager.clone() });
        tasks.spawn(transfer::serve_peers(
            transfer_port,
            provider.clone(),
            Default::default(),
            stop.clone(),
        ));
        if let Some(path) = &config.socket {
            let listener = transfer::bind_socket(path)
                .map_err(io(format!("listen on {}", path.display())))?;
            tasks.spawn(transfer::serve_socket(
                listener,
                provider,
                Default::default(),
                stop.clone(),
            ));
        }
        tasks.spawn(reporter.clone().run(index.clone(), stop.clone()));
        tasks.spawn(follow_index(index.clone(), tiers.clone(), stop.clone()));
        let warm = (manager.clone(), index.clone(), stop.clone());
        let budget = config.memory.bytes.as_u64() / 2;
        tasks.spawn(async move { warmup::warm_up(&warm.0, warm.1, budget, warm.2).await });

        api.open(api::Parts {
            node,
            manager: manager.clone(),
            index,
            cluster: cluster.clone(),
            tiers,
            default_deadline: config.compile.default_deadline,
        });
        health.set_serving::<KilnServer<api::Api>>().await;
        let ready = ReadyInfo {
            id: node,
            grpc: facts.grpc,
            http: facts.http,
            transfer: facts.transfer,
            socket: config.socket.clone(),
        };
        tracing::info!(node, grpc = %ready.grpc, "ready");
        Ok(Self { ready, cluster, manager, stop, tasks, _lock: lock })
    }

    /// Where it listens.
    pub fn ready(&self) -> &ReadyInfo {
        &self.ready
    }

    /// Serves until `stop`, then ends calls, children and the cluster's part.
    pub async fn run_until(mut self, stop: CancellationToken) {
        stop.cancelled().await;
        tracing::info!(flights = self.manager.in_flight(), "stopping");
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, async {
            while self.tasks.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!("calls in progress were cut off");
            self.tasks.shutdown().await;
        }
        self.cluster.shutdown().await;
    }
}

/// Takes the data folder for this process.
fn lock(data: &std::path::Path) -> Result<std::fs::File, NodeError> {
    let path = data.join("LOCK");
    let doing = || format!("lock {}", path.display());
    let file = std::fs::File::create(&path)
        .map_err(|source| NodeError::Io { doing: doing(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::Locked(data.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(NodeError::Io { doing: doing(), source }),
    }
}

/// Makes the recorder behind `/metrics`; once a process.
pub fn install_metrics() -> Result<PrometheusHandle, NodeError> {
    PrometheusBuilder::new().install_recorder().map_err(|e| NodeError::Metrics(e.to_string()))
}

/// The node as its byte paths see it.
struct NodeBytes {
    tiers: Tiers,
    manager: Arc<Manager>,
    namespace: String,
}

#[tonic::async_trait]
impl Provider for NodeBytes {
    async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Refusal> {
        match self.tiers.get_local(digest).await {
            Ok(found) => Ok(found.map(|(blob, _)| blob)),
            // A bad copy is none: the peer asks the next holder.
            Err(TierError::Corrupt { .. }) => Ok(None),
            Err(e) => Err(Refusal::Failed(e.to_string())),
        }
    }

    async fn artifact(
        &self,
        key: &ArtifactKey,
    ) -> Result<(SignedManifest, Blob, pb::Tier), Refusal> {
        match self.manager.load(key, &self.namespace).await {
            Ok(found) => {
                let origin = found.origin.unwrap_or_default();
                Ok((SignedManifest::clone(&found.signed), found.pack, origin))
            }
            Err(Error::NotFound(_)) => Err(Refusal::NotFound),
            Err(Error::Invalid(why)) => Err(Refusal::BadRequest(why)),
            Err(e) => Err(Refusal::Failed(e.to_string())),
        }
    }
}

/// Does locally what the index decided for the fleet.
async fn follow_index(
    mut events: broadcast::Receiver<IndexEvent>,
    tiers: Tiers,
    stop: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            Ok(IndexEvent::Tombstoned { pack, .. }) => {
                if let Err(e) = tiers.remove(&pack).await {
                    tracing::warn!(%pack, error = %e, "a tombstoned pack stays on this disk");
                }
            }
            Ok(_) => {}
            // What was missed is only clean-up: lookups never see a tombstoned entry.
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "index events were missed");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
