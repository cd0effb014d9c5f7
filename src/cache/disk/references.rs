//! Which blobs are wholes, and of which pieces: in memory, without I/O.
//!
//! Invariant: a piece is held by each whole that refers to it and is here, at the
//! standing that the whole has now; there are at most `most` references; no piece is a
//! whole, so that a standing is handed down once and never in a circle.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use kiln_proto::{Digest, MAX_PIECES};

use super::record::Piece;
use crate::cache::eviction::Rank;

/// Pieces of one whole's bytes. Artifacts for several targets may have the same
/// stitching, and so one pack, over other pieces each.
const MOST_OF_ONE: usize = 4 * MAX_PIECES;

/// How much a blob is wanted where it lies: the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Standing {
    /// It may not be evicted at all.
    pub(super) fixed: bool,
    /// L3 does not have it.
    pub(super) only_copy: bool,
    pub(super) rank: Rank,
}

/// What became of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Referred {
    /// It was known.
    Known,
    /// It is new: these are all pieces of the whole now.
    New(Arc<[Piece]>),
    /// It is not remembered, so its pieces are blobs like others.
    Refused(&'static str),
}

struct Whole {
    pieces: Arc<[Piece]>,
    /// Of its pieces.
    bytes: u64,
    /// At which its pieces are held; `None`: it is not here.
    standing: Option<Standing>,
}

pub(super) struct References {
    wholes: HashMap<Digest, Whole>,
    /// By piece: who holds it, the highest standing last. The piece of a whole that is
    /// not here has its place here too, without holder.
    holds: HashMap<Digest, Holds>,
    references: usize,
    most: usize,
}

#[derive(Default)]
struct Holds {
    /// Wholes that refer to it, here or not.
    wholes: usize,
    standings: BTreeSet<(Standing, Digest)>,
}

impl References {
    /// At most `most` references.
    pub(super) fn new(most: usize) -> Self {
        Self { wholes: HashMap::new(), holds: HashMap::new(), references: 0, most }
    }

    /// The pieces of `whole`; none: it is no whole, as far as is known.
    pub(super) fn pieces(&self, whole: &Digest) -> Arc<[Piece]> {
        self.wholes.get(whole).map(|whole| whole.pieces.clone()).unwrap_or_default()
    }

    /// Bytes of all pieces of `whole`.
    pub(super) fn bytes(&self, whole: &Digest) -> u64 {
        self.wholes.get(whole).map_or(0, |whole| whole.bytes)
    }

    /// Where `whole` holds its pieces; `None`: it does not.
    pub(super) fn standing(&self, whole: &Digest) -> Option<Standing> {
        self.wholes.get(whole)?.standing
    }

    /// The highest standing of the wholes here that refer to `piece`.
    pub(super) fn held(&self, piece: &Digest) -> Option<Standing> {
        self.holds.get(piece)?.standings.last().map(|(standing, _)| *standing)
    }

    /// Whether `whole` is known to be made of `pieces`, and perhaps of more.
    pub(super) fn knows(&self, whole: &Digest, pieces: &[Piece]) -> bool {
        let Some(known) = self.wholes.get(whole) else { return false };
        // By their order, which is that of a set.
        pieces.iter().all(|piece| known.pieces.binary_search(piece).is_ok())
    }

    /// Remembers that `whole` is made of `pieces` too. It holds none of the new ones
    /// before [`hold`](Self::hold).
    pub(super) fn refer(&mut self, whole: &Digest, pieces: &[Piece]) -> Referred {
        if self.holds.contains_key(whole) {
            return Referred::Refused("it is a piece itself");
        }
        let mut all: BTreeSet<Piece> = self.pieces(whole).iter().copied().collect();
        let known = all.len();
        all.extend(pieces.iter().filter(|piece| piece.pack != *whole));
        if all.len() == known {
            return Referred::Known;
        }
        if all.iter().any(|piece| self.wholes.contains_key(&piece.pack)) {
            return Referred::Refused("a piece of it is a whole itself");
        }
        if all.len() > MOST_OF_ONE || self.references - known + all.len() > self.most {
            return Referred::Refused("there are too many references");
        }
        debug_assert!(self.standing(whole).is_none(), "its pieces are let go first");
        self.forget(whole);
        let pieces: Arc<[Piece]> = all.into_iter().collect();
        for piece in &*pieces {
            self.holds.entry(piece.pack).or_default().wholes += 1;
        }
        self.references += pieces.len();
        let bytes = pieces.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.size));
        let new = Whole { pieces: pieces.clone(), bytes, standing: None };
        self.wholes.insert(*whole, new);
        Referred::New(pieces)
    }

    /// `whole` holds `piece` at `after` from now on, no longer at `before`.
    pub(super) fn change_hold(
        &mut self,
        whole: &Digest,
        piece: &Digest,
        before: Option<Standing>,
        after: Option<Standing>,
    ) {
        let Some(holds) = self.holds.get_mut(piece) else { return };
        if let Some(before) = before {
            holds.standings.remove(&(before, *whole));
        }
        if let Some(after) = after {
            holds.standings.insert((after, *whole));
        }
    }

    /// All pieces of `whole` are held at `standing` now.
    pub(super) fn hold(&mut self, whole: &Digest, standing: Option<Standing>) {
        if let Some(whole) = self.wholes.get_mut(whole) {
            whole.standing = standing;
        }
    }

    /// Forgets what `whole`, which holds nothing, is made of.
    pub(super) fn forget(&mut self, whole: &Digest) {
        let Some(known) = self.wholes.remove(whole) else { return };
        self.references -= known.pieces.len();
        for piece in &*known.pieces {
            if let Some(holds) = self.holds.get_mut(&piece.pack) {
                holds.wholes -= 1;
                if holds.wholes == 0 {
                    self.holds.remove(&piece.pack);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.references
    }
}
