//! Figures: what of a sample is followed over time.
//!
//! Invariant: one table says of each figure which way is better and what change people
//! would notice; detectors and the optimizer judge by it and by nothing else.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::sample::{Asked, Sample};

/// Something that is followed over time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Median seconds of a compiler's runs.
    CompileSeconds(String),
    /// Share of requests for artifacts that were answered from the cache.
    ArtifactHits,
    /// The same of Redis clients' keys.
    ValueHits,
    /// Share of compiles that failed for a reason of this node.
    Failures,
    /// Compiles that memory did not suffice for, per cycle.
    OutOfMemory,
    /// Compiles that passed a time limit or a deadline, per cycle.
    TimeOuts,
    /// Seconds of a small durable write and read.
    DiskSeconds,
    /// Resident bytes beside the blobs.
    OwnMemory,
    /// Share of the memory that is to be had.
    FreeMemory,
    /// Share of the device that is free.
    FreeDisk,
    /// Share of all cores that is busy.
    Cpu,
    /// Bytes per second.
    Network,
    /// Compiles that wait for a worker of a pool.
    Waiting(String),
    /// Blobs per second that made room for others.
    Evictions,
    /// Share of publications of keys that had just been given out.
    UnusedRestores,
    /// Share of waits for another client that got a value.
    WaitYield,
    /// Corrupt copies per cycle.
    Corrupt,
    /// Share of disk operations that failed.
    DiskErrors,
    /// Artifacts per cycle that are not what their sources compile to.
    WrongArtifacts,
}

/// Which way a figure should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Up.
    Higher,
    /// Down.
    Lower,
}

/// A figure's value in one cycle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Value {
    /// In the figure's unit.
    pub value: f64,
    /// How much it rests on: compiles, requests; 1 for what is measured once.
    pub weight: f64,
}

