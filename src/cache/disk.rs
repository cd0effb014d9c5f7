//! L2: blobs as files of this node, named by their digest.
//!
//! Invariant: what `put` acknowledged survives power loss; what `get` returns
//! was hashed after it left the disk; capacity, entries, open files and memory
//! are bounded whatever is stored.
//!
//! `catalog` knows what is here and who goes first, `references` what belongs
//! together, `index` remembers it across restarts, `files` reads and writes, `sweep`
//! makes the three agree at start, and `store` keeps them in step. This file is their
//! asynchronous face: all of it runs on tokio's blocking threads, `parallelism` jobs at
//! a time.

mod catalog;
mod files;
mod index;
mod record;
mod references;
mod renew;
mod store;
mod sweep;
#[cfg(test)]
mod tests;
mod together;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use bytesize::ByteSize;
use kiln_proto::Digest;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, broadcast, watch};

use self::{
    catalog::{Catalog, Limits},
    files::{Files, QuarantineLimits},
    store::Store,
};
pub use self::{record::Piece, renew::Renewed, sweep::Swept};
use super::{
    Blob, Budget, Change, Clock, EvictionSettings, Health, Hints, Presence, Removal, Tier,
    TierError, TierName, Usage, meter,
};

/// Changes that a slow listener may be behind before it misses some.
const CHANGES: usize = 4096;

/// Keeps a digest from leaving the disk tier until it is dropped.
pub(super) struct DiskGuard {
    store: Arc<Store>,
    digest: Digest,
}

impl Drop for DiskGuard {
    fn drop(&mut self) {
        self.store.catalog.lock().unguard(&self.digest);
    }
}

/// Says that a digest may be here in a moment, until it is dropped.
pub(super) struct Unsettled {
    store: Arc<Store>,
    digest: Digest,
}

impl Unsettled {
    fn new(store: &Arc<Store>, digest: Digest) -> Self {
        store.catalog.lock().unsettle(&digest);
        Self { store: Arc::clone(store), digest }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.store.catalog.lock().settle(&self.digest);
    }
}

/// Where and how much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskSettings {
    /// The folder, which nothing else writes to.
    pub path: PathBuf,
    /// Most bytes of blobs. Beside them: the quarantine and a small index.
    pub capacity: ByteSize,
    /// Most blobs; each costs about 200 bytes of memory.
    pub max_entries: u64,
    /// Left free on the device for others, by evicting if need be.
    pub keep_free: ByteSize,
    /// Most bytes of corrupt files that are kept for a look at them.
    pub quarantine: ByteSize,
    /// File operations at a time, and so descriptors.
    pub parallelism: usize,
    /// Who goes first.
    pub eviction: EvictionSettings,
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self {
            path: "cache".into(),
            capacity: ByteSize::gib(64),
            max_entries: 200_000,
            keep_free: ByteSize::mib(256),
            quarantine: ByteSize::mib(256),
            parallelism: 8,
            eviction: EvictionSettings::default(),
        }
    }
}

/// Most files in quarantine.
const QUARANTINED: usize = 16;

/// What happened on this disk since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Files that were not what their name says, or could not be read.
    pub corrupt: u64,
    /// Blobs that made room for others.
    pub evicted: u64,
    /// Files that were gone when they were wanted.
    pub lost: u64,
    /// Writes to the index.
    pub index_writes: u64,
    /// Operations on files and index.
    pub operations: u64,
    /// Of these, those that the device or its file system failed.
    pub errors: u64,
}

/// The disk tier.
pub struct DiskTier {
    store: Arc<Store>,
    /// Memory for what is read.
    budget: Budget,
    permits: Arc<Semaphore>,
    swept: watch::Receiver<Option<Swept>>,
    adopter: Option<JoinHandle<()>>,
    /// Lets the sweep begin, in tests that hold it back.
    #[cfg(test)]
    go: Option<std::sync::mpsc::Sender<()>>,
}

