//! What the optimizer may turn, and how far.
//!
//! Invariant: a level that left [`Bounds::clamp`] is within what the configuration allows;
//! no knob goes beyond what the operator configured for memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that can be set while the node runs. Levels are whole numbers in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    /// Compiles by NVRTC at once.
    CompileWorkers,
    /// Programs that Inductor compiles at once.
    PythonWorkers,
    /// Bytes of the memory tier.
    MemoryBytes,
    /// Bytes of the disk tier.
    DiskBytes,
    /// What a full disk tier gives up first: 0 by cost, 1 by last use.
    Eviction,
    /// Milliseconds that a GET waits for another client's SET.
    RespWait,
    /// Bytes of memory that one compile may have.
    CompileMemory,
    /// Not a level: quarantine is emptied and the disk tier's files are compared with its
    /// catalog.
    CleanUp,
}

/// The level of each knob of a node.
pub type Levels = BTreeMap<Knob, u64>;

/// From where to where each knob may be turned, both included. One without bounds is not
/// turned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds(pub BTreeMap<Knob, (u64, u64)>);

impl Knob {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CompileWorkers => "compile_workers",
            Self::PythonWorkers => "python_workers",
            Self::MemoryBytes => "memory_bytes",
            Self::DiskBytes => "disk_bytes",
            Self::Eviction => "eviction",
            Self::RespWait => "resp_wait",
            Self::CompileMemory => "compile_memory",
            Self::CleanUp => "clean_up",
        }
    }

    /// The knob of the pool of that name.
    pub fn of_pool(pool: &str) -> Option<Self> {
        match pool {
            "nvrtc" => Some(Self::CompileWorkers),
            "python" => Some(Self::PythonWorkers),
            _ => None,
        }
    }

    /// A level, for people.
    pub fn show(self, level: u64) -> String {
        match self {
            Self::MemoryBytes | Self::DiskBytes | Self::CompileMemory => {
                bytesize::ByteSize(level).display().iec().to_string()
            }
            Self::Eviction if level == 0 => "cost".into(),
            Self::Eviction => "lru".into(),
            Self::RespWait => {
                humantime::format_duration(std::time::Duration::from_millis(level)).to_string()
            }
            Self::CompileWorkers | Self::PythonWorkers => level.to_string(),
            Self::CleanUp => "-".into(),
        }
    }
}

impl Bounds {
    /// The level nearest to `level` that is allowed; `None`: the knob is not to be turned.
    pub fn clamp(&self, knob: Knob, level: u64) -> Option<u64> {
        let (least, most) = *self.0.get(&knob)?;
        Some(level.clamp(least, most.max(least)))
    }
}
