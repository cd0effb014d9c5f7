//! What a replica tells of the changes that it applied.
//!
//! Invariant: an event is told after the state has what it tells. It may be missed by a
//! subscriber that is slow, who then looks at the state.

use kiln_proto::{ArtifactKey, Digest};

/// A change of the index, as this node's replica applied it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexEvent {
    /// A key has an artifact.
    Published {
        /// The key.
        key: ArtifactKey,
        /// Its pack.
        pack: Digest,
    },
    /// The compile of a key failed in a way that is remembered:
    /// see [`Index::failure`](crate::Index::failure).
    Failed {
        /// The key.
        key: ArtifactKey,
    },
    /// A key's artifact was wrong and is gone: drop it everywhere.
    Tombstoned {
        /// The key.
        key: ArtifactKey,
        /// The pack that it had.
        pack: Digest,
    },
    /// A key has another artifact than before; its publication is told as well.
    Replaced {
        /// The key.
        key: ArtifactKey,
        /// The pack that it had.
        pack: Digest,
    },
    /// A key was pinned or unpinned.
    Pinned {
        /// The key.
        key: ArtifactKey,
        /// Whether it is pinned now.
        pinned: bool,
    },
    /// A pack's bytes are in the object store.
    Stored {
        /// The pack.
        pack: Digest,
    },
    /// A pack will be deleted from the object store.
    Condemned {
        /// The pack.
        pack: Digest,
    },
    /// A condemned pack is deleted.
    Forgotten {
        /// The pack.
        pack: Digest,
    },
    /// A compile waits for pieces: see [`Index::wanted`](crate::Index::wanted).
    Wanted {
        /// The key of the artifact that is stitched of them.
        whole: ArtifactKey,
    },
    /// A wanted piece can be taken: its lease ended without an artifact, its failure was
    /// lifted, or its artifact is gone.
    Free {
        /// The piece.
        key: ArtifactKey,
    },
    /// A token was made, used or revoked, or what joining takes was changed.
    TokensChanged,
    /// The root said something.
    TrustChanged,
    /// The membership or a node's facts changed.
    NodesChanged,
    /// The replica took over a whole state: anything may have changed.
    Reset,
}
