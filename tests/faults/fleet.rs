//! A cluster of real nodes that faults strike.
//!
//! Invariant: dropping it ends its processes first, then removes what they stood on.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail};
use kiln::config::Config;
use parking_lot::Mutex;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    clock::Clocks,
    disk::SmallDisk,
    door::Door,
    network::Network,
    node::Node,
    payload::Chance,
    ports::{Held, hold_ports},
    proxy::Proxy,
    resp,
    store::Store,
};

/// Of one node: gRPC, HTTP, transfer, RESP.
const PORTS: usize = 4;
/// How long a node that is silent keeps its leases.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// What the nodes' sockets stand on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    Loopback,
    /// Each has a namespace of its own.
    Namespaces,
    /// Each is reached by the others through a proxy.
    Proxies,
}

/// What lies on a small disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Small {
    Tier,
    Data,
}

/// Its size in MiB.
const SMALL: u32 = 96;

/// What a cluster is like before anything strikes it.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) ground: Ground,
    /// What of node 0 lies on a small disk of its own.
    pub(crate) small: Option<Small>,
    /// A real S3 instead of a folder.
    pub(crate) s3: bool,
    /// Wall clocks can be set.
    pub(crate) clocks: bool,
    /// Nodes start as the build that `KILN_BINARY_BEFORE` names.
    pub(crate) earlier: bool,
    pub(crate) configure: fn(usize, &mut Config),
}

/// The doors of all nodes, as clients see them.
pub(crate) type Doors = Arc<Mutex<Vec<Arc<Door>>>>;

pub(crate) struct Fleet {
    pub(crate) nodes: Vec<Node>,
    pub(crate) doors: Doors,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) network: Option<Network>,
    pub(crate) store: Option<Store>,
    pub(crate) small: Option<SmallDisk>,
    clocks: Option<Clocks>,
    /// Of the nodes on loopback, so that each can come back to where it was.
    ports: Vec<Held>,
    pub(crate) folder: TempDir,
}

