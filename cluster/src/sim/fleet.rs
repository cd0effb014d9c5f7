//! The machines of a run: members are started on them, crash, stop and come back.
//!
//! A member that crashes is cut off from the network, its disk and its clients at one
//! moment; what of it still runs then can be seen by nobody, and is taken down.
//!
//! Invariant: a machine's folder is opened by one member at a time; after a crash the next
//! one opens a copy as the crash left it.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::SigningKey;
use kiln_proto::NodeIdentity;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{
    chance::Chance,
    disk::{Mounted, SimDisk, Unsynced},
    network::{Host, Network, Process, address},
    trace::Trace,
    wire::Uplink,
};
use crate::{
    Cluster, Index, Joining, NodeFacts, Settings, Start, Timings, environment::Environment,
};

/// The day on which every run begins.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// As in the tests on real connections, and failures that are soon forgotten.
pub(super) fn timings() -> Timings {
    Timings {
        heartbeat: Duration::from_millis(150),
        election_min: Duration::from_millis(600),
        election_max: Duration::from_millis(1200),
        lease_ttl: Duration::from_secs(3),
        failure_ttl: Duration::from_secs(4),
        resource_failure_ttl: Duration::from_secs(1),
        dead_after: Duration::from_secs(4),
        patience: Duration::from_secs(6),
    }
}

/// A member that runs.
pub(super) struct Running {
    pub process: Arc<Process>,
    pub cluster: Cluster,
    pub index: Index,
    pub disk: Arc<SimDisk>,
    /// Counts the members that ran in this simulation.
    pub incarnation: u64,
    identity: OnceLock<NodeIdentity>,
    /// Whether it is being stopped, or removed.
    going: AtomicBool,
    dir: PathBuf,
}

impl Running {
    pub(super) fn host(&self) -> Host {
        self.process.host
    }

    /// It is about to stop, or to be removed.
    pub(super) fn goes(&self) {
        self.going.store(true, Ordering::Relaxed);
    }

    /// Whether it is: then calls may be refused.
    pub(super) fn is_going(&self) -> bool {
        self.going.load(Ordering::Relaxed)
    }

    /// Who it is, once it has found its place.
    pub(super) fn identity(&self) -> Option<&NodeIdentity> {
        self.identity.get()
    }
}

/// One machine.
struct Machine {
    dir: PathBuf,
    voter: bool,
    start: Start,
    running: Option<Arc<Running>>,
    /// The node that is asked to leave; it may be a member until the cluster says otherwise.
    leaving: Option<u64>,
    /// Out of the cluster for good.
    retired: bool,
}

/// All machines.
pub(super) struct Fleet {
    pub trace: Arc<Trace>,
    pub network: Arc<Network>,
    chance: Mutex<Chance>,
    seed: u64,
    /// In many runs so few that whoever was away for a moment needs a snapshot.
    log_entries: u64,
    folder: TempDir,
    machines: Mutex<Vec<Machine>>,
    incarnations: Mutex<u64>,
}

impl Fleet {
    /// Machines that found a cluster of `founders` when they are booted.
    pub(super) fn new(
        seed: u64,
        mut chance: Chance,
        trace: Arc<Trace>,
        founders: Host,
    ) -> Arc<Self> {
        // In memory where that can be: the simulated disk needs no real one.
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let network = Network::new(chance.fork(), Arc::clone(&trace));
        let log_entries = chance.pick(&[50, 200, 1000]).unwrap_or(1000);
        let fleet = Self {
            trace,
            network,
            chance: Mutex::new(chance),
            seed,
            log_entries,
            folder: folder.unwrap(),
            machines: Mutex::default(),
            incarnations: Mutex::new(0),
        };
        let peers: Vec<String> = (0..founders).map(address).collect();
        for _ in 0..founders {
            fleet.add(Start::Expect { voters: founders, peers: peers.clone() }, true);
        }
        Arc::new(fleet)
    }

    /// One more machine, which is off.
    pub(super) fn add(&self, start: Start, voter: bool) -> Host {
        let mut machines = self.machines.lock();
        let host = machines.len();
        let dir = self.folder.path().join(format!("{host}-0"));
        machines.push(Machine { dir, voter, start, running: None, leaving: None, retired: false });
        host
    }

    /// Starts a member on a machine that is off.
    pub(super) fn boot(self: &Arc<Self>, host: Host) {
        let (dir, voter, start, going) = {
            let machines = self.machines.lock();
            let Some(m) = machines.get(host).filter(|m| m.running.is_none() && !m.retired) else {
                return;
            };
            (m.dir.clone(), m.voter, m.start.clone(), m.leaving.is_some())
        };
        let incarnation = {
            let mut incarnations = self.incarnations.lock();
            *incarnations += 1;
            *incarnations
        };
        let (of_disk, process) = (self.chance.lock().fork(), Process::new(host));
        let disk = SimDisk::new(of_disk, Arc::clone(&self.trace));
        let began = Instant::now() - Duration::from_micros(self.trace.micros().unsigned_abs());
        // The machines do not agree on the time of day.
        let epoch =
            EPOCH + Duration::from_secs(Chance::new(self.seed ^ host as u64).within(0..7200));
        let machine = Environment {
            network: Arc::new(Uplink {
                network: Arc::clone(&self.network),
                process: Arc::clone(&process),
            }),
            disk: Arc::new(Mounted(Arc::clone(&disk))),
            clock: Arc::new(move || epoch + began.elapsed()),
        };
        let facts = NodeFacts { grpc: address(host), ..NodeFacts::default() };
        let (timings, log_entries) = (timings(), self.log_entries);
        let settings = Settings {
            data_dir: dir.clone(),
            start,
            facts,
            timings,
            voter,
            log_entries,
            context: || None,
            dial: None,
            joining: Joining::default(),
        };
        let opened = Cluster::open_on(machine, settings, self.signing_key(host));
        let (cluster, routes) = match opened {
            Ok(opened) => opened,
            Err(e) => return self.trace.violation(format!("host {host} does not open: {e}")),
        };
        self.trace.event(format_args!("boot {host} as {incarnation}"));
        self.network.listen(&process, routes);
        let running = Arc::new(Running {
            process,
            index: cluster.index(),
            cluster,
            disk,
            incarnation,
            identity: OnceLock::new(),
            going: AtomicBool::new(going),
            dir,
        });
        if let Some(machine) = self.machines.lock().get_mut(host) {
            machine.running = Some(Arc::clone(&running));
        }
        tokio::spawn(Arc::clone(self).live(running));
    }

