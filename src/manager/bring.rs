//! The pieces of a whole, brought to this node.
//!
//! Invariant: a whole is here only when each of its pieces is, by the pack that the whole
//! names; nothing of a piece is taken from anybody that does not hash to that. A piece is
//! called absent only when the index has it no more, or when all places that may have
//! its bytes said that they do not.

use futures::{StreamExt, stream};
use kiln_cluster::Entry;
use kiln_proto::{Failure, FailureKind, Manifest, PieceRef};

use super::{Fetched, Found, Manager};
use crate::{
    cache::Piece,
    error::{Error, MissingPiece, NoPiece},
};

/// Pieces of one whole that are fetched at a time.
const AT_A_TIME: usize = 4;

impl Manager {
    /// Brings every piece of `whole`, whose manifest was verified, to this node, and
    /// counts a use of each. `pinned`: they are pinned here with it. One that cannot be
    /// had is [`Error::MissingPiece`], the first by position if there are several; the
    /// others are brought, and kept, all the same.
    pub(super) async fn bring_pieces(&self, whole: &Manifest, pinned: bool) -> Result<(), Error> {
        if whole.pieces.is_empty() {
            return Ok(());
        }
        let pieces: Vec<Piece> = whole.pieces.iter().map(Piece::from).collect();
        // What was brought must not make room for what comes.
        let _guards = match self.is_here(whole) {
            true => Vec::new(),
            false => self.tiers.guard_together(&whole.pack_digest, &pieces),
        };
        if let Err(e) = self.tiers.keep_together(&whole.pack_digest, &pieces).await {
            // It is only about who leaves first.
            tracing::warn!(key = %whole.key, error = %e, "its pieces are not kept together");
        }
        let numbered = whole.pieces.iter().copied().enumerate();
        let bringing: Vec<_> =
            numbered.map(|(n, piece)| self.bring_one(n, piece, pinned)).collect();
        let brought = stream::iter(bringing).buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await;
        let failed = brought.into_iter().filter_map(Result::err).min_by_key(|(index, _)| *index);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// One piece; an error has its position.
    async fn bring_one(
        &self,
        index: usize,
        piece: PieceRef,
        pinned: bool,
    ) -> Result<(), (usize, Error)> {
        let brought = self.bring(&piece, pinned).await;
        brought.map_err(|gap| (index, gap.of(index, &piece)))
    }

    /// Whether the artifact, all pieces included, is here, as far as is known without
    /// reading it.
    pub(super) fn is_here(&self, manifest: &Manifest) -> bool {
        let pieces = manifest.pieces.iter().map(|piece| &piece.pack);
        self.tiers.holds_all(pieces.chain([&manifest.pack_digest]))
    }

    async fn bring(&self, piece: &PieceRef, pinned: bool) -> Result<(), Gap> {
        if !self.tiers.holds(&piece.pack) {
            let entry = self.entry_of(piece).await?.ok_or(Gap::No(NoPiece::Absent))?;
            let manifest = self.verify(&entry)?;
            if !manifest.pieces.is_empty() {
                let why = format!("the piece {} of an artifact has pieces itself", piece.key);
                return Err(Error::from(Failure::new(FailureKind::Corrupt, why)).into());
            }
            match self.fetcher.fetch(&entry, &manifest).await? {
                Fetched::Here(..) => {}
                Fetched::Unreachable(why) => {
                    self.counters.unreachable();
                    return Err(unreachable(why));
                }
                Fetched::Absent(asked) => {
                    return Err(match self.retire(&entry, asked).await? {
                        Found::Unreachable(why) => unreachable(why),
                        _ => Gap::No(NoPiece::Absent),
                    });
                }
            }
        }
        if pinned && !self.tiers.is_pinned(&piece.pack) {
            self.tiers.set_pinned(&piece.pack, true).await.map_err(Error::from)?;
        }
        Ok(())
    }

    /// The entry of a piece, if it has the pack that the whole names.
    async fn entry_of(&self, piece: &PieceRef) -> Result<Option<Entry>, Gap> {
        let same = |entry: &Entry| entry.pack == piece.pack;
        let known = self.index.lookup(&piece.key).await.map_err(Error::from)?;
        if let Some(entry) = known.filter(same) {
            return Ok(Some(entry));
        }
        // The whole may have come from a replica that is ahead of this one.
        match self.index.lookup_linearizable(&piece.key).await.map_err(Error::from) {
            Ok(entry) => Ok(entry.filter(same)),
            Err(e @ Error::Unavailable(_)) => Err(unreachable(e.to_string())),
            Err(e) => Err(e.into()),
        }
    }
}

/// Why a piece was not brought.
enum Gap {
    /// There is none, now or for good.
    No(NoPiece),
    /// Something failed that says nothing of the piece.
    Failed(Error),
}

impl From<Error> for Gap {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

const fn unreachable(why: String) -> Gap {
    Gap::No(NoPiece::Unreachable(why))
}

impl Gap {
    fn of(self, index: usize, piece: &PieceRef) -> Error {
        let (key, pack) = (piece.key, piece.pack);
        match self {
            Self::No(why) => Error::MissingPiece(MissingPiece { index, key, pack, why }),
            Self::Failed(error) => error,
        }
    }
}
