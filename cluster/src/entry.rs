//! What the index says about a key and about a pack.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, Digest, NodeId, SignedManifest};
use serde::{Deserialize, Serialize};

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
    /// Which of the pack's objects in the object store is meant; see [`PackState`].
    pub generation: u64,
    /// Seconds that a hit saves.
    pub compile_seconds: f64,
    /// Whether the object store has the pack.
    pub stored: bool,
    /// Whether it is protected from eviction.
    pub pinned: bool,
    /// Nodes believed to have the pack: a hint.
    pub holders: Vec<NodeId>,
    /// How often the key's artifact was used, as reported. Only where entries are scanned:
    /// a look-up leaves it out, which [`crate::Index::usage`] answers.
    pub hits: u64,
    /// When it was last reported as used, in Unix milliseconds; 0: never, or a look-up.
    /// Nodes of earlier versions send entries to each other without it.
    #[serde(skip)]
    pub last_used_unix_ms: u64,
}

/// How often the artifact of a key was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Reported uses by clients, of all nodes.
    pub hits: u64,
    /// When the last ones were reported, in Unix milliseconds by the leader's clock.
    pub last_unix_ms: u64,
}

/// What the index knows of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackState {
    /// Part of the name of its object in the object store. A pack that is published
    /// again after it was condemned has another, so that whoever deletes the
    /// condemned object, however late, deletes nothing that is referred to.
    pub generation: u64,
    /// Whether an entry names it.
    pub named: bool,
    /// Whether an entry or an open lease refers to it.
    pub referenced: bool,
    /// Whether its object is about to be deleted.
    pub condemned: bool,
    /// Whether its object is in the object store.
    pub stored: bool,
}

/// How a retirement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// The epoch is over: this call ended it, or something else did before.
    Over,
    /// A place that may have the bytes was not asked: they are unreachable, not absent.
    NotProven,
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
    /// A later write of this node took its place before it was committed.
    Superseded,
}

/// How a publication ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Published {
    /// This artifact is the key's.
    Committed(Entry),
    /// The key had one already; use that one.
    Existing(Entry),
}