    /// A member's life, as far as it shows here.
    async fn live(self: Arc<Self>, running: Arc<Running>) {
        let host = running.host();
        let living = async {
            match running.cluster.start().await {
                Ok(identity) => {
                    self.trace.event(format_args!("host {host} is node {}", identity.node));
                    drop(running.identity.set(identity));
                }
                Err(e) => return self.trace.event(format_args!("host {host} found no place: {e}")),
            }
            let failed = running.cluster.failed().await;
            let expected = running.is_going() || running.disk.has_failed();
            if !running.process.is_dead() && !expected {
                self.trace.violation(format!("host {host} failed: {failed}"));
            }
        };
        tokio::select! {
            biased;
            () = running.process.dead.cancelled() => {}
            () = living => {}
        }
    }

    fn signing_key(&self, host: Host) -> SigningKey {
        let mut of_host = Chance::new(self.seed.wrapping_mul(1000) + host as u64);
        let mut key = [0; 32];
        key.fill_with(|| of_host.number().to_le_bytes()[0]);
        SigningKey::from_bytes(&key)
    }

    /// The member that runs on a machine.
    pub(super) fn running(&self, host: Host) -> Option<Arc<Running>> {
        self.machines.lock().get(host)?.running.clone()
    }

    /// All members that run.
    pub(super) fn all(&self) -> Vec<Arc<Running>> {
        self.machines.lock().iter().filter_map(|m| m.running.clone()).collect()
    }

    /// Machines that are off and may come back.
    pub(super) fn off(&self) -> Vec<Host> {
        let machines = self.machines.lock();
        let off = machines.iter().enumerate().filter(|(_, m)| m.running.is_none() && !m.retired);
        off.map(|(host, _)| host).collect()
    }

    /// How many machines there are.
    pub(super) fn size(&self) -> Host {
        self.machines.lock().len()
    }

    /// The machine's node is asked to leave.
    pub(super) fn leaves(&self, running: &Running, node: u64) {
        running.goes();
        if let Some(machine) = self.machines.lock().get_mut(running.host()) {
            machine.leaving = Some(node);
        }
    }

    /// It was asked to leave, and may not.
    pub(super) fn stays(&self, running: &Running) {
        running.going.store(false, Ordering::Relaxed);
        if let Some(machine) = self.machines.lock().get_mut(running.host()) {
            machine.leaving = None;
        }
    }

    /// Machines whose nodes were asked to leave and may still be members.
    pub(super) fn leaving(&self) -> Vec<(Host, u64)> {
        let machines = self.machines.lock();
        let asked = machines.iter().enumerate().filter(|(_, m)| !m.retired);
        asked.filter_map(|(host, m)| Some((host, m.leaving?))).collect()
    }

    /// The machine never comes back.
    pub(super) fn retire(&self, host: Host) {
        if let Some(machine) = self.machines.lock().get_mut(host) {
            machine.retired = true;
        }
    }

    /// Ends a member from one moment to the next. `power`: its machine's end.
    pub(super) fn crash(&self, host: Host, power: bool, unsynced: Unsynced) -> bool {
        let Some(running) = self.machines.lock().get_mut(host).and_then(|m| m.running.take())
        else {
            return false;
        };
        self.trace.event(format_args!("crash {host}, power {power}, unsynced {unsynced:?}"));
        self.network.kill(&running.process, power);
        let next = self.folder.path().join(format!("{host}-{}", running.incarnation));
        if let Err(e) = running.disk.crash(&running.dir, &next, unsynced) {
            self.trace.violation(format!("the simulation cannot copy a folder: {e}"));
        }
        if let Some(machine) = self.machines.lock().get_mut(host) {
            machine.dir = next;
        }
        tokio::spawn(async move {
            running.cluster.shutdown().await;
            drop(std::fs::remove_dir_all(&running.dir));
        });
        true
    }

    /// Stops a member in good order.
    pub(super) async fn stop(&self, host: Host) -> bool {
        let Some(running) = self.running(host) else { return false };
        self.trace.event(format_args!("stop {host}"));
        running.goes();
        running.cluster.shutdown().await;
        if running.process.is_dead() {
            return false; // it crashed meanwhile
        }
        self.crash(host, false, Unsynced::Kept)
    }
}
