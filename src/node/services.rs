//! The third step of a start: membership, and then everything that answers.
//!
//! Invariant: peers are answered before this node asks to be a member; clients are
//! answered (by more than "still joining") only once it is one.

use std::{io, path::Path, sync::Arc, time::Duration};

use futures::Stream;
use kiln_cluster::{Cluster, Index, NodeFacts};
use kiln_proto::{FailureKind, MAX_MESSAGE_BYTES, NodeId, pb, pb::kiln_server::KilnServer};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

use super::{
    MissingCompiler, NodeError, ReadyInfo, Tasks, bytes,
    contact::{self, Contact},
    descriptors::Descriptors,
    follow, joined,
    listeners::Listeners,
    local, members, object_store, parts,
    security::Security,
    standing::Standing,
    storage::Storage,
    unnamed, uploads,
};
use crate::{
    access::Access,
    cache::{Arrivals, Tiers},
    config::{Config, ConfigError, EvictionPolicy},
    counters::CounterSource,
    dashboard::{Dashboard, Sources},
    manager::{self, Fetcher, Manager, Puller, Reporter, Signing},
    monitor::{self, Controls, Monitor, Sampler},
    net::{
        self,
        tls::{Acceptor, Dialer},
    },
    prewarm::Prewarm,
    resp,
    service::{self, Readiness, api, http},
    transfer::{
        self, ClientSettings, PeerClient, PeerServer, Provider, ServerSettings, SocketFile,
        SocketServer,
    },
};

/// The unix socket is for the user that runs the node, and nobody else, unless configured.
const SOCKET_MODE: u32 = 0o600;
/// Between two questions whether a silent gRPC client is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// All that runs.
pub(super) struct Services {
    pub(super) ready: ReadyInfo,
    pub(super) manager: Arc<Manager>,
    /// Removed with the node.
    pub(super) sockets: Vec<SocketFile>,
}

/// What most services share.
struct Shared<'a> {
    config: &'a Config,
    access: Arc<Access>,
    cluster: Arc<Cluster>,
    dialer: Dialer,
    index: Index,
    tiers: Arc<Tiers>,
    fetcher: Arc<Fetcher>,
    manager: Arc<Manager>,
    reporter: Reporter,
    arrivals: Arrivals,
    sockets: Vec<SocketFile>,
}

