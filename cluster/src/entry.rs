//! What the index says about a key and about a pack.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, Digest, Failure, NodeId, SignedManifest};
use serde::{Deserialize, Serialize};

use crate::held::Lease;

/// The artifact of a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: ArtifactKey,
    /// Counts the artifacts that the key has had, from 1.
    pub epoch: u64,
    /// What the producer signed. Verify it before giving bytes to anyone.
    #[serde(with = "crate::codec::manifest")]
    pub manifest: Arc<SignedManifest>,
    /// The blob with all files.
    pub pack: Digest,
    /// Bytes.
    pub pack_size: u64,
    /// Seconds that a hit saves.
    pub compile_seconds: f64,
    /// Whether the object store has the pack.
    pub stored: bool,
    /// Whether it is protected from eviction.
    pub pinned: bool,
    /// Nodes believed to have the pack: a hint.
    pub holders: Vec<NodeId>,
    /// Reported hits of the pack.
    pub hits: u64,
}

/// What the index knows of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobState {
    /// An entry names it.
    Referenced,
    /// It was referenced once, and may be condemned.
    Unreferenced,
    /// It will be deleted from the object store.
    Condemned,
}

/// How an acquire ended.
#[derive(Debug)]
pub enum Acquired {
    /// The key has an artifact.
    Ready(Entry),
    /// The caller compiles, and publishes or fails under this lease.
    Granted(Lease),
    /// The compile failed a while ago, and would again.
    Failed(Failure),
}

/// What a put does where the key has an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Replaces it, in a new epoch.
    Replace,
    /// Leaves it.
    Create,
}

/// How a put ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Put {
    /// This artifact is the key's.
    Committed(Entry),
    /// The key had these very bytes already.
    Unchanged(Entry),
    /// [`PutMode::Create`]: the key had other bytes already.
    Existing(Entry),
}

/// How a publication ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Published {
    /// This artifact is the key's.
    Committed(Entry),
    /// The key had one already; use that one.
    Existing(Entry),
}
