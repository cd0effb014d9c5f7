//! What every cache level offers, and what can go wrong in one.
//!
//! Invariant: a [`Blob`] that a tier returns was hashed after it was read, so a
//! tier never has to be trusted, only asked.

use std::{fmt, io};

use async_trait::async_trait;
use kiln_proto::Digest;
use serde::{Deserialize, Serialize};

use super::{Blob, BlobError};

/// One cache level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TierName {
    /// L1: sealed memory of this process.
    Memory,
    /// L2: files of this node.
    Disk,
    /// L3: an object store or a shared folder.
    Object,
}

impl TierName {
    /// The name in metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Object => "object",
        }
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much a blob is wanted, besides how often it is used. A lower class is
/// evicted before a higher one, whatever their other merits.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Goes first.
    Low,
    /// What nobody said anything about.
    #[default]
    Normal,
    /// Goes last.
    High,
}

/// What eviction knows about a blob.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Hints {
    /// Seconds of compilation that a hit saves.
    pub compile_seconds: f64,
    /// Its class.
    pub priority: Priority,
    /// Never evicted.
    pub pinned: bool,
}

/// What a node knows about having a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It has it, as far as is known without reading it.
    Here,
    /// It does not have it: proven.
    Absent,
    /// It is being written, or its file waits to be verified: ask again.
    Unknown,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was here and is no more.
    Removed,
    /// It was not here.
    NotHere,
    /// Somebody who put it relies on it: it stays.
    Guarded,
    /// The reason to remove it no longer holds: it stays.
    Needed,
}

/// A blob that a node's memory or disk has, or has no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is here now.
    Gained(Digest),
    /// It is gone: evicted, removed, corrupt or missing.
    Lost(Digest),
}

/// The index failed what a keeper of L3 asked of it: it is asked again later.
pub type IndexError = Box<dyn std::error::Error + Send + Sync>;

/// How full a tier is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes held.
    pub bytes: u64,
    /// Blobs held.
    pub entries: u64,
    /// Most bytes; `None` where the tier has no bound of its own.
    pub capacity_bytes: Option<u64>,
}

/// Whether a tier does its work at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The last operation went well, or there was none.
    Up,
    /// Operations fail; the node goes on without this tier.
    Down {
        /// The last error.
        why: String,
    },
}

/// What a tier could not do. All of them leave the caller the same way out, the
/// next tier or a peer; the variants say what else to do.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// No room, and nothing that may be evicted: go on without this tier.
    #[error("{tier} tier: no room for {bytes} bytes: {why}")]
    Full {
        /// The tier.
        tier: TierName,
        /// What was asked for.
        bytes: u64,
        /// What is in the way.
        why: String,
    },
    /// The copy here was not what its name says and is no longer offered: fetch
    /// another one.
    #[error("{tier} tier: the copy of {digest} is corrupt: {why}")]
    Corrupt {
        /// The tier.
        tier: TierName,
        /// The blob.
        digest: Digest,
        /// What gave it away.
        why: String,
    },
    /// The tier does not answer: go on without it, it is asked again later.
    #[error("{tier} tier is unavailable: {why}")]
    Unavailable {
        /// The tier.
        tier: TierName,
        /// The last error.
        why: String,
    },
    /// The device failed: go on without this tier and look at the device.
    #[error("{tier} tier: {action}: {source}")]
    Io {
        /// The tier.
        tier: TierName,
        /// What was being done.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// This process has no memory or descriptors left for the bytes: shed load.
    #[error("{tier} tier: {source}")]
    Memory {
        /// The tier.
        tier: TierName,
        /// The cause.
        source: BlobError,
    },
    /// The tier cannot be opened as configured: change the settings.
    #[error("{tier} tier: {why}")]
    Settings {
        /// The tier.
        tier: TierName,
        /// What to change.
        why: String,
    },
}

impl TierError {
    /// The tier that it happened in.
    pub const fn tier(&self) -> TierName {
        match self {
            Self::Full { tier, .. }
            | Self::Corrupt { tier, .. }
            | Self::Unavailable { tier, .. }
            | Self::Io { tier, .. }
            | Self::Memory { tier, .. }
            | Self::Settings { tier, .. } => *tier,
        }
    }

    /// The kind, for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::Corrupt { .. } => "corrupt",
            Self::Unavailable { .. } => "unavailable",
            Self::Io { .. } => "io",
            Self::Memory { .. } => "memory",
            Self::Settings { .. } => "settings",
        }
    }

    /// A disk error: a device without room is [`TierError::Full`].
    pub(super) fn disk(action: &'static str, bytes: u64, source: io::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let tier = TierName::Disk;
        match source.kind() {
            StorageFull | QuotaExceeded => Self::Full { tier, bytes, why: source.to_string() },
            _ => Self::Io { tier, action, source },
        }
    }
}

/// One level of the cache: blobs by digest.
#[async_trait]
pub trait Tier: Send + Sync {
    /// Which one.
    fn name(&self) -> TierName;

    /// The verified blob, or `None` when it is not here. Counts as a use.
    async fn get(&self, digest: &Digest) -> Result<Option<Blob>, TierError>;

    /// Keeps `blob`, evicting others where room is short. Keeping what is here
    /// already changes nothing but its hints.
    async fn put(&self, blob: &Blob, hints: Hints) -> Result<(), TierError>;

    /// Forgets a blob, pinned or not; whether it was here. One that is guarded stays.
    async fn remove(&self, digest: &Digest) -> Result<bool, TierError>;

    /// Whether the blob is here, as far as is known without reading it.
    async fn contains(&self, digest: &Digest) -> Result<bool, TierError>;

    /// How full it is.
    fn usage(&self) -> Usage;
}