impl Services {
    /// Joins or resumes membership and serves; returns when the node is ready.
    pub(super) async fn start(
        config: &Config,
        descriptors: Descriptors,
        listeners: Listeners,
        security: Security,
        storage: Storage,
        page: &http::Http,
        tasks: &mut Tasks,
    ) -> Result<Self, NodeError> {
        let readiness = &page.readiness;
        let Listeners { grpc, transfer, resp, resp_address, facts: _ } = listeners;
        let Storage { tiers, compilers, cluster, routes, facts } = storage;
        let checker = parts::checker(config)?;
        let observe = service::Observe::default();
        let access = page.access.clone();
        let audience = service::Audience::new(access.clone());
        // Where callers need a right, nobody has one for having an earlier version.
        if security.plain_members && !access.is_required() {
            // Nobody else sets it.
            let _ = audience.older.set(cluster.clone());
        }
        let standing = Arc::new(Standing::new(cluster.clone(), access.clone()));
        let (following, stop) = (standing.clone(), tasks.stop.clone());
        tasks.spawn(async move { following.follow(stop).await });
        let (taking, doors) = members::serve(
            transfer,
            descriptors.bytes,
            security.members.telling(standing.witness()),
            standing,
            tasks.stop.clone(),
        );
        tasks.spawn(taking);
        let places = (descriptors.grpc, net::Full::Refuse);
        let clients = net::incoming(grpc, places, "grpc", security.grpc, net::Patience::grpc);
        let (to_local, from_local) = mpsc::channel(local::WAITING);
        let api = Grpc {
            needs_proof: cluster.needs_proof(),
            routes,
            observe: observe.clone(),
            audience,
            readiness,
            access: &access,
        };
        let api = api.serve(clients, doors.grpc, ReceiverStream::new(from_local), tasks)?;
        let dialer = security.dialer;
        dialer.know(&cluster);

        let identity = cluster.start().await?;
        let (node, index, reporter) = (identity.node, cluster.index(), Reporter::default());
        let signing = Signing::open(node, cluster.clone(), config.data_dir.clone())?;
        let contact = Contact::new(&config.data_dir);
        let ago = match access.is_required() && !contact::hears_of_tokens(&index).await {
            true => contact.ago(),
            false => Some(Duration::ZERO),
        };
        access.know(index.clone(), ago);
        if access.is_open_to_own() {
            tracing::warn!(
                uid = rustix::process::geteuid().as_raw(),
                "there is no admin: whoever is root, or this user, at the node's socket may make the \
                 first one's token, containers that have the socket among them (access.socket_admin)"
            );
        }
        tasks.spawn(contact.hear(access.clone(), cluster.clone(), tasks.stop.clone()));
        for task in access.follow_issuers(&tasks.stop).map_err(ConfigError::Form)? {
            tasks.spawn(task);
        }
        let audit = access.audit();
        tasks.spawn(audit.clone().note(index.clone(), node, tasks.stop.clone()));
        tasks.spawn(joined::follow(audit.clone(), index.clone(), tasks.stop.clone()));
        // Nobody else sets it.
        let _ = observe.node.set(node);
        let peers = Arc::new(PeerClient::new(ClientSettings::default(), dialer.clone()));
        let counters = Arc::<manager::Counters>::default();
        let gate = readiness.gate().clone();
        let fetcher =
            Fetcher::new(node, index.clone(), tiers.clone(), peers, gate.clone(), counters.clone());
        let fetcher = Arc::new(fetcher);
        let manager = Arc::new(Manager::new(manager::Parts {
            settings: parts::manager(config),
            identity: signing,
            index: index.clone(),
            tiers: tiers.clone(),
            dialer: dialer.clone(),
            fetcher: fetcher.clone(),
            compilers,
            checker,
            gate,
            reporter: reporter.clone(),
            counters,
            stop: tasks.stop.clone(),
            emergency: readiness.emergency().clone(),
        }));
        let arrivals = Arrivals::new(tiers.budget().clone());
        let sockets = Vec::new();
        let mut shared = Shared {
            config,
            access: access.clone(),
            cluster,
            dialer,
            index,
            tiers,
            fetcher,
            manager,
            reporter,
            arrivals,
            sockets,
        };

        shared.serve_bytes(&doors.bytes, to_local, descriptors.bytes, tasks)?;
        let (resp, resp_counters) = shared.serve_resp(resp, security.resp, tasks)?;
        shared.keep_object_store(tasks);
        shared.follow(node, facts.clone(), tasks);
        shared.take_pieces(tasks);
        shared.prewarm(node, tasks);
        tasks.spawn(shared.manager.clone().spot_check(audit.clone(), tasks.stop.clone()));

        let counters: Vec<Arc<dyn CounterSource>> =
            vec![shared.manager.counters().clone(), resp_counters];
        let monitor = shared.monitor(node, resp, counters.clone(), tasks)?;
        let dashboard = shared.show(node, counters.clone(), monitor.clone(), tasks);
        page.page.open(dashboard.clone());

        let Shared { cluster, dialer, index, tiers, manager, arrivals, sockets, .. } = shared;
        let departure =
            service::Departure::new(cluster.clone(), manager.clone(), tasks.stop.clone());
        api.open(service::Parts {
            node,
            access,
            manager: manager.clone(),
            index,
            cluster,
            dialer,
            departure: Arc::new(departure),
            tiers,
            arrivals,
            patience: config.publish.patience,
            default_deadline: config.compile.default_deadline,
            default_namespace: config.namespace.default.clone(),
            counters,
            meters: page.metrics.clone(),
            dashboard,
            monitor,
        });
        readiness.has_services();
        let compilers = manager.compilers();
        let has = compilers.fingerprints().into_iter().map(|found| found.compiler);
        let missing = compilers.missing().into_iter().map(|(compiler, why)| MissingCompiler {
            compiler: compiler.to_owned(),
            loading: why.kind == FailureKind::Busy,
            why: why.message,
        });
        let ready = ReadyInfo {
            id: node,
            grpc: facts.grpc,
            http: facts.http,
            transfer: facts.transfer,
            socket: config.socket_path(),
            resp: resp_address,
            resp_socket: config.resp_socket.clone(),
            compilers: has.collect(),
            missing: missing.collect(),
        };
        Ok(Self { ready, manager, sockets })
    }
}

/// What is served over gRPC.
struct Grpc<'a> {
    /// What peers ask each other.
    routes: Routes,
    observe: service::Observe,
    audience: service::Audience,
    readiness: &'a Readiness,
    access: &'a Arc<Access>,
    /// Whether members that have not joined are refused, and not only counted.
    needs_proof: bool,
}

