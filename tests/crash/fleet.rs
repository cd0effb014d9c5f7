//! Three nodes, a fourth that comes and goes, and the clients.
//!
//! Invariant: between two kills all three nodes run, and every key has a value that it
//! may have, read from each of them after all that was acknowledged.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kiln::config::Config;
use kiln_proto::pb;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    harness::{NAMESPACE, TestCluster, TestNode, bytes_of, eventually},
    load::{self, Load, WRITERS},
    points::Way,
    rotation::Rotation,
};

/// A node that is to be killed at a step is there by then.
const REACHED: Duration = Duration::from_secs(20);
/// Snapshots that are on their way have arrived by then.
const SETTLED: Duration = Duration::from_secs(10);
/// Changes after which the log no longer has what a node missed.
const LOG: u64 = 64;
const NODES: usize = 3;

pub(crate) struct Fleet {
    cluster: TestCluster,
    load: Arc<Load>,
    writers: JoinSet<()>,
    /// Who is to be killed next.
    next: usize,
    /// A newcomer that leaves again.
    guest: Option<usize>,
    /// The change of the guest's key.
    rotation: Option<Rotation>,
}

fn configure(_: usize, config: &mut Config) {
    (config.memory.bytes, config.memory.in_flight) = (1 << 20, 64 << 20);
    // Less than the values of the clients together.
    config.disk.bytes = 5 << 18;
    config.cluster.log_entries = LOG;
    // Nobody compiles: starts need not look for the library.
    config.compile.nvrtc = Some("/nonexistent".into());
    let second = Duration::from_secs(1);
    config.object.collect.orphan_after = second;
    config.object.collect.grace = second;
    config.object.collect.every = second;
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        let cluster = TestCluster::start_with(NODES, configure).await;
        let load = Arc::<Load>::default();
        let at: Vec<_> = cluster.nodes.iter().map(|node| node.config.grpc_listen).collect();
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(load.clone().write(writer, at.clone()));
        }
        Self { cluster, load, writers, next: 0, guest: None, rotation: None }
    }

    pub(crate) fn calls(&self) -> u64 {
        self.load.done.load(Ordering::Relaxed)
    }

    pub(crate) async fn stop(mut self) {
        self.writers.shutdown().await;
        for node in self.cluster.nodes.iter_mut().filter(|node| node.is_running()) {
            node.kill().await;
        }
    }

    /// Brings a node to `step` for the `count`-th time, which kills it; false where it did
    /// not get there in time, which leaves all as it was.
    pub(crate) async fn kill_at(&mut self, step: &str, count: u64, way: Way) -> bool {
        self.next = (self.next + 1) % NODES;
        let all = [0, 1, 2];
        match way {
            Way::Load => {
                arm(&self.cluster.nodes[self.next], step, count);
                self.reached(&[self.next]).await
            }
            Way::Collect => {
                let leader = self.cluster.leader(&all).await;
                arm(&self.cluster.nodes[leader], step, count);
                self.reached(&[leader]).await
            }
            Way::Election => {
                let leader = self.cluster.leader(&all).await;
                let victim = (leader + 1) % NODES;
                arm(&self.cluster.nodes[victim], step, 1);
                armed(&self.cluster.nodes[victim]).await;
                self.cluster.nodes[leader].kill().await;
                self.reached(&[victim]).await
            }
            Way::Snapshot => {
                let victim = self.next;
                self.cluster.nodes[victim].kill().await;
                let others: Vec<_> = all.into_iter().filter(|i| *i != victim).collect();
                self.changes(2 * LOG, &others).await;
                // Most snapshots are of one chunk, and each is created once.
                arm(&self.cluster.nodes[victim], step, 1);
                self.cluster.nodes[victim].spawn();
                self.reached(&[victim]).await
            }
            Way::Truncate => self.lead_alone(step).await,
            Way::Join => {
                let guest = self.cluster.newcomer(configure);
                self.guest = Some(guest);
                let twice = step.starts_with("identity");
                arm(&self.cluster.nodes[guest], step, if twice { 1 + count % 2 } else { 1 });
                self.cluster.nodes[guest].spawn();
                self.reached(&[guest]).await
            }
            Way::Rotate => {
                let guest = self.rotating_guest().await;
                // The name is written before the key, by the same steps.
                let twice = matches!(step, "key.written" | "key.synced");
                arm(&self.cluster.nodes[guest], step, if twice { 1 + count % 2 } else { 1 });
                armed(&self.cluster.nodes[guest]).await;
                Rotation::ask(&self.cluster.nodes[guest]).await;
                self.reached(&[guest]).await
            }
            Way::NoteRotation => {
                let guest = self.rotating_guest().await;
                arm(&self.cluster.nodes[guest], "rotate.committed", 1);
                armed(&self.cluster.nodes[guest]).await;
                Rotation::ask(&self.cluster.nodes[guest]).await;
                if !self.reached(&[guest]).await {
                    return false;
                }
                arm(&self.cluster.nodes[guest], step, 1);
                self.cluster.nodes[guest].spawn();
                // Mostly its replica is behind when it comes back, so it notes nothing then.
                if self.cluster.nodes[guest].wait_ready().await {
                    Rotation::is_heard_of(&self.cluster.nodes[guest]).await;
                    self.cluster.nodes[guest].terminate().await;
                    arm(&self.cluster.nodes[guest], step, 1);
                    self.cluster.nodes[guest].spawn();
                }
                self.reached(&[guest]).await
            }
            Way::Corrupt => {
                let victim = self.next;
                let _turn = self.load.turn.write().await;
                // What only this disk has would be lost, and rightly so.
                for (name, _) in self.load.ledger.keys() {
                    let stored = async || {
                        let entry = self.cluster.nodes[victim].lookup(&load::key(&name)).await;
                        entry.ok()?.is_none_or(|entry| entry.stored).then_some(())
                    };
                    eventually("the upload of all", stored).await;
                }
                // A new process has nothing in memory.
                self.cluster.nodes[victim].kill().await;
                flip(&self.cluster.nodes[victim]);
                self.cluster.nodes[victim].restart().await;
                arm(&self.cluster.nodes[victim], step, 1);
                armed(&self.cluster.nodes[victim]).await;
                for (name, _) in self.load.ledger.keys() {
                    // The node is gone in the middle of it.
                    drop(read(&self.cluster.nodes[victim], &name).await);
                }
                reached(&mut self.cluster.nodes[victim], Duration::from_secs(1)).await
            }
        }
    }

    /// A member that has signed something, and has had one key until now.
    async fn rotating_guest(&mut self) -> usize {
        let guest = self.cluster.newcomer(configure);
        self.guest = Some(guest);
        self.cluster.nodes[guest].restart().await;
        let (node, any) = (&self.cluster.nodes[guest], &self.cluster.nodes[0]);
        self.rotation = Some(Rotation::begin(node, any).await);
        guest
    }

    /// Waits for the end of one of `nodes`.
    async fn reached(&mut self, nodes: &[usize]) -> bool {
        for node in nodes {
            if reached(&mut self.cluster.nodes[*node], REACHED).await {
                return true;
            }
        }
        for node in nodes {
            drop(std::fs::remove_file(self.cluster.nodes[*node].crash_file()));
            // Armed for good: only a new process forgets it.
            if self.cluster.nodes[*node].is_running() {
                self.cluster.nodes[*node].kill().await;
            }
        }
        self.recover().await;
        false
    }

    /// A leader that nobody hears writes what nobody else has, and comes back.
    async fn lead_alone(&mut self, step: &str) -> bool {
        let all = [0, 1, 2];
        let leader = self.cluster.leader(&all).await;
        let others: Vec<_> = all.into_iter().filter(|i| *i != leader).collect();
        for other in &others {
            self.cluster.nodes[*other].kill().await;
        }
        self.load.put_alone(self.cluster.nodes[leader].config.grpc_listen).await;
        self.cluster.nodes[leader].kill().await;
        for other in &others {
            self.cluster.nodes[*other].restart().await;
        }
        self.changes(2, &others).await;
        arm(&self.cluster.nodes[leader], step, 1);
        self.cluster.nodes[leader].spawn();
        self.reached(&[leader]).await
    }

    /// Waits until `count` more entries are applied among `nodes`.
    async fn changes(&self, count: u64, nodes: &[usize]) {
        let applied = async || {
            let mut most = None;
            for node in nodes {
                let status = self.cluster.nodes[*node].status().await;
                most = most.max(status.ok().map(|status| status.applied));
            }
            most
        };
        let first = eventually("an applied entry", &applied).await;
        let enough = async || applied().await.filter(|now| *now >= first + count);
        eventually("further entries", enough).await;
    }

    /// Starts what is down, and tells which keys are not what they may be.
    pub(crate) async fn recover(&mut self) -> Vec<String> {
        for node in &mut self.cluster.nodes {
            drop(std::fs::remove_file(node.crash_file()));
            if !node.is_running() {
                node.restart().await;
            }
        }
        let gone = async || self.leftovers().is_empty().then_some(());
        // A snapshot may be on its way.
        let mut lost = match tokio::time::timeout(SETTLED, eventually("", gone)).await {
            Ok(()) => Vec::new(),
            Err(_) => self.leftovers(),
        };
        let _turn = self.load.turn.write().await;
        for (name, may) in self.load.ledger.keys() {
            let mut seen = None;
            for node in &self.cluster.nodes {
                let found = eventually("an answer", async || read(node, &name).await.ok()).await;
                let version = may.iter().copied().find(|version| match &found {
                    None => *version == 0,
                    Some(bytes) => *version != 0 && load::bytes(&name, *version) == *bytes,
                });
                match version {
                    None if found.is_none() => lost.push(format!("{name} is lost: {may:?}")),
                    None => lost.push(format!("{name} has bytes that it may not have")),
                    Some(version) if may.len() == 1 && seen.is_some_and(|seen| seen != version) => {
                        lost.push(format!("{name} differs between nodes"));
                    }
                    Some(version) => seen = Some(version),
                }
            }
        }
        if let Some(guest) = self.guest.take() {
            if let Some(rotation) = self.rotation.take() {
                let (node, any) = (&self.cluster.nodes[guest], &self.cluster.nodes[0]);
                lost.extend(rotation.check(node, any).await);
            }
            let id = self.cluster.nodes[guest].id;
            let request = pb::RemoveNodeRequest { id };
            let remove = async || {
                let mut client = load::client(self.cluster.nodes[0].config.grpc_listen);
                client.remove_node(request).await.ok()
            };
            eventually("the removal of the guest", remove).await;
            let mut node = self.cluster.nodes.remove(guest);
            node.kill().await;
            // The next guest is another node, which has nothing.
            std::fs::remove_dir_all(node.data().parent().unwrap()).unwrap();
        }
        lost
    }

    /// Files that a restart should have removed.
    fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in &self.cluster.nodes {
            walk(node.data(), &mut |path| {
                let name = path.to_string_lossy();
                let endings = [".snapshot", ".new"];
                if endings.iter().any(|end| name.ends_with(end))
                    || name.contains("/.kiln-unfinished-")
                {
                    found.push(format!("{name} is left over"));
                }
            });
        }
        found
    }
}

