//! A simulated node under load: a day's rhythm, noise with long tails, and planted faults.
//!
//! Invariant: all chance comes from the seed.

use std::{collections::BTreeMap, f64::consts::TAU};

use kiln_proto::numbers::Numbers;

use super::{
    knob::{Knob, Levels},
    optimizer::Change,
    sample::{Asked, Compiles, PoolLoad, Resources, Sample},
    usual::median,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Cycles of a minute in a day.
pub(super) const DAY: u64 = 24 * 60;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    SlowDisk,
    FallingHitRate,
    Leak,
    Corruption,
    WrongArtifacts,
    UnusedRestores,
    SlowCompiles,
    FailingCompiles,
    DiskErrors,
    TimeOuts,
}

/// What more workers do to a queue of compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum World {
    /// There is no queue.
    Idle,
    /// They shorten it.
    Helps,
    /// They fight for what is short, and it grows.
    Harms,
}

pub(super) struct Node {
    chance: Chance,
    minute: u64,
    phase: f64,
    drift: f64,
    held: f64,
    leaked: u64,
    pub(super) fault: Option<Fault>,
    pub(super) world: World,
    pub(super) levels: Levels,
}

impl Node {
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = Chance(Numbers::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        let phase = chance.unit() * TAU;
        let levels = Levels::from([
            (Knob::CompileWorkers, 4),
            (Knob::MemoryBytes, GIB),
            (Knob::DiskBytes, 20 * GIB),
            (Knob::Eviction, 0),
            (Knob::RespWait, 120_000),
            (Knob::CompileMemory, 8 * GIB),
        ]);
        let (fault, world) = (None, World::Idle);
        Self { chance, minute: 0, phase, drift: 0.0, held: 0.0, leaked: 0, fault, world, levels }
    }

    pub(super) fn turn(&mut self, change: Change) {
        self.levels.insert(change.knob, change.to);
    }

