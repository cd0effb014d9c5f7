//! A received snapshot takes the place of the state.
//!
//! Invariant: the live set is never touched. A snapshot is written beside it, every
//! record decoded as what its table holds, and becomes the live set in one durable
//! batch together with the log id that it is of. So a failure or a crash at any moment
//! leaves the old state or the new one, whole.

use std::io;

use fail::fail_point;
use rocksdb::WriteBatch;

use super::{
    db::Store,
    meta::{self, Applied, META, Set},
    snapshot::{Bytes, Pair},
    staging::{Staged, read_chunks},
};
use crate::{
    codec,
    error::{ClusterError, io_error},
    raft::SnapshotMeta,
    table::{self, Table},
    versions,
};

/// Above every key of every table.
const ABOVE: [u8; 64] = [0xff; 64];

/// Replaces the state by the staged one. Blocks.
pub(super) fn install(store: &Store, staged: &Staged) -> io::Result<()> {
    let _one_at_a_time = store.install.lock();
    let set = store.live.read_recursive().other();
    let applied = fill(store, set, staged)?;
    swap(store, set, &applied)?;
    // The old state is of no use any more, and in nobody's way if this fails.
    match clear(store, set.other()) {
        // Not by deleting whole files: a snapshot may be read from them for another node.
        Ok(()) => Table::ALL.into_iter().for_each(|table| {
            let family = store.cf(set.other().family(table));
            store.db.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
        }),
        Err(e) => tracing::warn!(error = %e, "the replaced state still takes space on disk"),
    }
    Ok(())
}

/// Writes the staged records into `set`, which is not live, and returns what they are of.
pub(super) fn fill(store: &Store, set: Set, staged: &Staged) -> io::Result<Applied> {
    clear(store, set)?;
    fail_point!("install.cleared");
    let mut applied = Applied::default();
    read_chunks(&staged.path, |at, chunk| {
        if at == 0 {
            let meta: SnapshotMeta = codec::decode(chunk).map_err(io_error)?;
            applied = Applied { last: meta.last_log_id, membership: meta.last_membership };
            return Ok(());
        }
        let pairs: Vec<Pair> = codec::decode(chunk).map_err(io_error)?;
        let (mut batch, mut needs) = (WriteBatch::default(), None);
        for (table, Bytes(key), Bytes(value)) in pairs {
            table::check(table, &key, &value).map_err(io_error)?;
            needs = needs.max(versions::since_table(table));
            batch.put_cf(store.cf(set.family(table)), key, value);
        }
        store.raise_needs(&mut batch, needs).map_err(io_error)?;
        store.db.write(batch).map_err(io_error)?;
        fail_point!("install.chunk");
        Ok(())
    })?;
    fail_point!("install.filled");
    Ok(applied)
}

/// Makes `set` the live one, durably.
fn swap(store: &Store, set: Set, applied: &Applied) -> io::Result<()> {
    let mut batch = WriteBatch::default();
    store.put_meta(&mut batch, meta::LIVE, &set).map_err(io_error)?;
    store.put_meta(&mut batch, meta::APPLIED, applied).map_err(io_error)?;
    batch.delete_cf(store.cf(META), meta::INSTALLING);
    // Everything of `set` is before this in the write-ahead log: one sync for all of it.
    let mut live = store.live.write();
    store.db.write(batch).map_err(io_error)?;
    *live = set;
    fail_point!("install.swapped");
    store.db.flush_wal(true).map_err(io_error)?;
    fail_point!("install.synced");
    Ok(())
}

/// Empties `set`, which is not live.
fn clear(store: &Store, set: Set) -> io::Result<()> {
    debug_assert_ne!(*store.live.read_recursive(), set, "the live state is never cleared");
    let mut batch = WriteBatch::default();
    for table in Table::ALL {
        let family = store.cf(set.family(table));
        batch.delete_range_cf(family, &[][..], &ABOVE[..]);
    }
    store.db.write(batch).map_err(io_error)
}

/// Brings a store that was just opened into order: finishes what a build began that
/// installed in place, and removes what was left half done.
pub(super) fn recover(store: &Store) -> Result<(), ClusterError> {
    let failed = |e: io::Error| ClusterError::storage(format!("received snapshots: {e}"));
    let interrupted: Option<String> = store.meta(meta::INSTALLING)?;
    if let Some(name) = interrupted {
        finish_in_place(store, &name)?;
    }
    let unused = store.live.read_recursive().other();
    let leftovers = Table::ALL.into_iter().any(|table| {
        let mut pairs = store.db.raw_iterator_cf(store.cf(unused.family(table)));
        pairs.seek_to_first();
        pairs.valid()
    });
    if leftovers {
        clear(store, unused).map_err(failed)?;
    }
    for file in std::fs::read_dir(store.incoming()).map_err(failed)? {
        std::fs::remove_file(file.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(())
}

/// The tables of a store with this mark were emptied, and maybe filled in part, from
/// the file `name`: it is all that is left of the state.
fn finish_in_place(store: &Store, name: &str) -> Result<(), ClusterError> {
    let path = store.incoming().join(name);
    if path.exists() {
        tracing::info!("finishing the installation of a snapshot");
        let staged = Staged { path, keep: true };
        let installed = install(store, &staged);
        return installed.map_err(|e| ClusterError::storage(format!("finish a snapshot: {e}")));
    }
    // The mark was written together with the removal of what was applied.
    if store.meta::<Applied>(meta::APPLIED)?.is_some() {
        let removed = store.db.delete_cf(store.cf(META), meta::INSTALLING);
        return removed.map_err(ClusterError::storage);
    }
    Err(ClusterError::storage(
        "an earlier version was interrupted while it replaced the index, and the snapshot is \
         gone: remove this node from the cluster, empty its data folder and join again",
    ))
}
