//! How often each key's artifact is used, and when it was last.
//!
//! Invariant: a count is its key's, whatever bytes the artifact has and whoever else has the
//! same ones; it goes on when an artifact is replaced, and ends with the key's last one. A
//! date that a wrong clock gave a use does not outlast the next use.

use kiln_proto::ArtifactKey;

use crate::{
    command::Response,
    table::{EntryRecord, StateError, Txn, UseRecord, View},
};

/// So far a leader's clock may be behind the one before without the date going back.
const APART_MS: u64 = 10 * 60 * 1000;

/// Counts what a node reports, as of `at_unix_ms`. What has no artifact any more is left
/// out: it would never be removed.
pub(super) fn count<V: View>(
    txn: &mut Txn<'_, V>,
    hits: Vec<(ArtifactKey, u32)>,
    at_unix_ms: u64,
) -> Result<Response, StateError> {
    for (key, more) in hits {
        if more == 0 || txn.get::<EntryRecord>(key)?.is_none() {
            continue;
        }
        let known = txn.get::<UseRecord>(key)?.unwrap_or_default();
        let hits = known.hits.saturating_add(more.into());
        // One that is further ahead was dated by a clock that was wrong.
        let last_unix_ms = match known.last_unix_ms.saturating_sub(at_unix_ms) > APART_MS {
            true => at_unix_ms,
            false => known.last_unix_ms.max(at_unix_ms),
        };
        txn.put(key, &UseRecord { hits, last_unix_ms })?;
    }
    Ok(Response::Done)
}

/// The key has no artifact any more.
pub(super) fn forget<V: View>(txn: &mut Txn<'_, V>, key: ArtifactKey) -> Result<(), StateError> {
    if txn.get::<UseRecord>(key)?.is_some() {
        txn.remove::<UseRecord>(key);
    }
    Ok(())
}