impl Grpc<'_> {
    /// Serves members with all of it, and clients with what is theirs: "still joining" until
    /// the API is opened.
    fn serve<C, M, L>(
        self,
        clients: C,
        members: M,
        local: L,
        tasks: &mut Tasks,
    ) -> Result<api::Api, NodeError>
    where
        C: Stream<Item = io::Result<net::Placed>> + Send + 'static,
        M: Stream<Item = io::Result<net::Placed>> + Send + 'static,
        L: Stream<Item = io::Result<net::Local>> + Send + 'static,
    {
        let api = api::Api::default();
        let health = self.readiness.service(tasks.stop.clone());
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR_SET)
            .build_v1()
            .map_err(|e| NodeError::Reflection(e.to_string()))?;
        let kiln = KilnServer::new(api.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let kiln = service::Counted::new(kiln);
        let routes = self.routes.add_service(kiln).add_service(health).add_service(reflection);
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .layer(self.observe);
        let stopped = || tasks.stop.clone().cancelled_owned();
        let of_members = service::Guard::of_members(self.access.clone(), self.needs_proof);
        let of_clients = service::Guard::of_clients(self.access.clone());
        let to_members = server.clone().layer(of_members).add_routes(routes.clone());
        let to_members = to_members.serve_with_incoming_shutdown(members, stopped());
        let mut for_clients = server.layer(self.audience).layer(of_clients);
        let to_local = for_clients.clone().add_routes(routes.clone());
        let to_local = to_local.serve_with_incoming_shutdown(local, stopped());
        let to_clients = for_clients.add_routes(routes);
        let to_clients = to_clients.serve_with_incoming_shutdown(clients, stopped());
        tasks.spawn(told("members", to_members));
        tasks.spawn(told("gRPC", to_clients));
        tasks.spawn(told("unix socket's", to_local));
        Ok(api)
    }
}

/// Says why a server ended before it was stopped.
async fn told(port: &str, server: impl Future<Output = Result<(), tonic::transport::Error>>) {
    if let Err(e) = server.await {
        tracing::error!(error = %e, "the {port} port failed");
    }
}

