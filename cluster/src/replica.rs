//! This node's replica of the index: reads of what it has applied, without any hop.
//!
//! Invariant: nothing here changes the state; what a read answers was committed.

use std::sync::Arc;

use kiln_proto::{ArtifactKey, Digest, Failure};
use semver::Version;
use tokio::{sync::broadcast, time::Instant};

use crate::{
    admission::Admissions,
    blocking, codec,
    deadlines::Deadlines,
    entry::{Entry, PackState, Usage},
    error::ClusterError,
    store::{StateView, Store},
    table::{
        self, BlobRecord, Counters, EntryRecord, FailureRecord, ObjectRecord, Pairs, Record,
        StateError, Table, UseRecord,
    },
    trust::Trust,
    versions,
    wanted::Wanted,
    watch::{IndexEvent, Nodes, Tokens, Waiter, Watch},
};

/// The store's state and the wake-ups that follow its changes. Clones share both.
#[derive(Clone)]
pub(crate) struct Replica {
    store: Arc<Store>,
    watch: Arc<Watch>,
}

impl Replica {
    pub(crate) fn new(store: Arc<Store>, watch: Arc<Watch>) -> Self {
        Self { store, watch }
    }

    /// What `find` finds in the state: at once where all of it is in memory, else on a
    /// thread that may wait for the disk.
    async fn read_state<T: Send + 'static>(
        &self,
        find: impl Fn(&Self, &StateView<'_>) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, ClusterError> {
        // A task that reads much lets others run in between.
        tokio::task::coop::consume_budget().await;
        match find(self, &self.store.view_in_memory()) {
            Err(StateError::NotInMemory(_)) => {}
            found => return Ok(found?),
        }
        let replica = self.clone();
        let found = blocking::run(move || find(&replica, &replica.store.view())).await;
        Ok(found.map_err(ClusterError::storage)??)
    }

    /// One record of the state.
    pub(crate) async fn read<R>(&self, key: R::Key) -> Result<Option<R>, ClusterError>
    where
        R: Record + Send + 'static,
        R::Key: Send + 'static,
    {
        self.read_state(move |_, view| table::read(view, key)).await
    }

    /// Up to `limit` pairs of `table` from `start` on. Blocks.
    pub(crate) fn scan(
        &self,
        table: Table,
        start: &[u8],
        limit: usize,
    ) -> Result<Pairs, ClusterError> {
        Ok(self.store.scan(table, start, limit)?)
    }

