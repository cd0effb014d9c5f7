//! The composition root: everything that exists in a node, in the order in
//! which it is built, and torn down in reverse.
//!
//! Invariant: the ready line is told only when every port listens and this
//! node is a member; a node that stops leaves no child, socket or lock behind.

mod bytes;
mod error;
mod follow;
mod lock;
mod object_store;
mod parts;

use std::{fs::File, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use kiln_cluster::{Cluster, NodeFacts};
use kiln_proto::{MAX_MESSAGE_BYTES, pb, pb::kiln_server::KilnServer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

pub use self::error::NodeError;
use crate::{
    cache::CollectSettings,
    config::Config,
    identity,
    manager::{self, Fetcher, Manager, Reporter},
    resp,
    service::{self, api, http},
    transfer::{self, ClientSettings, PeerClient, Provider, ServerSettings, SocketFile},
    warmup,
};

/// The unix socket is for the user that runs the node, and nobody else, unless told.
const SOCKET_MODE: u32 = 0o600;
/// How long a starting node waits to know its toolchain: usually that is enough to
/// tell the cluster once, and right. Else it goes on, and tells when it knows.
const LOOK: Duration = Duration::from_secs(5);
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
    /// `host:port` of the peers' byte path.
    pub transfer: String,
    /// The unix socket for clients of this machine.
    pub socket: Option<PathBuf>,
    /// `host:port` for Redis clients.
    pub resp: Option<String>,
    /// The unix socket for Redis clients of this machine.
    pub resp_socket: Option<PathBuf>,
}

/// A running node.
pub struct Node {
    ready: ReadyInfo,
    cluster: Arc<Cluster>,
    manager: Arc<Manager>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Removed with the node.
    _sockets: Vec<SocketFile>,
    /// Held while the node runs: one process a data folder.
    _lock: File,
}

impl Node {
    /// Builds and joins everything; returns when the node is ready.
    pub async fn start(config: Config, metrics: PrometheusHandle) -> Result<Self, NodeError> {
        let io = |doing: String| move |source| NodeError::Io { doing, source };
        let data = config.data_dir.clone();
        std::fs::create_dir_all(&data).map_err(io(format!("make {}", data.display())))?;
        let lock = lock::lock(&data)?;
        let signing = identity::load_or_create(&data)?;

        // Ports first: a port that is taken should fail before anything is opened.
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.map_err(io(format!("listen on {address}")))
        };
        let grpc = bind(config.grpc_listen).await?;
        let http_port = bind(config.http_listen).await?;
        let transfer_port = bind(config.transfer_listen).await?;
        let resp_port = match config.resp_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let advertised = |listener: &TcpListener| -> Result<String, NodeError> {
            let bound = listener.local_addr().map_err(io("read a listener's address".into()))?;
            Ok(config.advertised(bound))
        };
        let facts = NodeFacts {
            grpc: advertised(&grpc)?,
            transfer: advertised(&transfer_port)?,
            http: advertised(&http_port)?,
            version: crate::VERSION.into(),
            compilers: Vec::new(),
        };

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        // Who asks whether this process lives has an answer before all that takes its time.
        let page = http::Http { cluster: Arc::default(), metrics };
        let serving = http::serve(http_port, page.clone(), stop.clone());
        tasks.spawn(async move {
            if let Err(e) = serving.await {
                tracing::error!(error = %e, "the HTTP port failed");
            }
        });
        let compilers = parts::compilers(&config)?;
        let looked = tokio::time::timeout(LOOK, compilers.settled());
        let (tiers, looked) = tokio::join!(parts::tiers(&config), looked);
        let tiers = tiers?;
        if looked.is_err() {
            tracing::warn!("NVRTC is still being looked at: this node goes on without it");
        }
        let facts = NodeFacts { compilers: compilers.fingerprints(), ..facts };
        let settings = parts::cluster(&config, facts.clone());
        let opening = tokio::task::spawn_blocking(move || Cluster::open(settings, signing));
        let (cluster, routes) =
            opening.await.map_err(|e| io("open the index".into())(e.into()))??;
        let cluster = page.cluster.get_or_init(|| Arc::new(cluster)).clone();

        let api = api::Api::default();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_not_serving::<KilnServer<api::Api>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| NodeError::Reflection(e.to_string()))?;
        let kiln = KilnServer::new(api.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let routes = routes.add_service(kiln).add_service(health_service).add_service(reflection);
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

        let identity = cluster.start().await?;
        let (node, index) = (identity.node, cluster.index());
        let reporter = Reporter::default();
        let peers = Arc::new(PeerClient::new(ClientSettings::default()));
        let counters = Arc::<manager::Counters>::default();
        let fetcher =
            Fetcher::new(node, index.clone(), tiers.clone(), peers, Arc::clone(&counters));
        let fetcher = Arc::new(fetcher);
        let manager = Arc::new(Manager::new(manager::Parts {
            settings: parts::manager(&config),
            identity,
            index: index.clone(),
            tiers: tiers.clone(),
            fetcher: Arc::clone(&fetcher),
            compilers,
            reporter: reporter.clone(),
            counters,
            stop: stop.clone(),
        }));
        let provider: Arc<dyn Provider> = Arc::new(bytes::NodeBytes {
            node,
            tiers: tiers.clone(),
            fetcher,
            manager: manager.clone(),
            namespace: config.namespace.default.clone(),
        });
        tasks.spawn(transfer::serve_peers(
            transfer_port,
            provider.clone(),
            ServerSettings::default(),
            stop.clone(),
        ));
        let mut sockets = Vec::new();
        let mode = config.socket_permissions().unwrap_or(SOCKET_MODE);
        let mut bind_socket = |path: &PathBuf| {
            let (listener, file) = transfer::bind_socket(path, mode)
                .map_err(io(format!("listen on {}", path.display())))?;
            sockets.push(file);
            Ok::<_, NodeError>(listener)
        };
        if let Some(path) = &config.socket {
            let listener = bind_socket(path)?;
            let settings = ServerSettings::default();
            tasks.spawn(transfer::serve_socket(listener, provider, settings, stop.clone()));
        }
        let resp_counters = Arc::<resp::Counters>::default();
        let resp_parts = resp::Parts {
            index: index.clone(),
            cluster: cluster.clone(),
            manager: manager.clone(),
            tiers: tiers.clone(),
            reporter: reporter.clone(),
            counters: resp_counters.clone(),
        };
        let users = || format!("read the users in {:?}", config.resp.users);
        let resp = resp::Resp::new(resp_parts, parts::resp(&config)).map_err(io(users()))?;
        let resp = Arc::new(resp);
        let mut resp_address = None;
        if let Some(listener) = resp_port {
            resp_address = Some(
                parts::client_address(&config, &listener)
                    .map_err(io("read a listener's address".into()))?,
            );
            tasks.spawn(resp.clone().serve_tcp(listener, stop.clone()));
        }
        if let Some(path) = &config.resp_socket {
            tasks.spawn(resp.clone().serve_unix(bind_socket(path)?, stop.clone()));
        }
        if config.resp_listen.is_some() || config.resp_socket.is_some() {
            tasks.spawn(resp.follow(stop.clone()));
        }
        tasks.spawn(object_store::upload(tiers.clone(), index.clone(), stop.clone()));
        tasks.spawn(object_store::resume_uploads(tiers.clone(), index.clone(), stop.clone()));
        tasks.spawn(object_store::collect(
            tiers.clone(),
            cluster.clone(),
            CollectSettings::default(),
            stop.clone(),
        ));
        tasks.spawn(reporter.clone().run(index.clone(), stop.clone()));
        tasks.spawn(follow::index(index.clone(), tiers.clone(), stop.clone()));
        tasks.spawn(follow::tiers(tiers.clone(), reporter, stop.clone()));
        let own = facts.clone();
        tasks.spawn(follow::facts(cluster.clone(), node, own, manager.clone(), stop.clone()));
        let warm = (manager.clone(), index.clone(), stop.clone());
        let budget = config.memory.bytes / 2;
        tasks.spawn(async move { warmup::warm_up(&warm.0, warm.1, budget, warm.2).await });

        api.open(service::Parts {
            node,
            manager: manager.clone(),
            index,
            cluster: cluster.clone(),
            tiers,
            default_deadline: config.compile.default_deadline,
            default_namespace: config.namespace.default.clone(),
            counters: vec![manager.counters().clone(), resp_counters],
        });
        health.set_serving::<KilnServer<api::Api>>().await;
        let ready = ReadyInfo {
            id: node,
            grpc: facts.grpc,
            http: facts.http,
            transfer: facts.transfer,
            socket: config.socket.clone(),
            resp: resp_address,
            resp_socket: config.resp_socket.clone(),
        };
        tracing::info!(node, grpc = %ready.grpc, "ready");
        Ok(Self { ready, cluster, manager, stop, tasks, _sockets: sockets, _lock: lock })
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
        self.stop.cancel();
        // First: Raft's own streams would hold up the drain below.
        self.cluster.shutdown().await;
        let drained =
            tokio::time::timeout(DRAIN, async { while self.tasks.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!("calls in progress were cut off");
            self.tasks.shutdown().await;
        }
        ended
    }
}

/// Makes the recorder behind `/metrics`; once a process.
pub fn install_metrics() -> Result<PrometheusHandle, NodeError> {
    PrometheusBuilder::new().install_recorder().map_err(|e| NodeError::Metrics(e.to_string()))
}
