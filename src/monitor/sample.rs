//! What one cycle saw: differences of counters, and figures of the machine.
//!
//! Invariant: a sample has no clock and no handle in it, so that a recorded one and a
//! simulated one are judged exactly as one of a running node. Counts are of this cycle
//! alone; a count that the node cannot know is absent, never nought.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One cycle of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Milliseconds since the Unix epoch at its end. For people: nothing is judged by it.
    pub unix_ms: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// What ran in compiler processes, by compiler.
    pub compiles: BTreeMap<String, Compiles>,
    /// Requests for artifacts that Kiln compiles.
    pub artifacts: Asked,
    /// Keys that Redis clients asked for.
    pub values: Asked,
    /// Compiles that passed a time limit or their caller's deadline.
    pub timed_out: u64,
    /// The last one of these. For people: nothing is judged by it.
    pub last_timed_out: String,
    /// Publications, and those of keys that clients had been given a moment before.
    pub published: u64,
    /// Of these, what came again although it had just been given out.
    pub republished: u64,
    /// GETs that waited for another client's SET.
    pub waits: u64,
    /// Of these, those that got a value.
    pub wait_hits: u64,
    /// Copies that were not what their digest says.
    pub corrupt: u64,
    /// Artifacts that are not what their sources compile to.
    pub wrong: u64,
    /// Blobs that made room for others on the disk.
    pub evicted: u64,
    /// Operations of the disk tier, and of the probe of its disk.
    pub disk_operations: u64,
    /// Of these, those that the device or its file system failed.
    pub disk_errors: u64,
    /// Compiler processes by pool.
    pub pools: BTreeMap<String, PoolLoad>,
    /// The machine.
    pub resources: Resources,
}

/// Runs of one compiler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compiles {
    /// Seconds of each that ended well; a fair part of them where there were very many.
    pub seconds: Vec<f64>,
    /// How many ended well.
    pub succeeded: u64,
    /// Failed as they would on any node.
    pub refused: u64,
    /// Failed for a reason of this node: crashed, timed out, no toolchain.
    pub broken: u64,
    /// Failed for want of memory.
    pub out_of_memory: u64,
}

/// Questions to a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// Answered from what was there.
    pub hits: u64,
    /// Not.
    pub misses: u64,
}

/// How busy a pool of compiler processes is at the end of the cycle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolLoad {
    /// Most at once.
    pub workers: u64,
    /// At work.
    pub running: u64,
    /// Waiting for a worker.
    pub waiting: u64,
}

/// The machine, or the container that the node has of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Share of all cores that was busy, 0 to 1.
    pub cpu: Option<f64>,
    /// Bytes of memory, and of these what is to be had.
    pub memory_bytes: Option<u64>,
    /// Available bytes.
    pub memory_free: Option<u64>,
    /// Resident bytes of this process.
    pub resident: Option<u64>,
    /// Bytes of blobs in sealed memory, which the budget bounds.
    pub blobs: u64,
    /// Bytes of the device below the disk tier.
    pub disk_bytes: Option<u64>,
    /// Of these, what is free for this user.
    pub disk_free: Option<u64>,
    /// Seconds to write, sync, read and remove a small file there. Of a probe that has not
    /// ended: what it took so far.
    pub disk_seconds: Option<f64>,
    /// Bytes per second, received and sent.
    pub network: Option<f64>,
    /// Where the machine has any.
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// Its position.
    pub index: u32,
    /// Share of the time that kernels ran, 0 to 1.
    pub busy: f64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes in use.
    pub memory_used: u64,
}

impl Asked {
    /// Both.
    pub const fn all(self) -> u64 {
        self.hits + self.misses
    }
}

impl Compiles {
    /// All that ran, without those that their request is to blame for.
    pub const fn judged(&self) -> u64 {
        self.succeeded + self.broken + self.out_of_memory
    }
}

impl Resources {
    /// Resident bytes beside the blobs: what grows when memory leaks.
    pub fn own_bytes(&self) -> Option<u64> {
        self.resident.map(|resident| resident.saturating_sub(self.blobs))
    }
}