impl DiskTier {
    /// Opens the tier and sweeps its folder; blocks. Files that the index does
    /// not know are verified in the background: see [`swept`](Self::swept).
    pub fn open(
        settings: &DiskSettings,
        budget: Budget,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TierError> {
        Self::open_with(settings, budget, clock, || {})
    }

    /// `before` runs on the sweep's thread before the first file is verified.
    fn open_with(
        settings: &DiskSettings,
        budget: Budget,
        clock: Arc<dyn Clock>,
        before: impl FnOnce() + Send + 'static,
    ) -> Result<Self, TierError> {
        let quarantine =
            QuarantineLimits { files: QUARANTINED, bytes: settings.quarantine.as_u64() };
        let files = Files::open(&settings.path, quarantine)
            .map_err(|e| TierError::disk("open folder", 0, e))?;
        let limits = Limits { bytes: settings.capacity.as_u64(), entries: settings.max_entries };
        let mut catalog = Catalog::new(limits, settings.eviction.policy());
        let (index, index_rebuilt) = index::Index::open(&files.index())?;
        let (mut swept, strays) = sweep::sweep(&files, &index, &mut catalog)?;
        swept.index_rebuilt = index_rebuilt;
        let excess = catalog.shrink();
        let changes = broadcast::Sender::new(CHANGES);
        let keep_free = settings.keep_free.as_u64();
        let store = Arc::new(Store::new(files, index, catalog, keep_free, clock, changes));
        store.discard(&excess);
        meter::usage(TierName::Disk, store.usage());
        let (done, swept_later) = watch::channel(None);
        let adopt = {
            let store = Arc::clone(&store);
            move || {
                before();
                sweep::adopt_all(&store, strays, &mut swept);
                done.send_replace(Some(swept));
            }
        };
        let adopter = std::thread::Builder::new().name("kiln-adopt".into()).spawn(adopt);
        Ok(Self {
            store,
            budget,
            permits: Arc::new(Semaphore::new(settings.parallelism.max(1))),
            swept: swept_later,
            adopter: Some(adopter.map_err(|e| TierError::disk("start sweep", 0, e))?),
            #[cfg(test)]
            go: None,
        })
    }

    /// What the sweep did, once the last unknown file was verified.
    pub async fn swept(&self) -> Swept {
        let mut swept = self.swept.clone();
        match swept.wait_for(Option::is_some).await {
            Ok(report) => report.unwrap_or_default(),
            // The sweep ended without a report: it was stopped.
            Err(_) => Swept::default(),
        }
    }

    /// Pins a blob or takes the pin back; whether it is here.
    pub async fn set_pinned(&self, digest: &Digest, pinned: bool) -> Result<bool, TierError> {
        let digest = *digest;
        self.run(move |store| store.set_pinned(&digest, pinned)).await
    }

    /// What is here, in no order.
    pub fn digests(&self) -> Vec<Digest> {
        self.store.catalog.lock().digests()
    }

    /// What is here and how many bytes each has, in no order.
    pub fn contents(&self) -> Vec<(Digest, u64)> {
        self.store.catalog.lock().contents()
    }

    /// Whether it is here, as far as is known without reading it; no use.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.store.catalog.lock().get(digest).is_some()
    }

    /// Whether the digest is here, not here, or not known yet: then it is being
    /// written, or its file waits to be verified.
    pub fn presence(&self, digest: &Digest) -> Presence {
        let catalog = self.store.catalog.lock();
        match (catalog.get(digest), catalog.is_settled(digest)) {
            (Some(_), _) => Presence::Here,
            (None, true) => Presence::Absent,
            (None, false) => Presence::Unknown,
        }
    }

    /// Until it is dropped, [`presence`](Self::presence) does not say "absent".
    pub(super) fn unsettled(&self, digest: &Digest) -> Unsettled {
        Unsettled::new(&self.store, *digest)
    }

    /// From now on `pieces` leave after `whole`, and a use of it is one of them. False:
    /// it is not here, or too many are remembered.
    pub(super) async fn keep_together(
        &self,
        whole: &Digest,
        pieces: &[Piece],
    ) -> Result<bool, TierError> {
        let now = self.store.clock.now_ms();
        if self.store.catalog.lock().knows_use(whole, pieces, now) {
            return Ok(true);
        }
        let (whole, pieces) = (*whole, pieces.to_vec());
        self.run(move |store| Ok(store.keep_together(&whole, &pieces))).await
    }

    /// What `whole` is known to be made of; none: it is no whole, as far as is known.
    pub fn pieces(&self, whole: &Digest) -> Arc<[Piece]> {
        self.store.catalog.lock().pieces(whole)
    }

    /// From now on `digest`, here or not yet, is neither evicted nor removed.
    pub(super) fn guard(&self, digest: &Digest) -> DiskGuard {
        self.store.catalog.lock().guard(digest);
        DiskGuard { store: Arc::clone(&self.store), digest: *digest }
    }

    /// Removes a blob that nothing guards if `decide` still says so where nothing
    /// can come in between: `lane` is held until it is done, also when the caller
    /// no longer waits for that.
    pub(super) async fn remove_if(
        &self,
        digest: &Digest,
        lane: impl Send + 'static,
        decide: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Removal, TierError> {
        let digest = *digest;
        self.run(move |store| {
            let _lane = lane;
            if store.catalog.lock().is_guarded(&digest) {
                return Ok(Removal::Guarded);
            }
            if !decide() {
                return Ok(Removal::Needed);
            }
            Ok(if store.remove(&digest)? { Removal::Removed } else { Removal::NotHere })
        })
        .await
    }

    pub(super) fn is_pinned(&self, digest: &Digest) -> bool {
        self.store.catalog.lock().get(digest).is_some_and(|record| record.pinned)
    }

    pub(super) fn pinned(&self) -> Vec<Digest> {
        self.store.catalog.lock().pinned()
    }

    /// Where others report what they keep beside the disk.
    pub(super) fn sender(&self) -> broadcast::Sender<Change> {
        self.store.changes.clone()
    }

    /// Digests that come and go from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.store.changes.subscribe()
    }

