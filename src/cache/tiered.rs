//! All tiers of one node.
//!
//! Invariant: a blob comes up from a lower tier only as verified bytes, and one
//! reader at a time fetches it; a tier that fails is gone around, counted and
//! said, never waited for.

use std::{collections::HashSet, sync::Arc};

use kiln_proto::Digest;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, broadcast};

use super::{
    Blob, Change, Clock, DiskSettings, DiskTier, Health, Hints, MemorySettings, MemoryTier,
    ObjectSettings, ObjectTier, Tier, TierError, TierName, Usage, meter, uploads::Uploads,
};

/// One lock for each of so many groups of digests.
const LANES: usize = 64;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// On disk, durably.
    Disk,
    /// In memory only: the disk is full or fails. It is served as long as it stays.
    Memory,
    /// Nowhere: there was no room for it at all.
    Nowhere,
}

/// Memory over disk, and the object store beside them.
pub struct Tiers {
    memory: MemoryTier,
    disk: DiskTier,
    object: Option<ObjectTier>,
    pub(super) uploads: Uploads,
    /// Many requests for one blob read it from the disk once.
    lanes: [Mutex<()>; LANES],
    /// Changes of what is in memory alone; those of the disk come from it.
    changes: broadcast::Sender<Change>,
}

impl Tiers {
    /// Opens all tiers.
    pub async fn open(settings: TiersSettings, clock: Arc<dyn Clock>) -> Result<Self, TierError> {
        let memory = MemoryTier::new(&settings.memory)?;
        let object = &settings.object;
        let object =
            object.url.as_ref().map(|url| ObjectTier::from_url(url, object)).transpose()?;
        let opened =
            tokio::task::spawn_blocking(move || DiskTier::open(&settings.disk, clock)).await;
        let disk = opened
            .map_err(|e| TierError::Unavailable { tier: TierName::Disk, why: e.to_string() })??;
        let uploads = Uploads::with(disk.uploads().await?);
        let (lanes, changes) = ([const { Mutex::const_new(()) }; LANES], disk.sender());
        Ok(Self { memory, disk, object, uploads, lanes, changes })
    }

    /// The blob from memory or disk, and from which. [`TierError::Corrupt`] is a
    /// miss that says why: the copy here was bad and is no longer offered.
    pub async fn get_local(&self, digest: &Digest) -> Result<Option<(Blob, TierName)>, TierError> {
        if let Some(blob) = self.memory.lookup(digest) {
            return Ok(Some((blob, TierName::Memory)));
        }
        let _lane = self.lanes[usize::from(digest.as_bytes()[0]) % LANES].lock().await;
        // Somebody who asked before may have brought it up.
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

    /// Keeps a blob: durably on the disk, then in memory. A disk that is full or
    /// fails leaves it in memory alone.
    pub async fn insert(&self, blob: &Blob, hints: Hints) -> Kept {
        let on_disk = self.disk.put(blob, hints).await;
        let in_memory = self.keep_in_memory(blob, hints.pinned);
        let Err(e) = on_disk else { return Kept::Disk };
        meter::degraded();
        tracing::warn!(blob = %blob.digest(), error = %e, "kept in memory only");
        if !in_memory {
            return Kept::Nowhere;
        }
        // No receiver: nobody wants to know.
        let _ = self.changes.send(Change::Gained(blob.digest()));
        Kept::Memory
    }

    /// Forgets a blob on this node; whether it was here.
    pub async fn remove(&self, digest: &Digest) -> Result<bool, TierError> {
        let in_memory = self.memory.forget(digest);
        let on_disk = self.disk.remove(digest).await?;
        if in_memory && !on_disk {
            let _ = self.changes.send(Change::Lost(*digest));
        }
        Ok(in_memory || on_disk)
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

    /// Blobs that this node gains and loses from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
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
        let object = self.object.as_ref().map(|object| (TierName::Object, object.usage()));
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
        // A pin says "never lose this", which the disk sees to; it has its place
        // in memory only as long as that leaves room for others.
        let admitted = match self.memory.admit(blob, pinned) {
            Err(TierError::Full { .. }) if pinned => self.memory.admit(blob, false),
            admitted => admitted,
        };
        match admitted {
            Ok(evicted) => {
                for digest in evicted.iter().filter(|d| !self.disk.holds(d)) {
                    let _ = self.changes.send(Change::Lost(*digest));
                }
                true
            }
            Err(e) => {
                tracing::debug!(error = %e, "not kept in memory");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
