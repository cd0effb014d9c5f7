//! A stored whole, with its pieces.
//!
//! Invariant: a whole is a hit only when each of its pieces is stored by the pack that
//! it was put together of, and its bytes are here.

use futures::{StreamExt, TryStreamExt, stream};
use kiln_cluster::Entry;
use kiln_proto::{Manifest, PieceRef};

use super::{PieceReport, PieceStage};
use crate::{
    compiler::{Prepared, StitchPiece},
    error::Error,
    manager::{Found, Manager, Outcome, stored::Purpose},
};

/// Pieces that are fetched at once.
const AT_ONCE: usize = 8;

impl Manager {
    /// The artifact behind an entry of `prepared`, and of a whole its pieces, which
    /// whoever runs it needs next.
    pub(in crate::manager) async fn resolve_all(
        &self,
        entry: &Entry,
        prepared: &Prepared,
        outcome: Outcome,
    ) -> Result<Found, Error> {
        let found = self.resolve(entry, &prepared.namespace, outcome, Purpose::Use).await?;
        if let Found::Here(answer) = &found {
            self.learned.observe(prepared, &entry.key, answer.manifest.compile_seconds);
        }
        let Some(stitch) = prepared.stitch() else { return Ok(found) };
        let Found::Here(mut answer) = found else { return Ok(found) };
        let of = answer.manifest.pieces.iter().zip(&stitch.pieces).enumerate();
        let pieces = of.map(|(index, (made_of, piece))| self.stored_piece(index, piece, *made_of));
        let pieces = stream::iter(pieces.collect::<Vec<_>>()).buffered(AT_ONCE);
        match pieces.try_collect::<Vec<PieceReport>>().await {
            Ok(pieces) if pieces.len() == stitch.pieces.len() => {
                answer.pieces = pieces.into();
                Ok(Found::Here(answer))
            }
            Ok(_) => Ok(Found::Unreachable("it names other pieces than it has".into())),
            Err(Missing::Piece(why)) => {
                self.counters.unreachable();
                Ok(Found::Unreachable(why))
            }
            Err(Missing::Error(e)) => Err(e),
        }
    }

    /// One piece of a stored whole.
    async fn stored_piece(
        &self,
        index: usize,
        piece: &StitchPiece,
        made_of: PieceRef,
    ) -> Result<PieceReport, Missing> {
        let key = piece.key();
        let missing = |why: &str| Missing::Piece(format!("piece {index} ({key}) {why}"));
        if made_of.key != key {
            return Err(missing("is not the one that it names"));
        }
        let is_it = |entry: &Entry| entry.pack == made_of.pack;
        let entry = match self.index.lookup(&key).await.map_err(Error::from)?.filter(is_it) {
            Some(entry) => Some(entry),
            // The whole may be known from the leader, to a replica that is behind.
            None => self.index.lookup_linearizable(&key).await.map_err(Error::from)?,
        };
        let Some(entry) = entry else { return Err(missing("is gone")) };
        let manifest = self.verify(&entry)?;
        self.learned.observe(&piece.prepared, &key, manifest.compile_seconds);
        // Its bytes came with the whole.
        match manifest.pack_digest == made_of.pack {
            true => Ok(state(index, piece, &manifest)),
            false => Err(missing("was compiled anew since")),
        }
    }
}

fn state(index: usize, piece: &StitchPiece, manifest: &Manifest) -> PieceReport {
    PieceReport {
        index,
        key: piece.key(),
        times: piece.times,
        estimates: piece.estimates,
        stage: PieceStage::Done {
            outcome: Outcome::Hit,
            node: manifest.producer,
            compile_seconds: manifest.compile_seconds,
            check: manifest.check.clone(),
        },
    }
}

/// Why a stored whole is no hit.
enum Missing {
    Piece(String),
    Error(Error),
}

impl From<Error> for Missing {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}
