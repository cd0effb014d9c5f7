//! The disk tier's work, blocking: catalog, index and files kept in step.
//!
//! Invariant: locks are taken in the order room, folder, catalog; none but the
//! folder's is held during I/O on a file, and the catalog's during none at all.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use fail::fail_point;
use kiln_proto::Digest;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{
    catalog::{Catalog, FileId},
    files::{Files, ReadError},
    index::Index,
    record::Record,
};
use crate::cache::{Blob, Change, Charge, Clock, Health, Hints, TierError, TierName, Usage, meter};

/// Uses that are remembered before they are written together.
const TOUCHES: usize = 256;

pub(super) struct Store {
    pub(super) files: Files,
    pub(super) index: Index,
    pub(super) catalog: Mutex<Catalog>,
    pub(super) keep_free: u64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) changes: broadcast::Sender<Change>,
    pub(super) counters: Counters,
    pub(super) stop: AtomicBool,
    /// Held while room is made, so that what one caller freed no other takes.
    room: Mutex<()>,
    /// Used since the index was last written.
    touched: Mutex<HashSet<Digest>>,
    health: Mutex<Health>,
}

/// What happened since the start.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) corrupt: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) index_writes: AtomicU64,
    pub(super) operations: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// Room that was set aside; given back unless it is used.
struct Room<'a> {
    catalog: &'a Mutex<Catalog>,
    size: u64,
}

impl Room<'_> {
    fn fill(self, digest: Digest, record: Record) -> Record {
        let mut catalog = self.catalog.lock();
        catalog.release(self.size);
        let record = catalog.insert(digest, record);
        drop(catalog);
        std::mem::forget(self);
        record
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.catalog.lock().release(self.size);
    }
}

impl Store {
    pub(super) fn new(
        files: Files,
        index: Index,
        catalog: Catalog,
        keep_free: u64,
        clock: Arc<dyn Clock>,
        changes: broadcast::Sender<Change>,
    ) -> Self {
        Self {
            files,
            index,
            catalog: Mutex::new(catalog),
            keep_free,
            clock,
            changes,
            counters: Counters::default(),
            stop: AtomicBool::new(false),
            room: Mutex::new(()),
            touched: Mutex::new(HashSet::new()),
            health: Mutex::new(Health::Up),
        }
    }

    pub(super) fn get(&self, digest: &Digest, charge: Charge) -> Result<Option<Blob>, TierError> {
        let used = self.catalog.lock().touch(digest, self.clock.now_ms());
        let Some((record, file)) = used else { return Ok(None) };
        match self.files.read(digest, record.size, charge) {
            Ok(blob) => {
                self.touch(digest);
                Ok(Some(blob))
            }
            Err(why) => {
                self.set_unreadable_aside(digest, Some(file), &why);
                why.report(digest).map_or(Ok(None), Err)
            }
        }
    }

    pub(super) fn put(&self, blob: &Blob, hints: Hints) -> Result<(), TierError> {
        let (digest, size, now) = (blob.digest(), blob.size(), self.clock.now_ms());
        if self.merge(blob, hints, now)? {
            return Ok(());
        }
        let room = self.make_room(size)?;
        let written = self.files.write(blob);
        let temporary = written.map_err(|e| TierError::disk("write file", size, e))?;
        let folder = self.files.lock_folder(&digest);
        let placed = self.files.place(temporary, &digest);
        placed.map_err(|e| TierError::disk("name file", size, e))?;
        *self.health.lock() = Health::Up;
        fail_point!("blob.placed");
        let record = room.fill(digest, Record::new(size, hints, now));
        drop(folder);
        self.remember(&[(digest, record)], &[]);
        fail_point!("blob.recorded");
        self.changed(Change::Gained(digest));
        Ok(())
    }