    /// The artifact of `key`.
    pub(crate) async fn entry(&self, key: &ArtifactKey) -> Result<Option<Entry>, ClusterError> {
        let key = *key;
        let find = move |replica: &Self, view: &StateView<'_>| {
            let Some(record) = table::read::<EntryRecord>(view, key)? else {
                return Ok(None);
            };
            replica.complete(view, key, record)
        };
        self.read_state(find).await
    }

    /// Up to `limit` artifacts in key order, from `start` on, while `within` holds.
    /// Blocks.
    pub(crate) fn entries(
        &self,
        start: &[u8],
        limit: usize,
        within: impl Fn(&ArtifactKey) -> bool,
    ) -> Result<Vec<Entry>, ClusterError> {
        let (view, mut start) = (self.store.view(), start.to_vec());
        let mut entries = Vec::new();
        let by_key = versions::count_by_key(&self.nodes());
        // Again only where keys lost their artifacts meanwhile.
        while entries.len() < limit {
            let pairs = view.scan(Table::Entries, &start, limit - entries.len())?;
            let Some((last, _)) = pairs.last() else { break };
            start = [last.as_slice(), &[0]].concat();
            for (key, value) in pairs {
                let key = ArtifactKey::try_from(key.as_slice()).map_err(ClusterError::storage)?;
                if !within(&key) {
                    return Ok(entries);
                }
                let Some(entry) = self.complete(&view, key, codec::decode(&value)?)? else {
                    continue;
                };
                let Usage { hits, last_unix_ms } = self.used(&view, key, entry.pack, by_key)?;
                entries.push(Entry { hits, last_used_unix_ms: last_unix_ms, ..entry });
            }
        }
        Ok(entries)
    }

    /// How often the artifact of `key` was used.
    pub(crate) async fn usage(&self, key: &ArtifactKey) -> Result<Usage, ClusterError> {
        let key = *key;
        let find = move |replica: &Self, view: &StateView<'_>| match table::read::<EntryRecord>(
            view, key,
        )? {
            Some(entry) => {
                let by_key = versions::count_by_key(&replica.nodes());
                replica.used(view, key, entry.pack, by_key)
            }
            None => Ok(Usage::default()),
        };
        self.read_state(find).await
    }

    /// How often the artifact of `key`, which is `pack`, was used. Unless `by_key`, while a member
    /// of an earlier version makes all count by the artifact's bytes, these count so too.
    fn used(
        &self,
        view: &StateView<'_>,
        key: ArtifactKey,
        pack: Digest,
        by_key: bool,
    ) -> Result<Usage, StateError> {
        let used = table::read::<UseRecord>(view, key)?.unwrap_or_default();
        let UseRecord { mut hits, last_unix_ms } = used;
        if !by_key {
            let blob: Option<BlobRecord> = table::read(view, pack)?;
            hits = hits.saturating_add(blob.map_or(0, |blob| blob.hits));
        }
        Ok(Usage { hits, last_unix_ms: last_unix_ms.min(self.deadlines().now_unix_ms()) })
    }

    /// The earliest version that reads this index; `None`: any does.
    pub(crate) fn needs(&self) -> Option<Version> {
        self.store.needs()
    }

    /// Adds to an entry what is kept apart from it because it changes more often.
    /// `None` if the key has no artifact any more.
    fn complete(
        &self,
        view: &StateView<'_>,
        key: ArtifactKey,
        mut record: EntryRecord,
    ) -> Result<Option<Entry>, StateError> {
        // The record of an entry's pack is there for as long as the entry. A command that
        // was applied between the two reads may have ended both: then look again.
        let mut blob = loop {
            if let Some(blob) = table::read::<BlobRecord>(view, record.pack)? {
                break blob;
            }
            let again: Option<EntryRecord> = table::read(view, key)?;
            match again {
                None => return Ok(None),
                Some(again) if again.epoch == record.epoch => {
                    return Err(StateError::NoPack);
                }
                Some(again) => record = again,
            }
        };
        let nodes = self.watch.nodes();
        blob.holders.retain(|holder| nodes.get(holder).is_some_and(|node| !node.left));
        Ok(Some(Entry {
            key,
            epoch: record.epoch,
            manifest: record.manifest,
            pack: record.pack,
            pack_size: record.pack_size,
            generation: generation(view, record.pack)?,
            compile_seconds: record.compile_seconds,
            stored: blob.stored,
            pinned: record.pinned,
            holders: blob.holders,
            hits: 0,
            last_used_unix_ms: 0,
        }))
    }

    /// The live negative entry of `key`.
    pub(crate) async fn failure(&self, key: &ArtifactKey) -> Result<Option<Failure>, ClusterError> {
        Ok(self.read::<FailureRecord>(*key).await?.map(|record| record.failure))
    }

    /// What is known of a pack.
    pub(crate) async fn pack(&self, pack: &Digest) -> Result<Option<PackState>, ClusterError> {
        let pack = *pack;
        self.read_state(move |_, view| pack_state(view, pack)).await
    }

    /// What is known of a pack. Blocks.
    pub(crate) fn blocking_pack(&self, pack: &Digest) -> Result<Option<PackState>, ClusterError> {
        Ok(pack_state(&self.store.view(), *pack)?)
    }

    /// The wholes that are stitched of `piece`. Blocks.
    pub(crate) fn blocking_wholes(
        &self,
        piece: &ArtifactKey,
    ) -> Result<Vec<ArtifactKey>, ClusterError> {
        Ok(table::wholes_of(&self.store.view(), *piece)?)
    }

    /// The numbers of the whole cluster; `None` before it is founded.
    pub(crate) fn counters(&self) -> Option<Counters> {
        self.watch.counters()
    }

    /// All registered nodes, also those that left.
    pub(crate) fn nodes(&self) -> Arc<Nodes> {
        self.watch.nodes()
    }

    /// All tokens of clients by id.
    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        self.watch.tokens()
    }

    /// What joining takes.
    pub(crate) fn admissions(&self) -> Arc<Admissions> {
        self.watch.admissions()
    }

    /// What the root says.
    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.watch.trust()
    }

    /// The lists of wanted pieces, the oldest first.
    pub(crate) fn wanted(&self) -> Arc<[Arc<Wanted>]> {
        self.watch.wanted()
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

fn pack_state(view: &StateView<'_>, pack: Digest) -> Result<Option<PackState>, StateError> {
    let Some(blob) = table::read::<BlobRecord>(view, pack)? else {
        return Ok(None);
    };
    Ok(Some(PackState {
        generation: generation(view, pack)?,
        named: blob.entries > 0,
        referenced: blob.entries > 0 || blob.leases > 0,
        condemned: blob.condemned,
        stored: blob.stored,
    }))
}

fn generation(view: &StateView<'_>, pack: Digest) -> Result<u64, StateError> {
    let object: Option<ObjectRecord> = table::read(view, pack)?;
    Ok(object.unwrap_or_default().generation)
}
