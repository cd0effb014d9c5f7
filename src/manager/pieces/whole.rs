//! The whole, once all of its pieces ended.
//!
//! Invariant: it is put together of all pieces or not at all, and an error names each
//! that failed.

use std::sync::Arc;

use kiln_proto::{Failure, Manifest, PieceRef};

use super::{Made, PieceReport};
use crate::{
    compiler::{Output, Stitch},
    error::Error,
};

/// How each piece ended, by position.
pub(super) type Ends = Vec<Option<Result<Arc<Manifest>, Error>>>;

/// The whole, if all pieces are there.
pub(super) fn put_together(
    stitch: &Stitch,
    ends: Ends,
    states: Arc<[PieceReport]>,
) -> Result<Made, Error> {
    let (mut pieces, mut compile_seconds) = (Vec::with_capacity(ends.len()), 0.0);
    let mut failed = Vec::new();
    for (index, end) in ends.into_iter().enumerate() {
        match end {
            Some(Ok(manifest)) => {
                let Manifest { key, pack_digest: pack, pack_size, .. } = *manifest;
                pieces.push(PieceRef { key, pack, pack_size });
                compile_seconds += manifest.compile_seconds;
            }
            Some(Err(e)) => failed.push((index, e)),
            None => failed.push((index, Error::Unavailable("nobody compiled it".into()))),
        }
    }
    if !failed.is_empty() {
        return Err(all_failed(&failed, &states));
    }
    let output = Output { files: stitch.files(), compile_seconds, log: String::new() };
    Ok(Made { output, pieces, states, check: Ok(None) })
}

/// What failed, by piece. The first that is a verdict on the request says what kind of
/// failure that is.
pub(in crate::manager) fn all_failed(failed: &[(usize, Error)], states: &[PieceReport]) -> Error {
    let about = failed
        .iter()
        .map(|(index, error)| format!("piece {index} ({}): {error}", states[*index].key));
    let text = about.collect::<Vec<_>>().join("; ");
    let (count, all) = (failed.len(), states.len());
    let text = format!("{count} of {all} pieces failed, the others are kept: {text}");
    let failures = |error: &Error| match error {
        Error::Failed(failure) => Some((failure.kind, failure.kind.follows_from_request())),
        Error::Unsound(failure) => Some((failure.kind, false)),
        _ => None,
    };
    let kinds: Vec<_> = failed.iter().filter_map(|(_, error)| failures(error)).collect();
    match kinds.iter().find(|(_, is_verdict)| *is_verdict).or(kinds.first()) {
        Some((kind, true)) => Failure::new(*kind, text).into(),
        // Not to be remembered: whatever kind it is, it does not follow from the request.
        Some((kind, false)) => Error::Unsound(Failure::new(*kind, text)),
        None => Error::Unavailable(text),
    }
}