    /// Adds `hints` to what is here already; false when it is not, or not whole:
    /// an acknowledgement speaks of bytes that were seen, not of a record of them.
    fn merge(&self, blob: &Blob, hints: Hints, now_ms: u64) -> Result<bool, TierError> {
        let digest = blob.digest();
        let (file, known) = {
            let mut catalog = self.catalog.lock();
            (catalog.file(&digest), catalog.merge(&digest, hints, now_ms))
        };
        let Some(record) = known else { return Ok(false) };
        match self.files.compare(blob) {
            Ok(()) => {
                self.remember(&[(digest, record)], &[]);
                Ok(true)
            }
            Err(why) if why.condemns() => {
                self.set_unreadable_aside(&digest, file, &why);
                Ok(false)
            }
            Err(why) => why.report(&digest).map_or(Ok(false), Err),
        }
    }

    /// Forgets a blob; false where it is not here, or guarded.
    pub(super) fn remove(&self, digest: &Digest) -> Result<bool, TierError> {
        let folder = self.files.lock_folder(digest);
        let mut catalog = self.catalog.lock();
        if catalog.is_guarded(digest) {
            return Ok(false);
        }
        let known = catalog.remove(digest).is_some();
        drop(catalog);
        let removed = self.files.remove(digest);
        drop(folder);
        fail_point!("remove.unlinked");
        if known {
            self.remember(&[], &[*digest]);
            fail_point!("remove.recorded");
            self.changed(Change::Lost(*digest));
        }
        removed.map_err(|e| TierError::disk("remove file", 0, e)).map(|file| known || file)
    }

    pub(super) fn set_pinned(&self, digest: &Digest, pinned: bool) -> Result<bool, TierError> {
        let known = self.catalog.lock().set_pinned(digest, pinned);
        let Some(record) = known else { return Ok(false) };
        // Unlike a use, a pin is a promise: not remembered is not done.
        self.counters.index_writes.fetch_add(1, Ordering::Relaxed);
        self.index.write(&[(*digest, record)], &[])?;
        fail_point!("pin.recorded");
        Ok(true)
    }

    pub(super) fn usage(&self) -> Usage {
        self.catalog.lock().usage()
    }

    pub(super) fn queue_upload(&self, digest: &Digest) -> Result<(), TierError> {
        self.catalog.lock().set_only_copy(digest, true);
        self.index.put_upload(digest)?;
        fail_point!("upload.queued");
        Ok(())
    }

    pub(super) fn finish_upload(&self, digest: &Digest) -> Result<(), TierError> {
        self.catalog.lock().set_only_copy(digest, false);
        self.index.delete_upload(digest)?;
        fail_point!("upload.finished");
        Ok(())
    }

    /// Writes the uses that were not written yet.
    pub(super) fn flush(&self) {
        self.remember(&[], &[]);
    }

    pub(super) fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// The device works again.
    pub(super) fn recovered(&self) {
        *self.health.lock() = Health::Up;
    }

