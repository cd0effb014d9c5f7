//! All tiers of one node.
//!
//! Invariant: a blob comes up from a lower tier only as verified bytes, and one
//! reader at a time fetches it; a tier that fails is gone around, counted and
//! said, never waited for. What [`Tiers::insert`] says is kept stays kept as long
//! as its [`Guard`] lives.

use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use kiln_proto::Digest;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard, broadcast};

use super::{
    Blob, Budget, Change, Clock, DiskSettings, DiskTier, Health, Hints, MemorySettings, MemoryTier,
    ObjectSettings, ObjectTier, Piece, Presence, Reclaim, Removal, Tier, TierError, TierName,
    Usage, disk::DiskGuard, memory::MemoryGuard, meter, upload_queue::UploadQueue,
};

/// One lock for each of so many groups of digests.
const LANES: usize = 512;

/// All tiers' settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TiersSettings {
    /// L1.
    pub memory: MemorySettings,
    /// L2.
    pub disk: DiskSettings,
    /// L3.
    pub object: ObjectSettings,
}

/// Where a blob is kept now.
#[derive(Debug)]
pub enum Kept {
    /// On disk, durably.
    Disk,
    /// In memory only: it is lost with this process. Why the disk did not take it.
    Memory(TierError),
    /// Nowhere: memory has no room for it either. Why the disk did not take it.
    Nowhere(TierError),
}

/// What became of an insertion.
#[must_use = "what was not kept must not be acknowledged"]
pub struct Inserted {
    /// Where it is.
    pub kept: Kept,
    /// Keeps it there. Hold it until an index entry refers to the blob.
    pub guard: Guard,
}

/// While it lives, its blob is neither evicted nor removed from where it is kept.
#[must_use = "a guard that is dropped guards nothing"]
pub struct Guard {
    _disk: DiskGuard,
    /// Where memory alone has it.
    _memory: Option<MemoryGuard>,
}

/// Memory over disk, and the object store beside them.
pub struct Tiers {
    memory: Arc<MemoryTier>,
    disk: Arc<DiskTier>,
    object: Option<ObjectTier>,
    pub(super) uploads: UploadQueue,
    /// Many requests for one blob read it from the disk once, and a removal never
    /// comes between an insertion and its acknowledgement.
    lanes: Vec<Arc<Mutex<()>>>,
    /// What all blobs of the process are charged to.
    budget: Budget,
    /// Gives memory back where others need it.
    _reclaimer: Arc<ReclaimMemory>,
    /// Changes of what is in memory alone; those of the disk come from it.
    changes: broadcast::Sender<Change>,
}

impl Tiers {
    /// Opens all tiers.
    pub async fn open(
        settings: TiersSettings,
        budget: Budget,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TierError> {
        let memory = Arc::new(MemoryTier::new(&settings.memory)?);
        let object = match settings.object.url.clone() {
            Some(url) => Some(ObjectTier::open(url, settings.object).await?),
            None => None,
        };
        let room = budget.clone();
        let opened =
            tokio::task::spawn_blocking(move || DiskTier::open(&settings.disk, room, clock)).await;
        let disk = opened
            .map_err(|e| TierError::Unavailable { tier: TierName::Disk, why: e.to_string() })??;
        let uploads = UploadQueue::with(disk.uploads().await?);
        let disk = Arc::new(disk);
        let reclaimer = Arc::new(ReclaimMemory {
            memory: memory.clone(),
            disk: disk.clone(),
            changes: disk.sender(),
        });
        let weak: Weak<ReclaimMemory> = Arc::downgrade(&reclaimer);
        budget.reclaim_from(weak);
        let lanes = std::iter::repeat_with(Arc::default).take(LANES).collect();
        let changes = disk.sender();
        Ok(Self { memory, disk, object, uploads, lanes, budget, _reclaimer: reclaimer, changes })
    }

    /// The blob from memory or disk, and from which. [`TierError::Corrupt`] is a
    /// miss that says why: the copy here was bad and is no longer offered.
    pub async fn get_local(&self, digest: &Digest) -> Result<Option<(Blob, TierName)>, TierError> {
        if let Some(blob) = self.memory.lookup(digest) {
            return Ok(Some((blob, TierName::Memory)));
        }
        let _lane = self.lane(digest).await;
        // Somebody who asked before may have read it.
        if let Some(blob) = self.memory.peek(digest) {
            return Ok(Some((blob, TierName::Memory)));
        }
        let Some(blob) = self.disk.get(digest).await? else { return Ok(None) };
        self.keep_in_memory(&blob, self.disk.is_pinned(digest));
        Ok(Some((blob, TierName::Disk)))
    }

    /// Whether memory or disk has it, as far as is known without reading it.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.memory.holds(digest) || self.disk.holds(digest)
    }