impl Shared<'_> {
    /// The byte path: peers on the members' port, clients of this machine by the unix socket,
    /// which serves them the API as well.
    fn serve_bytes(
        &mut self,
        peers: &watch::Sender<Option<Arc<PeerServer>>>,
        grpc: mpsc::Sender<io::Result<net::Local>>,
        connections: usize,
        tasks: &mut Tasks,
    ) -> Result<(), NodeError> {
        let provider: Arc<dyn Provider> = Arc::new(bytes::NodeBytes {
            cluster: self.cluster.clone(),
            tiers: self.tiers.clone(),
            fetcher: self.fetcher.clone(),
            manager: self.manager.clone(),
            namespace: self.config.namespace.default.clone(),
            access: self.access.clone(),
        });
        let settings =
            || ServerSettings { max_connections: connections, ..ServerSettings::default() };
        let stop = tasks.stop.clone();
        let server = PeerServer::new(provider.clone(), settings(), stop.clone());
        peers.send_replace(Some(Arc::new(server)));
        if let Some(path) = self.config.socket_path() {
            let listener = self.bind_socket(&path)?;
            let bytes = SocketServer::new(provider, settings(), stop.clone());
            // Twice as many: gRPC has half of them at most, and the byte path the rest.
            let of_grpc = Arc::new(Semaphore::new(connections));
            let door = local::Door { grpc, places: of_grpc, bytes, stop: stop.clone() };
            let places = Arc::new(Semaphore::new(2 * connections));
            tasks.spawn(net::serve(listener, Arc::new(door), places, stop));
        }
        Ok(())
    }

    /// Redis clients, by TCP and by the unix socket.
    fn serve_resp(
        &mut self,
        listener: Option<TcpListener>,
        acceptor: Acceptor,
        tasks: &mut Tasks,
    ) -> Result<(Arc<resp::Resp>, Arc<resp::Counters>), NodeError> {
        let (config, counters) = (self.config, Arc::<resp::Counters>::default());
        let resp_parts = resp::Parts {
            index: self.index.clone(),
            cluster: self.cluster.clone(),
            manager: self.manager.clone(),
            tiers: self.tiers.clone(),
            arrivals: self.arrivals.clone(),
            reporter: self.reporter.clone(),
            counters: counters.clone(),
        };
        let resp = resp::Resp::new(resp_parts, parts::resp(config), self.access.clone());
        let resp = resp.map_err(|source| NodeError::Io {
            doing: format!("read the users in {:?}", config.resp.users),
            source,
        })?;
        let resp = Arc::new(resp);
        let served = listener.is_some() || config.resp_socket.is_some();
        if let Some(listener) = listener {
            tasks.spawn(resp.clone().serve_tcp(listener, acceptor, tasks.stop.clone()));
        }
        if let Some(path) = &config.resp_socket {
            let listener = self.bind_socket(path)?;
            tasks.spawn(resp.clone().serve_unix(listener, tasks.stop.clone()));
        }
        if served {
            tasks.spawn(resp.clone().follow(tasks.stop.clone()));
        }
        Ok((resp, counters))
    }

    /// Uploads to L3, and its collector.
    fn keep_object_store(&self, tasks: &mut Tasks) {
        let (tiers, index, stop) =
            (|| self.tiers.clone(), || self.index.clone(), tasks.stop.clone());
        tasks.spawn(uploads::carry_out(tiers(), index(), stop.clone()));
        tasks.spawn(uploads::resume(tiers(), index(), uploads::Pace::default(), stop.clone()));
        let settings = parts::collect(self.config);
        tasks.spawn(object_store::collect(tiers(), self.cluster.clone(), settings, stop));
    }

    /// What keeps this node and the cluster informed of each other.
    fn follow(&self, node: NodeId, own: NodeFacts, tasks: &mut Tasks) {
        let stop = tasks.stop.clone();
        tasks.spawn(self.reporter.clone().run(self.index.clone(), stop.clone()));
        let (index, tiers) = (self.index.clone(), self.tiers.clone());
        tasks.spawn(follow::index(index, tiers, unnamed::Pace::default(), stop.clone()));
        tasks.spawn(follow::tiers(self.tiers.clone(), self.reporter.clone(), stop.clone()));
        let (cluster, manager) = (self.cluster.clone(), self.manager.clone());
        tasks.spawn(follow::facts(cluster, node, own, manager, stop));
    }

    /// What wholes anywhere in the cluster wait for.
    fn take_pieces(&self, tasks: &mut Tasks) {
        tasks.spawn(Puller::new(self.manager.clone()).run(tasks.stop.clone()));
    }

    /// What will be asked for.
    fn prewarm(&self, node: NodeId, tasks: &mut Tasks) {
        let prewarm = Prewarm {
            manager: self.manager.clone(),
            index: self.index.clone(),
            node,
            bytes: self.config.prewarm_bytes(),
            refresh: self.config.prewarm.refresh,
            file: self.config.data_dir.join("use"),
        };
        tasks.spawn(prewarm.run(tasks.stop.clone()));
    }

    /// What is shown of the node and the cluster.
    fn show(
        &self,
        node: NodeId,
        counters: Vec<Arc<dyn CounterSource>>,
        monitor: Monitor,
        tasks: &mut Tasks,
    ) -> Arc<Dashboard> {
        let sources = Sources {
            node,
            manager: self.manager.clone(),
            index: self.index.clone(),
            cluster: self.cluster.clone(),
            dialer: self.dialer.clone(),
            tiers: self.tiers.clone(),
            counters,
            monitor,
        };
        let stop = tasks.stop.clone();
        Dashboard::start(sources, &stop, |task| tasks.spawn(task))
    }

    /// What watches all of this, and whom it tells.
    fn monitor(
        &self,
        node: NodeId,
        resp: Arc<resp::Resp>,
        counters: Vec<Arc<dyn CounterSource>>,
        tasks: &mut Tasks,
    ) -> Result<Monitor, NodeError> {
        let (manager, tiers) = (|| self.manager.clone(), || self.tiers.clone());
        let sampler = Sampler::new(manager(), tiers(), counters);
        let lru = self.config.disk.policy == EvictionPolicy::Lru;
        let controls = Controls::new(manager(), tiers(), resp, lru);
        let receivers = parts::receivers(self.config)?;
        for receiver in &receivers {
            tasks.spawn(receiver.clone().run(tasks.stop.clone()));
        }
        let settings = parts::monitor(self.config, node);
        let emergency = self.manager.emergency().clone();
        let stop = tasks.stop.clone();
        let (monitor, task) = monitor::run(settings, sampler, controls, receivers, emergency, stop);
        tasks.spawn(task);
        Ok(monitor)
    }

    /// Late, unlike the ports: a client takes a socket that exists for one that answers.
    fn bind_socket(&mut self, path: &Path) -> Result<UnixListener, NodeError> {
        let mode = self.config.socket_permissions().unwrap_or(SOCKET_MODE);
        let (listener, file) = transfer::bind_socket(path, mode).map_err(|source| {
            NodeError::Io { doing: format!("listen on {}", path.display()), source }
        })?;
        self.sockets.push(file);
        Ok(listener)
    }
}
