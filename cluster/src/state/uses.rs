//! How often each key's artifact is used, and when it was last.
//!
//! Invariant: a count is its key's, whatever bytes the artifact has and whoever else has the
//! same ones; it goes on when an artifact is replaced, and ends with the key's last one.

use kiln_proto::ArtifactKey;

use crate::{
    command::Response,
    table::{EntryRecord, StateError, Txn, UseRecord, View},
};

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
        // The next leader's clock may be behind that of the one before.
        let last_unix_ms = known.last_unix_ms.max(at_unix_ms);
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
