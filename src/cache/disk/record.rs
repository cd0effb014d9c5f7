//! What the disk tier knows of one blob, besides its name.
//!
//! Invariant: what is learned later never makes a blob less worth keeping: a pin stays
//! until it is taken back, and a cost is not forgotten.

use kiln_proto::{Digest, PieceRef};
use serde::{Deserialize, Serialize};

use crate::cache::{Hints, Priority};

/// What the index stores about a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) compile_seconds: f64,
    pub(super) priority: Priority,
    pub(super) pinned: bool,
    pub(super) last_used_ms: u64,
}

impl Record {
    pub(super) fn new(size: u64, hints: Hints, now_ms: u64) -> Self {
        Self {
            size,
            compile_seconds: hints.compile_seconds,
            priority: hints.priority,
            pinned: hints.pinned,
            last_used_ms: now_ms,
        }
    }

    /// Better knowledge of the same blob: a pin stays, a cost is not forgotten.
    pub(super) fn merge(&mut self, hints: Hints) {
        self.compile_seconds = self.compile_seconds.max(hints.compile_seconds);
        self.priority = self.priority.max(hints.priority);
        self.pinned |= hints.pinned;
    }

    /// It was used at `now_ms`.
    pub(super) fn touch(&mut self, now_ms: u64) {
        self.last_used_ms = self.last_used_ms.max(now_ms);
    }
}

/// A blob that another one, the whole, is of no use without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Piece {
    /// Its name.
    pub pack: Digest,
    /// Bytes.
    pub size: u64,
}

impl From<&PieceRef> for Piece {
    fn from(piece: &PieceRef) -> Self {
        Self { pack: piece.pack, size: piece.pack_size }
    }
}