    /// Whether it is day.
    pub(super) fn is_busy(&self) -> bool {
        (TAU * self.minute as f64 / DAY as f64 + self.phase).sin() > 0.5
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// The next minute.
    pub(super) fn minute(&mut self) -> Sample {
        self.minute += 1;
        let day = TAU * self.minute as f64 / DAY as f64 + self.phase;
        // From a fifth of the usual load at night to nearly twice of it.
        let load = (1.0 + 0.8 * day.sin()) * self.chance.about(1.0, 0.1);
        self.drift = 0.98 * self.drift + 0.004 * self.chance.normal();
        let artifacts = self.asked(60.0 * load, 0.93);
        let values = self.asked(600.0 * load, 0.9);
        let compiles = self.compiles(artifacts.misses);
        let published = values.misses * 9 / 10;
        let again = if self.is(Fault::UnusedRestores) { 0.8 } else { 0.02 };
        let republished = self.chance.of(published, again);
        let waits = self.chance.of(values.misses, 0.1);
        Sample {
            unix_ms: self.minute * 60_000,
            seconds: 60.0,
            compiles,
            artifacts,
            values,
            timed_out: u64::from(self.is(Fault::TimeOuts)),
            last_timed_out: String::new(),
            published,
            republished,
            wait_hits: self.chance.of(waits, 0.8),
            waits,
            corrupt: u64::from(self.is(Fault::Corruption)),
            wrong: u64::from(self.is(Fault::WrongArtifacts)),
            evicted: self.chance.of(20, 0.1 * load),
            disk_operations: values.misses * 2 + 3,
            disk_errors: if self.is(Fault::DiskErrors) { values.misses } else { 0 },
            pools: BTreeMap::from([("nvrtc".into(), self.pool())]),
            resources: self.resources(load),
        }
    }

    fn asked(&mut self, about: f64, share: f64) -> Asked {
        let all = self.chance.about(about, 0.15).max(0.0) as u64;
        let share = if self.is(Fault::FallingHitRate) { 0.35 } else { share + self.drift };
        let hits = self.chance.of(all, share.clamp(0.0, 0.995));
        Asked { hits, misses: all - hits }
    }

    fn compiles(&mut self, misses: u64) -> BTreeMap<String, Compiles> {
        let slower = if self.is(Fault::SlowCompiles) { 12.0 } else { 1.0 };
        let breaks = if self.is(Fault::FailingCompiles) { 0.9 } else { 0.01 };
        // In the night there are few, and still some.
        let runs = misses + 2;
        let mut all = BTreeMap::new();
        for (compiler, seconds, spread, share) in
            [("cuda", 0.3, 0.9, 0.6), ("native", 4.0, 0.7, 0.4)]
        {
            let runs = (runs as f64 * share).ceil() as u64;
            let refused = self.chance.of(runs, 0.03);
            let broken = self.chance.of(runs - refused, breaks);
            let succeeded = runs - refused - broken;
            let took = |_| slower * seconds * (spread * self.chance.normal()).exp();
            let seconds = (0..succeeded).map(took).collect();
            let of = Compiles { seconds, succeeded, refused, broken, out_of_memory: 0 };
            all.insert(compiler.to_owned(), of);
        }
        all
    }

    fn pool(&mut self) -> PoolLoad {
        let workers = self.levels[&Knob::CompileWorkers];
        let waiting = match self.world {
            World::Idle => return PoolLoad { workers, running: 1, waiting: 0 },
            World::Helps => 12u64.saturating_sub(2 * workers),
            World::Harms => 4 + 3 * workers.saturating_sub(4),
        };
        let noise = self.chance.about(0.0, 0.5).round() as i64;
        PoolLoad { workers, running: workers, waiting: waiting.saturating_add_signed(noise) }
    }

    fn resources(&mut self, load: f64) -> Resources {
        // Allocators keep what they had, and give some of it back now and then.
        self.held = (self.held * 0.99).max(60.0 * load * self.chance.about(1.0, 0.05));
        if self.is(Fault::Leak) {
            self.leaked += 96 * MIB;
        }
        let own = 300.0 + self.held + self.chance.about(0.0, 4.0);
        let blobs = (GIB as f64 * (0.5 + 0.25 * load)).min(GIB as f64) as u64;
        let slower = if self.is(Fault::SlowDisk) { 40.0 } else { 1.0 };
        let probe = |chance: &mut Chance| {
            let hiccup = if chance.unit() < 0.01 { 30.0 } else { 1.0 };
            0.004 * (0.4 * chance.normal()).exp() * hiccup * slower
        };
        let disk = median(&[(); 3].map(|()| probe(&mut self.chance)));
        Resources {
            cpu: Some((0.1 + 0.3 * load + 0.05 * self.chance.normal()).clamp(0.0, 1.0)),
            memory_bytes: Some(16 * GIB),
            memory_free: Some((9.0 * GIB as f64 - load * GIB as f64) as u64),
            resident: Some(blobs + own as u64 * MIB + self.leaked),
            blobs,
            disk_bytes: Some(100 * GIB),
            disk_free: Some(60 * GIB - (self.minute % 1000) * 10 * MIB),
            disk_seconds: disk,
            network: Some(1e6 * load),
            gpus: Vec::new(),
        }
    }
}

/// What happens by chance.
struct Chance(Numbers);

impl Chance {
    fn unit(&mut self) -> f64 {
        self.0.unit()
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }

    fn about(&mut self, mean: f64, spread: f64) -> f64 {
        match mean {
            0.0 => spread * self.normal(),
            mean => mean * (1.0 + spread * self.normal()),
        }
    }

    /// How many of `all` do what each does with this probability.
    fn of(&mut self, all: u64, probability: f64) -> u64 {
        let mean = all as f64 * probability;
        if mean > 30.0 && all as f64 - mean > 30.0 {
            let spread = (mean * (1.0 - probability)).sqrt();
            return (mean + spread * self.normal()).round().clamp(0.0, all as f64) as u64;
        }
        (0..all).filter(|_| self.unit() < probability).count() as u64
    }
}
