//! From counters and states of the node's parts to samples.
//!
//! Invariant: what a sample counts happened since the sample before, and nothing that
//! happened is left out or counted twice.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use super::{
    resources::Tracker,
    sample::{Asked, Compiles, PoolLoad, Sample},
};
use crate::{
    cache::{DiskCounters, Tiers},
    clock,
    counters::CounterSource,
    manager::{Manager, Runs},
};

/// Takes samples of one node.
pub struct Sampler {
    manager: Arc<Manager>,
    tiers: Arc<Tiers>,
    counters: Vec<Arc<dyn CounterSource>>,
    tracker: Tracker,
    before: HashMap<&'static str, u64>,
    disk: DiskCounters,
    began: Instant,
}

impl Sampler {
    /// The first sample counts from now on.
    pub fn new(
        manager: Arc<Manager>,
        tiers: Arc<Tiers>,
        counters: Vec<Arc<dyn CounterSource>>,
    ) -> Self {
        let mut sampler = Self {
            tracker: Tracker::new(tiers.clone()),
            disk: tiers.disk().counters(),
            manager,
            tiers,
            counters,
            before: HashMap::new(),
            began: Instant::now(),
        };
        sampler.before = sampler.count();
        sampler.manager.observed().take();
        sampler
    }

    fn count(&self) -> HashMap<&'static str, u64> {
        self.counters.iter().flat_map(|source| source.snapshot()).collect()
    }

    /// What happened since the last one.
    pub async fn sample(&mut self) -> Sample {
        let resources = self.tracker.look().await;
        let now = self.count();
        let before = std::mem::replace(&mut self.before, now);
        let count = |name: &str| {
            let now = self.before.get(name).copied().unwrap_or(0);
            now.saturating_sub(before.get(name).copied().unwrap_or(0))
        };
        let sum = |names: &[&str]| names.iter().map(|name| count(name)).sum();
        let disk = self.tiers.disk().counters();
        let disk_before = std::mem::replace(&mut self.disk, disk);
        let seen = self.manager.observed().take();
        let began = std::mem::replace(&mut self.began, Instant::now());
        Sample {
            unix_ms: clock::unix_ms(),
            seconds: self.began.duration_since(began).as_secs_f64().max(1e-3),
            compiles: seen
                .runs
                .into_iter()
                .map(|(of, runs)| (of.to_owned(), runs.into()))
                .collect(),
            artifacts: Asked {
                hits: sum(&["hits_memory", "hits_disk", "hits_peer", "hits_object", "coalesced"]),
                misses: count("compiled"),
            },
            values: Asked { hits: count("resp_hits"), misses: count("resp_misses") },
            timed_out: seen.timed_out,
            last_timed_out: seen.last_timed_out,
            published: seen.published,
            republished: seen.republished,
            waits: count("resp_waits"),
            wait_hits: count("resp_wait_hits"),
            corrupt: count("corrupt_copies").max(disk.corrupt - disk_before.corrupt),
            wrong: count("spot_checks_different"),
            evicted: disk.evicted - disk_before.evicted,
            disk_operations: disk.operations - disk_before.operations,
            disk_errors: disk.errors - disk_before.errors,
            pools: self.pools(),
            resources,
        }
    }

    fn pools(&self) -> BTreeMap<String, PoolLoad> {
        let pools = self.manager.compilers().pools().into_iter();
        let number = |n: usize| n as u64;
        pools
            .map(|(name, load)| {
                let load = PoolLoad {
                    workers: number(load.workers),
                    running: number(load.running),
                    waiting: number(load.waiting),
                };
                (name.name().to_owned(), load)
            })
            .collect()
    }
}

impl From<Runs> for Compiles {
    fn from(runs: Runs) -> Self {
        let Runs { seconds, succeeded, refused, broken, out_of_memory } = runs;
        Self { seconds, succeeded, refused, broken, out_of_memory }
    }
}
