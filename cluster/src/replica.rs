//! This node's replica of the index: reads of what it has applied, without any hop.
//!
//! Invariant: nothing here changes the state; what a read answers was committed.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, Digest, Failure};
use tokio::{sync::broadcast, time::Instant};

use crate::{
    deadlines::Deadlines,
    entry::{Entry, PackState},
    error::ClusterError,
    store::Store,
    table::{
        self, BlobRecord, Counters, EntryRecord, FailureRecord, ObjectRecord, Pairs, Record, Table,
    },
    watch::{IndexEvent, Nodes, Waiter, Watch},
};

/// The store's state and the wake-ups that follow its changes.
pub(crate) struct Replica {
    store: Arc<Store>,
    watch: Arc<Watch>,
}

impl Replica {
    pub(crate) fn new(store: Arc<Store>, watch: Arc<Watch>) -> Self {
        Self { store, watch }
    }

    /// One record of the state.
    pub(crate) fn read<R: Record>(&self, key: R::Key) -> Result<Option<R>, ClusterError> {
        Ok(table::read(&*self.store, key)?)
    }

    /// Up to `limit` pairs of `table` from `start` on.
    pub(crate) fn scan(
        &self,
        table: Table,
        start: &[u8],
        limit: usize,
    ) -> Result<Pairs, ClusterError> {
        Ok(self.store.scan(table, start, limit)?)
    }

    /// The artifact of `key`.
    pub(crate) fn entry(&self, key: &ArtifactKey) -> Result<Option<Entry>, ClusterError> {
        let Some(record) = self.read::<EntryRecord>(*key)? else {
            return Ok(None);
        };
        self.complete(*key, record).map(Some)
    }

    /// Adds to an entry what is kept apart from it because it changes more often.
    pub(crate) fn complete(
        &self,
        key: ArtifactKey,
        record: EntryRecord,
    ) -> Result<Entry, ClusterError> {
        let mut blob: BlobRecord = self.read(record.pack)?.unwrap_or_default();
        let nodes = self.watch.nodes();
        blob.holders.retain(|holder| nodes.get(holder).is_some_and(|node| !node.left));
        Ok(Entry {
            key,
            epoch: record.epoch,
            manifest: record.manifest,
            pack: record.pack,
            pack_size: record.pack_size,
            generation: self.generation(record.pack)?,
            compile_seconds: record.compile_seconds,
            stored: blob.stored,
            pinned: record.pinned,
            holders: blob.holders,
            hits: blob.hits,
        })
    }

    /// The live negative entry of `key`.
    pub(crate) fn failure(&self, key: &ArtifactKey) -> Result<Option<Failure>, ClusterError> {
        Ok(self.read::<FailureRecord>(*key)?.map(|record| record.failure))
    }

    fn generation(&self, pack: Digest) -> Result<u64, ClusterError> {
        let object: Option<ObjectRecord> = self.read(pack)?;
        Ok(object.unwrap_or_default().generation)
    }

    /// What is known of a pack.
    pub(crate) fn pack(&self, pack: &Digest) -> Result<Option<PackState>, ClusterError> {
        let Some(blob) = self.read::<BlobRecord>(*pack)? else {
            return Ok(None);
        };
        Ok(Some(PackState {
            generation: self.generation(*pack)?,
            named: blob.entries > 0,
            referenced: blob.entries > 0 || blob.leases > 0,
            condemned: blob.condemned,
            stored: blob.stored,
        }))
    }

    /// The numbers of the whole cluster; `None` before it is founded.
    pub(crate) fn counters(&self) -> Result<Option<Counters>, ClusterError> {
        self.read(())
    }

    /// All registered nodes, also those that left.
    pub(crate) fn nodes(&self) -> Arc<Nodes> {
        self.watch.nodes()
    }

    /// The live leases and negative entries, with their deadlines.
    pub(crate) fn deadlines(&self) -> &Deadlines {
        &self.watch.deadlines
    }

    /// Registers for changes of `key`.
    pub(crate) fn waiter(&self, key: ArtifactKey) -> Waiter {
        self.watch.waiter(key)
    }

    /// Wakes everyone who waits for `key`.
    pub(crate) fn wake(&self, key: &ArtifactKey) {
        self.watch.wake(key);
    }

    /// Changes as they are applied.
    pub(crate) fn events(&self) -> broadcast::Receiver<IndexEvent> {
        self.watch.events()
    }

    /// The index of the last applied log entry, as it moves.
    pub(crate) fn progress(&self) -> tokio::sync::watch::Receiver<u64> {
        self.watch.progress()
    }

    /// The index of the last applied log entry.
    pub(crate) fn applied(&self) -> u64 {
        *self.watch.progress().borrow()
    }

    /// Waits until `index` is applied, at most until `deadline`.
    pub(crate) async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        let mut progress = self.watch.progress();
        let reached = progress.wait_for(|applied| *applied >= index);
        tokio::time::timeout_at(deadline, reached).await.is_ok_and(|r| r.is_ok())
    }
}