    /// Whether memory or disk has each of these, as far as is known without reading it.
    pub fn holds_all<'a>(&self, mut digests: impl Iterator<Item = &'a Digest>) -> bool {
        digests.all(|digest| self.holds(digest))
    }

    /// Keeps `whole` and `pieces`, here or not yet, on the disk as long as the guards
    /// live: none of them makes room for another. None where they take more than half of
    /// the disk, which others need too.
    pub fn guard_together(&self, whole: &Digest, pieces: &[Piece]) -> Vec<Guard> {
        let bytes = pieces.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.size));
        if self.disk.usage().capacity_bytes.is_some_and(|most| bytes > most / 2) {
            return Vec::new();
        }
        let all = pieces.iter().map(|piece| &piece.pack).chain([whole]);
        all.map(|digest| Guard { _disk: self.disk.guard(digest), _memory: None }).collect()
    }

    /// Says that `whole`, which was just used, is of no use without `pieces`: on the disk
    /// they leave after it, stay as long as it is pinned or guarded, and a use of it is
    /// one of them. False: the disk does not have it, or remembers too many already, and
    /// its pieces are blobs like others.
    pub async fn keep_together(&self, whole: &Digest, pieces: &[Piece]) -> Result<bool, TierError> {
        self.disk.keep_together(whole, pieces).await
    }

    /// Whether this node has it, as far as is known without reading it: the answer
    /// for peers, who may give a blob up when nobody has it.
    pub fn presence(&self, digest: &Digest) -> Presence {
        match self.memory.holds(digest) {
            true => Presence::Here,
            false => self.disk.presence(digest),
        }
    }

    /// Keeps a blob: durably on the disk, then in memory. A disk that is full or
    /// fails leaves it in memory alone.
    pub async fn insert(&self, blob: &Blob, hints: Hints) -> Inserted {
        let digest = blob.digest();
        let _lane = self.lane(&digest).await;
        // Before the write, so that not even an eviction comes between the two.
        let disk = self.disk.guard(&digest);
        // Until it is in memory too, where the disk does not take it.
        let _unsettled = self.disk.unsettled(&digest);
        let on_disk = self.disk.put(blob, hints).await;
        let in_memory = self.keep_in_memory(blob, hints.pinned);
        let (kept, memory) = match on_disk {
            Ok(()) => (Kept::Disk, None),
            Err(e) => {
                meter::degraded();
                let guard = in_memory.then(|| self.memory.guard(&digest)).flatten();
                match &guard {
                    Some(_) => {
                        tracing::warn!(blob = %digest, error = %e, "kept in memory only");
                        // No receiver: nobody wants to know.
                        let _ = self.changes.send(Change::Gained(digest));
                        (Kept::Memory(e), guard)
                    }
                    None => {
                        tracing::warn!(blob = %digest, error = %e, "kept nowhere");
                        (Kept::Nowhere(e), None)
                    }
                }
            }
        };
        Inserted { kept, guard: Guard { _disk: disk, _memory: memory } }
    }

    /// Forgets a blob on this node that nothing guards, if `unreferenced` says so.
    /// It is asked on a blocking thread, right before the removal: no insertion of
    /// the same blob is acknowledged between the two.
    pub async fn remove_if(
        &self,
        digest: &Digest,
        unreferenced: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Removal, TierError> {
        let lane = self.lane(digest).await;
        let (memory, changes, digest) = (Arc::clone(&self.memory), self.changes.clone(), *digest);
        let forgot = Arc::new(AtomicBool::new(false));
        let forget = {
            let forgot = Arc::clone(&forgot);
            move || {
                let unreferenced = unreferenced();
                if unreferenced {
                    forgot.store(memory.forget(&digest), Ordering::Relaxed);
                }
                unreferenced
            }
        };
        let removal = self.disk.remove_if(&digest, lane, forget).await?;
        Ok(match removal {
            Removal::NotHere if forgot.load(Ordering::Relaxed) => {
                let _ = changes.send(Change::Lost(digest));
                Removal::Removed
            }
            removal => removal,
        })
    }

    async fn lane(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        Arc::clone(self.lane_of(digest)).lock_owned().await
    }

    fn lane_of(&self, digest: &Digest) -> &Arc<Mutex<()>> {
        let [a, b, ..] = *digest.as_bytes();
        &self.lanes[usize::from(u16::from_be_bytes([a, b])) % LANES]
    }

    /// Pins a blob on this node or takes the pin back; whether it is here.
    pub async fn set_pinned(&self, digest: &Digest, pinned: bool) -> Result<bool, TierError> {
        let in_memory = self.memory.set_pinned(digest, pinned);
        Ok(self.disk.set_pinned(digest, pinned).await? || in_memory)
    }

    /// Whether this node pins a blob, in memory or on disk.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.disk.is_pinned(digest) || self.memory.is_pinned(digest)
    }

    /// All blobs that this node pins. Looks at every one that it has.
    pub fn pinned(&self) -> HashSet<Digest> {
        self.disk.pinned().into_iter().chain(self.memory.pinned()).collect()
    }

    /// What is on this node's disk: to be told to the cluster at start.
    pub fn digests(&self) -> Vec<Digest> {
        self.disk.digests()
    }

    /// What is on this node's disk, with the bytes of each.
    pub fn contents(&self) -> Vec<(Digest, u64)> {
        self.disk.contents()
    }

    /// Blobs that this node gains and loses from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// At most so many bytes in memory from now on; what does not fit leaves.
    pub fn resize_memory(&self, bytes: u64) {
        notify_lost(&self.memory.resize(bytes), &self.disk, &self.changes);
    }

    /// What all blobs of this process are charged to.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// L1.
    pub fn memory(&self) -> &MemoryTier {
        &self.memory
    }

    /// L2.
    pub fn disk(&self) -> &DiskTier {
        &self.disk
    }

    /// L3, where there is one.
    pub fn object(&self) -> Option<&ObjectTier> {
        self.object.as_ref()
    }

    /// How full each tier is.
    pub fn usage(&self) -> Vec<(TierName, Usage)> {
        let local = [(TierName::Memory, self.memory.usage()), (TierName::Disk, self.disk.usage())];
        // A store that others fill too has no usage of ours.
        let object = self.object.as_ref().map(|_| (TierName::Object, Usage::default()));
        local.into_iter().chain(object).collect()
    }

    /// Whether each tier works. Memory always does.
    pub fn health(&self) -> Vec<(TierName, Health)> {
        let local = [(TierName::Memory, Health::Up), (TierName::Disk, self.disk.health())];
        let object = self.object.as_ref().map(|object| (TierName::Object, object.health()));
        local.into_iter().chain(object).collect()
    }

    /// Best effort: what does not fit in memory is read from the disk again.
    fn keep_in_memory(&self, blob: &Blob, pinned: bool) -> bool {
        // Somebody waits for memory, and the disk has this one: rather read it again.
        if self.budget.is_short() && self.disk.holds(&blob.digest()) {
            return false;
        }
        // A pin says "never lose this", which the disk sees to; it has its place
        // in memory only as long as that leaves room for others.
        let admitted = match self.memory.admit(blob, pinned) {
            Err(TierError::Full { .. }) if pinned => self.memory.admit(blob, false),
            admitted => admitted,
        };
        match admitted {
            Ok(evicted) => {
                notify_lost(&evicted, &self.disk, &self.changes);
                true
            }
            Err(e) => {
                tracing::debug!(error = %e, "not kept in memory");
                false
            }
        }
    }
}

/// Memory gives way where the budget is short.
struct ReclaimMemory {
    memory: Arc<MemoryTier>,
    disk: Arc<DiskTier>,
    changes: broadcast::Sender<Change>,
}

impl Reclaim for ReclaimMemory {
    fn reclaim(&self, bytes: u64) {
        notify_lost(&self.memory.evict(bytes), &self.disk, &self.changes);
    }
}

/// Notifies of those that left memory and are not on the disk.
fn notify_lost(evicted: &[Digest], disk: &DiskTier, changes: &broadcast::Sender<Change>) {
    for digest in evicted.iter().filter(|d| !disk.holds(d)) {
        // No receiver: nobody wants to know.
        let _ = changes.send(Change::Lost(*digest));
    }
}

#[cfg(test)]
mod tests;
