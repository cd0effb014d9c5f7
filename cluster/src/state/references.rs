//! Which wholes are stitched of which pieces.
//!
//! Invariant: a whole has an entry only while each of its pieces has one of the very pack
//! that the whole was made with. So whatever keeps an entry's pack from being deleted keeps
//! a whole's pieces, and a whole that is found can be run. A piece is no whole itself:
//! what falls with a piece takes nothing further down.

use kiln_proto::{ArtifactKey, Digest, MAX_PIECES};

use crate::{
    command::Response,
    table::{self, EntryRecord, PiecesRecord, ReferenceRecord, StateError, Txn, View},
};

/// A piece by its key, and the pack that the whole was made with.
pub(super) type Piece = (ArtifactKey, Digest);

/// Why `whole` cannot be committed of `pieces` now; `None`: it can.
pub(super) fn refusal<V: View>(
    txn: &Txn<'_, V>,
    whole: ArtifactKey,
    pieces: &[Piece],
) -> Result<Option<Response>, StateError> {
    let refused = |why: &str| Ok(Some(Response::Refused(why.into())));
    if pieces.is_empty() || pieces.len() > MAX_PIECES {
        return refused("a whole has 1 to 1024 pieces");
    }
    let mut keys: Vec<_> = pieces.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return refused("a piece comes twice");
    }
    if !table::wholes_of(txn, whole)?.is_empty() {
        return refused("it is a piece itself");
    }
    for (piece, pack) in pieces {
        if *piece == whole || txn.get::<PiecesRecord>(*piece)?.is_some() {
            return refused("one of its pieces is a whole");
        }
        if txn.get::<EntryRecord>(*piece)?.is_none_or(|entry| entry.pack != *pack) {
            return Ok(Some(Response::NoPiece(*piece)));
        }
    }
    Ok(None)
}

/// `whole` has an entry from now on, which is stitched of `pieces`.
pub(super) fn refer<V: View>(
    txn: &mut Txn<'_, V>,
    whole: ArtifactKey,
    pieces: Vec<Piece>,
) -> Result<(), StateError> {
    for (piece, pack) in &pieces {
        debug_assert!(
            txn.get::<EntryRecord>(*piece)?.is_some_and(|entry| entry.pack == *pack),
            "a whole refers to a piece without an entry of that pack"
        );
        txn.put((*piece, whole), &ReferenceRecord { pack: *pack })?;
    }
    txn.put(whole, &PiecesRecord { pieces })
}

/// `whole` has no entry any more.
pub(super) fn unrefer<V: View>(txn: &mut Txn<'_, V>, whole: ArtifactKey) -> Result<(), StateError> {
    if let Some(PiecesRecord { pieces }) = txn.get(whole)? {
        for (piece, _) in pieces {
            txn.remove::<ReferenceRecord>((piece, whole));
        }
        txn.remove::<PiecesRecord>(whole);
    }
    Ok(())
}
