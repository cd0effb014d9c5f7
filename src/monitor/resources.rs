//! What the machine, or the container that this node has of it, does.
//!
//! Invariant: a look never waits for a disk or for a driver longer than its bound; what
//! cannot be seen here is absent. A disk that hangs shows as one that took so long.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sysinfo::{Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::{process::Command, task::JoinSet, time::timeout};

use super::{
    sample::{Gpu, Resources},
    usual::median,
};
use crate::cache::Tiers;

/// Probes of the disk in one look; their median counts.
const PROBES: usize = 3;
/// How long a look waits for them.
const PATIENCE: Duration = Duration::from_secs(5);
/// There where the machine has NVIDIA's driver.
const DRIVER: &str = "/proc/driver/nvidia/version";

/// Looks at the machine, and remembers what it needs for differences.
pub(super) struct Tracker {
    system: System,
    networks: Networks,
    looked: Instant,
    tiers: Arc<Tiers>,
    probes: JoinSet<()>,
    probing: Arc<Mutex<Probing>>,
}

#[derive(Default)]
struct Probing {
    began: Option<Instant>,
    seconds: Vec<f64>,
    disk: Option<(u64, u64)>,
}

impl Tracker {
    pub(super) fn new(tiers: Arc<Tiers>) -> Self {
        let mut system = System::new();
        system.refresh_cpu_usage();
        Self {
            system,
            networks: Networks::new_with_refreshed_list(),
            looked: Instant::now(),
            tiers,
            probes: JoinSet::new(),
            probing: Arc::default(),
        }
    }

    /// One look.
    pub(super) async fn look(&mut self) -> Resources {
        let disk = self.disk();
        let (disk, gpus) = tokio::join!(disk, gpus());
        let seconds = self.looked.elapsed().as_secs_f64();
        self.looked = Instant::now();
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        self.networks.refresh(true);
        let moved: u64 =
            self.networks.values().map(|card| card.received() + card.transmitted()).sum();
        let (memory_bytes, memory_free) = self.memory();
        Resources {
            cpu: Some(f64::from(self.system.global_cpu_usage()) / 100.0),
            memory_bytes: Some(memory_bytes),
            memory_free: Some(memory_free),
            resident: self.resident(),
            blobs: self.tiers.budget().in_use(),
            disk_bytes: disk.1.map(|(all, _)| all),
            disk_free: disk.1.map(|(_, free)| free),
            disk_seconds: disk.0,
            network: (seconds > 0.0).then(|| moved as f64 / seconds),
            gpus,
        }
    }

    /// Of the container, where that has less than the machine.
    fn memory(&self) -> (u64, u64) {
        let machine = (self.system.total_memory(), self.system.available_memory());
        match self.system.cgroup_limits() {
            Some(of) if of.total_memory > 0 && of.total_memory < machine.0 => {
                (of.total_memory, of.free_memory.min(machine.1))
            }
            _ => machine,
        }
    }

    fn resident(&mut self) -> Option<u64> {
        let pid = Pid::from_u32(std::process::id());
        let what = ProcessRefreshKind::nothing().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
        self.system.process(pid).map(sysinfo::Process::memory)
    }

    /// Seconds of a probe, and bytes of the device with what is free of them.
    async fn disk(&mut self) -> (Option<f64>, Option<(u64, u64)>) {
        if self.probes.is_empty() {
            *self.probing.lock() = Probing { began: Some(Instant::now()), ..Probing::default() };
            let (tiers, probing) = (self.tiers.clone(), self.probing.clone());
            self.probes.spawn(async move {
                for _ in 0..PROBES {
                    // An error is counted by the tier.
                    if let Ok(took) = tiers.disk().probe().await {
                        probing.lock().seconds.push(took.as_secs_f64());
                    }
                }
                probing.lock().disk = tiers.disk().device_bytes().await.ok();
            });
        }
        let ended = timeout(PATIENCE, self.probes.join_next()).await.is_ok();
        let probing = self.probing.lock();
        let so_far = probing.began.map(|began| began.elapsed().as_secs_f64());
        let seconds = if ended { median(&probing.seconds) } else { so_far };
        (seconds, probing.disk)
    }
}

/// The GPUs of this machine, as NVIDIA's own tool tells of them: no driver is loaded into
/// this process.
async fn gpus() -> Vec<Gpu> {
    if !Path::new(DRIVER).exists() {
        return Vec::new();
    }
    let mut asking = Command::new("nvidia-smi");
    asking
        .arg("--query-gpu=index,utilization.gpu,memory.total,memory.used")
        .arg("--format=csv,noheader,nounits")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    match timeout(PATIENCE, asking.output()).await {
        Ok(Ok(output)) => parse(&String::from_utf8_lossy(&output.stdout)),
        _ => Vec::new(),
    }
}

/// `0, 37, 81559, 1024` a line: percent and MiB.
fn parse(text: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [index, busy, all, used] = fields[..] else { return None };
        let bytes = |mib: &str| Some(mib.parse::<u64>().ok()? << 20);
        Some(Gpu {
            index: index.parse().ok()?,
            // `[N/A]` on what is cut into instances.
            busy: busy.parse::<f64>().unwrap_or(0.0) / 100.0,
            memory_bytes: bytes(all)?,
            memory_used: bytes(used)?,
        })
    };
    text.lines().filter_map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tool_prints_is_read_and_what_it_does_not_know_is_left_out() {
        let gpus = parse("0, 37, 81559, 1024\n1, [N/A], 81559, 0\nNo devices were found\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!((gpus[0].busy, gpus[0].memory_used), (0.37, 1 << 30));
        assert_eq!(gpus[1].busy, 0.0);
    }
}