    /// What happened since the start.
    pub fn counters(&self) -> DiskCounters {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.store.counters;
        DiskCounters {
            corrupt: read(&counters.corrupt),
            evicted: read(&counters.evicted),
            lost: read(&counters.lost),
            index_writes: read(&counters.index_writes),
            operations: read(&counters.operations),
            errors: read(&counters.errors),
        }
    }

    /// Whether the device works and has room.
    pub fn health(&self) -> Health {
        self.store.health()
    }

    /// Seconds that a small file takes to be written durably, read and removed.
    pub async fn probe(&self) -> Result<Duration, TierError> {
        self.run(|store| store.files.probe().map_err(|e| TierError::disk("probe", 0, e))).await
    }

    /// Bytes of the device, and what it has left.
    pub async fn device_bytes(&self) -> Result<(u64, u64), TierError> {
        let asked = |store: &Store| store.files.device_bytes();
        self.run(move |store| asked(store).map_err(|e| TierError::disk("ask for room", 0, e))).await
    }

    /// At most so many bytes of blobs from now on; what does not fit leaves.
    pub async fn resize(&self, bytes: u64) -> Result<(), TierError> {
        self.run(move |store| {
            let victims = store.catalog.lock().resize(bytes);
            store.discard(&victims);
            Ok(())
        })
        .await
    }

    /// What leaves first from now on.
    pub async fn set_policy(&self, policy: EvictionSettings) -> Result<(), TierError> {
        self.run(move |store| {
            store.catalog.lock().set_policy(policy.policy());
            Ok(())
        })
        .await
    }

    /// Empties the quarantine, compares what is here with its files, and sees whether the
    /// device and the index take writes. Where this succeeds the tier is well.
    pub async fn renew(&self) -> Result<Renewed, TierError> {
        self.run(|store| {
            let renewed = store.renew()?;
            store.recovered();
            Ok(renewed)
        })
        .await
    }

    /// Uploads that were queued and not finished, also before a restart.
    pub(super) async fn uploads(&self) -> Result<Vec<Digest>, TierError> {
        self.run(|store| store.index.uploads()).await
    }

    /// Whether what waits for its upload takes more than half of the tier.
    pub(super) fn is_crowded(&self) -> bool {
        self.store.catalog.lock().is_crowded()
    }

    /// Remembers an upload; until it is finished the blob is evicted last.
    pub(super) async fn queue_upload(&self, digest: &Digest) -> Result<(), TierError> {
        let digest = *digest;
        self.run(move |store| store.queue_upload(&digest)).await
    }

    pub(super) async fn finish_upload(&self, digest: &Digest) -> Result<(), TierError> {
        let digest = *digest;
        self.run(move |store| store.finish_upload(&digest)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, TierError> + Send + 'static,
    ) -> Result<T, TierError> {
        let closed = |_| TierError::Unavailable { tier: TierName::Disk, why: "closed".into() };
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&store);
            store.judge(&result);
            drop(permit);
            result
        });
        done.await.unwrap_or_else(|e| {
            Err(TierError::Unavailable { tier: TierName::Disk, why: e.to_string() })
        })
    }
}

#[async_trait]
impl Tier for DiskTier {
    fn name(&self) -> TierName {
        TierName::Disk
    }

    async fn get(&self, digest: &Digest) -> Result<Option<Blob>, TierError> {
        let record = self.store.catalog.lock().get(digest);
        let Some(record) = record else {
            meter::miss(TierName::Disk);
            return Ok(None);
        };
        let charge = self.budget.charge(record.size).await.map_err(|e| {
            let error = TierError::Memory { tier: TierName::Disk, source: e.into() };
            meter::failed(&error);
            error
        })?;
        let digest = *digest;
        let found = self.run(move |store| store.get(&digest, charge)).await?;
        match found {
            Some(_) => meter::hit(TierName::Disk),
            None => meter::miss(TierName::Disk),
        }
        Ok(found)
    }

    async fn put(&self, blob: &Blob, hints: Hints) -> Result<(), TierError> {
        let blob = blob.clone();
        // Before the job has its turn: until it ends nobody may say "not here".
        let unsettled = Unsettled::new(&self.store, blob.digest());
        self.run(move |store| {
            let _unsettled = unsettled;
            store.put(&blob, hints)
        })
        .await
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, TierError> {
        let digest = *digest;
        self.run(move |store| store.remove(&digest)).await
    }

    async fn contains(&self, digest: &Digest) -> Result<bool, TierError> {
        Ok(self.holds(digest))
    }

    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.store.stop.store(true, Ordering::Relaxed);
        if let Some(adopter) = self.adopter.take()
            && adopter.join().is_err()
        {
            tracing::error!("the sweep of the disk tier panicked");
        }
        self.store.flush();
    }
}