impl Figure {
    /// Which way is better.
    pub const fn better(&self) -> Better {
        match self {
            Self::ArtifactHits
            | Self::ValueHits
            | Self::FreeMemory
            | Self::FreeDisk
            | Self::WaitYield => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// A change of at least this is one that people would notice, from a level of `usual`.
    pub fn noticeable(&self, usual: f64) -> f64 {
        match self {
            Self::ArtifactHits | Self::ValueHits | Self::WaitYield => 0.03,
            Self::Failures | Self::UnusedRestores | Self::DiskErrors => 0.05,
            Self::FreeMemory | Self::FreeDisk | Self::Cpu => 0.02,
            Self::Waiting(_)
            | Self::OutOfMemory
            | Self::TimeOuts
            | Self::Corrupt
            | Self::WrongArtifacts => 0.5_f64.max(usual.abs() / 10.0),
            Self::CompileSeconds(_) | Self::DiskSeconds => (usual.abs() / 10.0).max(1e-3),
            Self::OwnMemory | Self::Network | Self::Evictions => usual.abs() / 10.0,
        }
    }

    /// What a value has to rest on to say something: requests, compiles.
    pub const fn least(&self) -> f64 {
        match self {
            Self::ArtifactHits | Self::ValueHits => 30.0,
            Self::WaitYield => 10.0,
            Self::UnusedRestores => 8.0,
            Self::Failures => 5.0,
            Self::CompileSeconds(_) | Self::DiskErrors => 3.0,
            _ => 1.0,
        }
    }

    /// Whether its values are shares, which say more the more they rest on.
    pub const fn is_share(&self) -> bool {
        matches!(
            self,
            Self::ArtifactHits
                | Self::ValueHits
                | Self::Failures
                | Self::UnusedRestores
                | Self::WaitYield
                | Self::DiskErrors
        )
    }

    /// The unit in reports.
    pub const fn unit(&self) -> &'static str {
        match self {
            Self::CompileSeconds(_) | Self::DiskSeconds => "s",
            Self::OwnMemory => "bytes",
            Self::Network => "bytes/s",
            Self::Evictions => "1/s",
            Self::Waiting(_)
            | Self::OutOfMemory
            | Self::TimeOuts
            | Self::Corrupt
            | Self::WrongArtifacts => "",
            _ => "share",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::CompileSeconds(compiler) => return write!(f, "compile_seconds.{compiler}"),
            Self::Waiting(pool) => return write!(f, "compiles_waiting.{pool}"),
            Self::ArtifactHits => "artifact_hit_rate",
            Self::ValueHits => "value_hit_rate",
            Self::Failures => "failure_rate",
            Self::OutOfMemory => "out_of_memory",
            Self::TimeOuts => "time_outs",
            Self::DiskSeconds => "disk_seconds",
            Self::OwnMemory => "own_memory",
            Self::FreeMemory => "free_memory",
            Self::FreeDisk => "free_disk",
            Self::Cpu => "cpu",
            Self::Network => "network",
            Self::Evictions => "evictions",
            Self::UnusedRestores => "unused_restores",
            Self::WaitYield => "wait_yield",
            Self::Corrupt => "corrupt_copies",
            Self::DiskErrors => "disk_errors",
            Self::WrongArtifacts => "wrong_artifacts",
        };
        f.write_str(name)
    }
}

/// The figures of a sample: those of which it says something.
pub(super) fn figures(sample: &Sample) -> BTreeMap<Figure, Value> {
    let mut all = BTreeMap::new();
    let mut once = |figure, value: f64| {
        if value.is_finite() {
            all.insert(figure, Value { value, weight: 1.0 });
        }
    };
    let resources = &sample.resources;
    let share =
        |part: Option<u64>, of: Option<u64>| Some(part? as f64 / of.filter(|of| *of > 0)? as f64);
    let machine = [
        (Figure::Cpu, resources.cpu),
        (Figure::Network, resources.network),
        (Figure::DiskSeconds, resources.disk_seconds),
        (Figure::OwnMemory, resources.own_bytes().map(|bytes| bytes as f64)),
        (Figure::FreeMemory, share(resources.memory_free, resources.memory_bytes)),
        (Figure::FreeDisk, share(resources.disk_free, resources.disk_bytes)),
    ];
    for (figure, value) in machine {
        if let Some(value) = value {
            once(figure, value);
        }
    }
    once(Figure::Evictions, sample.evicted as f64 / sample.seconds);
    once(Figure::Corrupt, sample.corrupt as f64);
    once(Figure::WrongArtifacts, sample.wrong as f64);
    once(Figure::TimeOuts, sample.timed_out as f64);
    for (pool, load) in &sample.pools {
        once(Figure::Waiting(pool.clone()), load.waiting as f64);
    }
    let all_compiles = || sample.compiles.values();
    once(Figure::OutOfMemory, all_compiles().map(|of| of.out_of_memory).sum::<u64>() as f64);

    let mut rate = |figure, part: u64, of: u64| {
        if of > 0 {
            let value = part as f64 / of as f64;
            all.insert(figure, Value { value, weight: of as f64 });
        }
    };
    let mut hits = |figure, asked: Asked| rate(figure, asked.hits, asked.all());
    hits(Figure::ArtifactHits, sample.artifacts);
    hits(Figure::ValueHits, sample.values);
    rate(Figure::UnusedRestores, sample.republished, sample.published);
    rate(Figure::WaitYield, sample.wait_hits, sample.waits);
    rate(Figure::DiskErrors, sample.disk_errors, sample.disk_operations);
    let broken = all_compiles().map(|of| of.broken + of.out_of_memory).sum();
    rate(Figure::Failures, broken, all_compiles().map(|of| of.judged()).sum());
    for (compiler, compiles) in &sample.compiles {
        if let Some(value) = super::usual::median(&compiles.seconds) {
            let weight = compiles.seconds.len() as f64;
            all.insert(Figure::CompileSeconds(compiler.clone()), Value { value, weight });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::Compiles;

    #[test]
    fn what_a_sample_does_not_say_is_no_figure() {
        let found = figures(&Sample { seconds: 60.0, ..Sample::default() });
        assert!(!found.contains_key(&Figure::ArtifactHits), "nobody asked");
        assert!(!found.contains_key(&Figure::DiskSeconds), "nobody looked");
        assert_eq!(found[&Figure::Corrupt].value, 0.0);
    }

    #[test]
    fn a_request_that_no_node_could_serve_is_no_failure_of_this_one() {
        let compiles = Compiles { succeeded: 3, refused: 100, broken: 1, ..Compiles::default() };
        let compiles = BTreeMap::from([("cuda".to_owned(), compiles)]);
        let found = figures(&Sample { seconds: 1.0, compiles, ..Sample::default() });
        assert_eq!(found[&Figure::Failures], Value { value: 0.25, weight: 4.0 });
    }
}