    /// Counts a failure and remembers it until the next write that goes well.
    pub(super) fn judge<T>(&self, result: &Result<T, TierError>) {
        self.counters.operations.fetch_add(1, Ordering::Relaxed);
        let Err(e) = result else { return };
        if let TierError::Io { .. } = e {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        meter::failed(e);
        let capacity = self.usage().capacity_bytes.unwrap_or(u64::MAX);
        let fault = match e {
            TierError::Io { .. } => true,
            TierError::Full { bytes, .. } => *bytes <= capacity,
            _ => false,
        };
        if fault {
            *self.health.lock() = Health::Down { why: e.to_string() };
        }
    }

    /// A file that is not what it should be: out of the catalog and, where there
    /// is one, into quarantine. A file that the device can't read goes the same
    /// way, for otherwise no good copy could take its place. `file` is the one that
    /// was read: another that took its place meanwhile stays.
    pub(super) fn set_unreadable_aside(
        &self,
        digest: &Digest,
        file: Option<FileId>,
        why: &ReadError,
    ) {
        if !why.condemns() {
            return;
        }
        let counter = match why {
            ReadError::Missing => &self.counters.lost,
            _ => &self.counters.corrupt,
        };
        let folder = self.files.lock_folder(digest);
        let mut catalog = self.catalog.lock();
        if catalog.file(digest) != file {
            return;
        }
        let known = catalog.remove(digest).is_some();
        drop(catalog);
        let moved = self.files.quarantine(digest);
        drop(folder);
        if let Err(e) = moved {
            tracing::warn!(%digest, error = %e, "quarantine file");
        }
        if known {
            counter.fetch_add(1, Ordering::Relaxed);
            if let ReadError::Missing = why {
                meter::lost(TierName::Disk);
            }
            self.remember(&[], &[*digest]);
            self.changed(Change::Lost(*digest));
        }
    }

    /// Sets `size` bytes aside, within the capacity and within what the device
    /// has left: a cache gives way to its neighbours on a full device.
    fn make_room(&self, size: u64) -> Result<Room<'_>, TierError> {
        let full =
            |why: &str| TierError::Full { tier: TierName::Disk, bytes: size, why: why.into() };
        let _room = self.room.lock();
        let free = self.files.free_bytes().map_err(|e| TierError::disk("ask for room", 0, e))?;
        let mut catalog = self.catalog.lock();
        let spoken_for = self.keep_free.saturating_add(catalog.reserved_bytes());
        let shortfall = size.saturating_sub(free.saturating_sub(spoken_for));
        let victims = catalog.reserve(size, shortfall);
        drop(catalog);
        let victims = victims.ok_or_else(|| match shortfall {
            0 => full("what is here is pinned, or the blob is larger than the tier"),
            _ => full("the device is full, and what is here may not be evicted"),
        })?;
        let room = Room { catalog: &self.catalog, size };
        self.discard(&victims);
        Ok(room)
    }

    /// Removes the files of entries that were evicted from the catalog.
    pub(super) fn discard(&self, victims: &[(Digest, Record)]) {
        if victims.is_empty() {
            return;
        }
        let mut removed = Vec::with_capacity(victims.len());
        for (digest, _) in victims {
            let _folder = self.files.lock_folder(digest);
            // Put again since: that file is not the one that was evicted.
            if self.catalog.lock().get(digest).is_some() {
                continue;
            }
            removed.push(*digest);
            fail_point!("evict.begin");
            if let Err(e) = self.files.remove(digest) {
                tracing::warn!(%digest, error = %e, "remove evicted file");
            }
            self.changed(Change::Lost(*digest));
        }
        self.counters.evicted.fetch_add(victims.len() as u64, Ordering::Relaxed);
        meter::evicted(TierName::Disk, victims.len() as u64);
        fail_point!("evict.unlinked");
        self.remember(&[], &removed);
        fail_point!("evict.recorded");
    }

    fn touch(&self, digest: &Digest) {
        self.touch_all([*digest]);
    }

    /// Remembers that these were used.
    pub(super) fn touch_all(&self, digests: impl IntoIterator<Item = Digest>) {
        let mut touched = self.touched.lock();
        touched.extend(digests);
        let many = touched.len() >= TOUCHES;
        drop(touched);
        if many {
            self.flush();
        }
    }

    /// Writes records, and what was used since, to the index. What can't be
    /// written is lost with the next restart, which then adopts or drops.
    pub(super) fn remember(&self, stored: &[(Digest, Record)], deleted: &[Digest]) {
        let touched = std::mem::take(&mut *self.touched.lock());
        let mut records: Vec<_> = {
            let catalog = self.catalog.lock();
            touched.into_iter().filter_map(|d| Some((d, catalog.get(&d)?))).collect()
        };
        records.extend_from_slice(stored);
        if records.is_empty() && deleted.is_empty() {
            return;
        }
        self.counters.index_writes.fetch_add(1, Ordering::Relaxed);
        if let Err(e) = self.index.write(&records, deleted) {
            meter::failed(&e);
            tracing::warn!(error = %e, "the disk tier's index misses changes until the next start");
        }
    }

    fn changed(&self, change: Change) {
        meter::usage(TierName::Disk, self.usage());
        // No receiver: nobody wants to know.
        let _ = self.changes.send(change);
    }
}
