//! A cluster of real nodes that faults strike.
//!
//! Invariant: dropping it ends its processes first, then removes what they stood on.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail};
use kiln::config::Config;
use kiln_proto::pb;
use parking_lot::Mutex;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{door::Door, node::Node};

/// Of one node: gRPC, HTTP, transfer, RESP.
const PORTS: usize = 4;
/// How long a node that is silent keeps its leases.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// What a cluster is like before anything strikes it.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) configure: fn(usize, &mut Config),
}

/// The doors of all nodes, as clients see them.
pub(crate) type Doors = Arc<Mutex<Vec<Arc<Door>>>>;

pub(crate) struct Fleet {
    pub(crate) nodes: Vec<Node>,
    pub(crate) doors: Doors,
    pub(crate) folder: TempDir,
}

impl Fleet {
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        // A port that was free a moment ago may be taken now: then once more.
        let mut last = None;
        for _ in 0..3 {
            match Self::try_start(plan).await {
                Ok(fleet) => return Ok(fleet),
                Err(e) => last = Some(e),
            }
        }
        Err(last.context("no try")?)
    }

    async fn try_start(plan: Plan) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kiln-faults-").tempdir()?;
        std::fs::create_dir(folder.path().join("object"))?;
        let mut fleet = Self { nodes: Vec::new(), doors: Doors::default(), folder };
        for at in 0..plan.nodes {
            let config = fleet.config(at)?;
            fleet.nodes.push(Node::new(at, fleet.home(at), config)?);
        }
        let peers: Vec<_> =
            fleet.nodes.iter().map(|node| node.config.grpc_listen.to_string()).collect();
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

    fn config(&self, at: usize) -> anyhow::Result<Config> {
        let ports = free_ports(Ipv4Addr::LOCALHOST)?;
        let home = self.home(at);
        let mut config = Config {
            data_dir: home.join("data"),
            grpc_listen: ports[0],
            http_listen: ports[1],
            transfer_listen: ports[2],
            resp_listen: Some(ports[3]),
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
        Ok(config)
    }

    /// The index of the node that leads, once a node says so and means it.
    pub(crate) async fn leader(&self) -> anyhow::Result<usize> {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
                let Some(pb::StatusResponse { leader, quorum: true, .. }) = node.status().await
                else {
                    continue;
                };
                if let Some(at) = self.nodes.iter().position(|node| node.id == leader) {
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

/// Ports of one node; all held until all are known.
fn free_ports(ip: Ipv4Addr) -> std::io::Result<Vec<SocketAddr>> {
    let held: Vec<_> =
        (0..PORTS).map(|_| TcpListener::bind((ip, 0))).collect::<std::io::Result<_>>()?;
    held.iter().map(TcpListener::local_addr).collect()
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