impl Fleet {
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kiln-faults-").tempdir()?;
        std::fs::create_dir(folder.path().join("object"))?;
        let users = folder.path().join("users");
        std::fs::write(&users, format!("default {}\n", resp::PASSWORD))?;
        std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600))?;
        let (nodes, proxies, doors) = Default::default();
        let network = (plan.ground == Ground::Namespaces).then(Network::make).transpose()?;
        let clocks = plan.clocks.then(|| Clocks::make(folder.path())).transpose()?;
        let store = if plan.s3 { Some(Store::start().await?) } else { None };
        let (small, ports) = (None, Vec::new());
        let mut fleet =
            Self { nodes, doors, proxies, network, store, small, clocks, ports, folder };
        for at in 0..plan.nodes {
            let (prefix, config) = fleet.config(at, plan.ground)?;
            let mut node = Node::new(at, fleet.home(at), config)?;
            node.prefix = prefix;
            if plan.earlier {
                let earlier = std::env::var("KILN_BINARY_BEFORE");
                let none = "KILN_BINARY_BEFORE names no earlier build";
                node.binary = earlier.context(none)?.into();
            }
            if let Some(clocks) = &fleet.clocks {
                node.environment = clocks.environment(at)?;
            }
            if let Some(store) = &fleet.store {
                node.environment = Store::environment();
                node.config.object.url = Some(Store::url());
                node.config.object.endpoint = Some(store.endpoint());
            }
            fleet.nodes.push(node);
        }
        if let Some(small) = plan.small {
            let config = &fleet.nodes[0].config;
            let at =
                if small == Small::Data { config.data_dir.clone() } else { config.disk_path() };
            fleet.small = Some(SmallDisk::mount(&at, SMALL)?);
        }
        if plan.ground == Ground::Proxies {
            fleet.put_proxies().await?;
        }
        let address = |node: &Node| node.config.advertised(node.config.transfer_listen);
        let peers: Vec<_> = fleet.nodes.iter().map(address).collect();
        for (at, node) in fleet.nodes.iter_mut().enumerate() {
            node.config.start.expect = plan.nodes;
            node.config.start.peers = peers.clone();
            (plan.configure)(at, &mut node.config);
            node.spawn()?;
        }
        for node in &mut fleet.nodes {
            node.ready().await?;
        }
        *fleet.doors.lock() = fleet.nodes.iter().map(|node| Arc::clone(&node.door)).collect();
        Ok(fleet)
    }

    fn home(&self, at: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("node-{at}"))
    }

    /// The object store's folder.
    pub(crate) fn objects(&self) -> std::path::PathBuf {
        self.folder.path().join("object")
    }

    /// A proxy before each port on which other nodes reach a node: the same port of
    /// another address of this machine.
    async fn put_proxies(&mut self) -> anyhow::Result<()> {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let ip = Ipv4Addr::new(127, 78, (std::process::id() % 251) as u8, at as u8 + 1);
            node.config.advertise = Some(ip.to_string());
            for to in [node.config.grpc_listen, node.config.transfer_listen] {
                let (listen, chance) = ((ip, to.port()).into(), Chance::new(u64::from(to.port())));
                self.proxies.push(Proxy::start(listen, to, chance).await?);
            }
        }
        Ok(())
    }

    /// The settings of node `at`, and what its process is started with.
    fn config(&mut self, at: usize, ground: Ground) -> anyhow::Result<(Vec<String>, Config)> {
        let (prefix, ports) = match (&mut self.network, ground) {
            (Some(network), Ground::Namespaces) => {
                let ip = network.address(at);
                (network.add()?, (7400..7404).map(|port| (ip, port).into()).collect())
            }
            _ => {
                let held = hold_ports(PORTS)?;
                let addresses = held.addresses.clone();
                self.ports.push(held);
                (Vec::new(), addresses)
            }
        };
        let home = self.home(at);
        let mut config = Config {
            data_dir: home.join("data"),
            grpc_listen: ports[0],
            http_listen: ports[1],
            transfer_listen: ports[2],
            resp_listen: Some(ports[3]),
            // Namespaces of the network are other machines.
            insecure: true,
            ..Config::default()
        };
        config.cluster.lease_ttl = LEASE;
        config.object.url = Some(format!("file://{}", self.objects().display()));
        config.object.collect.orphan_after = Duration::from_secs(5);
        config.object.collect.grace = Duration::from_secs(1);
        config.object.collect.every = Duration::from_secs(1);
        config.memory.bytes = 64 << 20;
        config.memory.entries = 256;
        config.resp.wait = Duration::ZERO;
        config.resp.users = Some(self.folder.path().join("users"));
        Ok((prefix, config))
    }

    /// A new node joins; clients ask it once it serves.
    pub(crate) async fn newcomer(&mut self) -> anyhow::Result<usize> {
        let at = self.nodes.len();
        let (_, mut config) = self.config(at, Ground::Loopback)?;
        let members = self.nodes.iter().filter(|node| node.pid().is_some());
        config.start.join = members.map(|node| node.config.transfer_listen.to_string()).collect();
        let mut node = Node::new(at, self.home(at), config)?;
        node.start().await?;
        self.doors.lock().push(Arc::clone(&node.door));
        self.nodes.push(node);
        Ok(at)
    }

    /// The wall clock of a node is so many seconds ahead.
    pub(crate) fn set_clock(&self, at: usize, seconds: i64) -> anyhow::Result<()> {
        self.clocks.as_ref().context("no clocks of its own")?.set(at, seconds)
    }

    /// The index of the node that leads, once it says so itself and means it.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            for (at, node) in self.nodes.iter().enumerate().filter(|(_, n)| n.pid().is_some()) {
                let status = node.status().await;
                if status.is_some_and(|status| status.quorum && status.leader == node.id) {
                    return Ok(at);
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("no leader")
    }

    /// SIGSTOP; returns once the node stands still.
    pub(crate) async fn pause(&mut self, at: usize) -> anyhow::Result<()> {
        let node = &self.nodes[at];
        node.door.away.store(true, Relaxed);
        node.signal(Signal::STOP)?;
        let end = Instant::now() + Duration::from_secs(10);
        while !node.stands_still() {
            anyhow::ensure!(Instant::now() < end, "node {at} does not stand still");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, at: usize) -> anyhow::Result<()> {
        self.nodes[at].signal(Signal::CONT)?;
        self.nodes[at].door.away.store(false, Relaxed);
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::end);
    }
}

/// All files below `folder`.
pub(crate) fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&path)),
            _ => found.push(path),
        }
    }
    found
}