fn walk(folder: &Path, see: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { walk(&path, see) } else { see(&path) }
    }
}

fn arm(node: &TestNode, step: &str, count: u64) {
    let file = node.crash_file();
    let whole = file.with_extension("new");
    std::fs::write(&whole, format!("{step}:{count}")).unwrap();
    std::fs::rename(whole, file).unwrap();
}

/// Waits until the node, which runs, has taken the step from its file.
async fn armed(node: &TestNode) {
    let taken = async || (!node.crash_file().exists()).then_some(());
    eventually("the armed step", taken).await;
}

async fn reached(node: &mut TestNode, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if node.has_ended() {
            return true;
        }
        sleep(Duration::from_millis(5)).await;
    }
    false
}

/// Changes one byte of each file of the disk tier.
fn flip(node: &TestNode) {
    for file in node.packs() {
        let Ok(mut bytes) = std::fs::read(&file) else { continue };
        let Some(byte) = bytes.last_mut() else { continue };
        *byte ^= 1;
        drop(std::fs::write(&file, bytes));
    }
}

/// The bytes of `name` at `node` after all that was acknowledged; `None`: it has none.
async fn read(node: &TestNode, name: &str) -> Result<Option<Vec<u8>>, tonic::Status> {
    let key = load::key(name);
    let request =
        pb::LookupRequest { key: bytes_of(&key), linearizable: true, namespace: NAMESPACE.into() };
    let found = node.client().await.lookup(request).await?.into_inner();
    if found.entry.is_none() {
        return Ok(None);
    }
    match node.fetch(&key).await {
        Ok((_, bytes)) => Ok(Some(bytes)),
        Err(e) if e.code() == tonic::Code::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
