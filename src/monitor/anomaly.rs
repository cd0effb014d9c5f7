//! What is out of the ordinary.
//!
//! Invariant: a finding names the figure, what it is now and what was usual, so that
//! whoever reads it can judge it; a kind's name never changes, for alerts are named by it.

use serde::{Deserialize, Serialize};

use super::{figure::Figure, usual::Usual};

/// Kinds of what can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A compiler takes much longer than it did.
    SlowCompiles,
    /// Fewer requests are answered from the cache than before.
    FallingHitRate,
    /// The process grows, and not by what it caches.
    MemoryGrowth,
    /// The machine has hardly any memory left.
    LowMemory,
    /// Copies are not what their digest says.
    Corruption,
    /// More compiles than before fail for reasons of this node.
    FailingCompiles,
    /// Compiles pass their time limits or their callers' deadlines.
    TimeOuts,
    /// The disk tier's device is much slower than it was.
    SlowDisk,
    /// The device or its file system fails operations.
    DiskErrors,
    /// The device is almost full.
    LowDisk,
    /// Clients publish again what they had just been given.
    UnusedRestores,
    /// Every compile of a while failed for a reason of this node.
    CompilersDown,
    /// The disk tier does not work.
    CacheDown,
    /// Artifacts are not what their sources compile to.
    WrongArtifacts,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth a look in daylight.
    Warning,
    /// Somebody should look now.
    Critical,
}

/// What is wrong, of what: a kind and a compiler, a door, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// The kind.
    pub kind: Kind,
    /// Of which compiler or door; empty: of the node.
    pub of: String,
}

/// What was looked at in one cycle, and what was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// Of what.
    pub subject: Subject,
    /// `None`: it is as it should be.
    pub finding: Option<Finding>,
    /// Cycles in a row in which it must be found before it counts.
    pub confirm: u32,
}

/// Something out of the ordinary in one cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The figure that shows it.
    pub figure: Figure,
    /// What it is.
    pub now: f64,
    /// What is usual, where that matters.
    pub usual: Option<Usual>,
    /// For people.
    pub text: String,
}

/// A finding that was confirmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anomaly {
    /// What is wrong.
    pub subject: Subject,
    /// How bad it is.
    pub severity: Severity,
    /// As of the cycle in which it was found last.
    pub finding: Finding,
    /// Milliseconds since the Unix epoch at which it was confirmed.
    pub since_unix_ms: u64,
    /// Cycles in which it was found.
    pub cycles: u32,
}

impl Kind {
    /// The name in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SlowCompiles => "slow_compiles",
            Self::FallingHitRate => "falling_hit_rate",
            Self::MemoryGrowth => "memory_growth",
            Self::LowMemory => "low_memory",
            Self::Corruption => "corruption",
            Self::FailingCompiles => "failing_compiles",
            Self::TimeOuts => "time_outs",
            Self::SlowDisk => "slow_disk",
            Self::DiskErrors => "disk_errors",
            Self::LowDisk => "low_disk",
            Self::UnusedRestores => "unused_restores",
            Self::CompilersDown => "compilers_down",
            Self::CacheDown => "cache_down",
            Self::WrongArtifacts => "wrong_artifacts",
        }
    }

    /// The name of its alert.
    pub const fn alert(self) -> &'static str {
        match self {
            Self::SlowCompiles => "KilnSlowCompiles",
            Self::FallingHitRate => "KilnFallingHitRate",
            Self::MemoryGrowth => "KilnMemoryGrowth",
            Self::LowMemory => "KilnLowMemory",
            Self::Corruption => "KilnCorruption",
            Self::FailingCompiles => "KilnFailingCompiles",
            Self::TimeOuts => "KilnCompileTimeOuts",
            Self::SlowDisk => "KilnSlowDisk",
            Self::DiskErrors => "KilnDiskErrors",
            Self::LowDisk => "KilnLowDisk",
            Self::UnusedRestores => "KilnUnusedRestores",
            Self::CompilersDown => "KilnCompilersDown",
            Self::CacheDown => "KilnCacheDown",
            Self::WrongArtifacts => "KilnWrongArtifacts",
        }
    }

    /// How bad it is.
    pub const fn severity(self) -> Severity {
        match self {
            Self::Corruption
            | Self::DiskErrors
            | Self::CompilersDown
            | Self::CacheDown
            | Self::WrongArtifacts => Severity::Critical,
            _ => Severity::Warning,
        }
    }
}

impl Severity {
    /// The name in alerts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Subject {
    /// Of the node.
    pub fn node(kind: Kind) -> Self {
        Self { kind, of: String::new() }
    }

    /// Of a compiler or a door.
    pub fn of(kind: Kind, of: impl Into<String>) -> Self {
        Self { kind, of: of.into() }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.of {
            "" => f.write_str(self.kind.name()),
            of => write!(f, "{}({of})", self.kind.name()),
        }
    }
}
