//! What the disk tier holds and who goes first: in memory, without I/O.
//!
//! Invariant: bytes and entries, those held and those reserved together, never
//! exceed the limits; and `order` has exactly the entries that may be evicted.

use std::collections::{BTreeSet, HashMap};

use kiln_proto::Digest;
use serde::{Deserialize, Serialize};

use crate::cache::{
    Hints, Priority, Usage,
    eviction::{Candidate, Policy, Rank},
};

/// What the index stores about a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) compile_seconds: f64,
    pub(super) priority: Priority,
    pub(super) pinned: bool,
    pub(super) last_used_ms: u64,
}

impl Record {
    pub(super) fn new(size: u64, hints: Hints, now_ms: u64) -> Self {
        Self {
            size,
            compile_seconds: hints.compile_seconds,
            priority: hints.priority,
            pinned: hints.pinned,
            last_used_ms: now_ms,
        }
    }

    /// Better knowledge of the same blob: a pin stays, a cost is not forgotten.
    fn merge(&mut self, hints: Hints) {
        self.compile_seconds = self.compile_seconds.max(hints.compile_seconds);
        self.priority = self.priority.max(hints.priority);
        self.pinned |= hints.pinned;
    }
}

/// The most that may be held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

struct Entry {
    record: Record,
    /// Not yet in L3: evicted only when nothing else is left.
    only_copy: bool,
}

/// Before all ranks come those that exist elsewhere too.
type Place = (bool, Rank, Digest);

pub(super) struct Catalog {
    entries: HashMap<Digest, Entry>,
    order: BTreeSet<Place>,
    policy: Box<dyn Policy>,
    limits: Limits,
    bytes: u64,
    /// Bytes and entries that can't be evicted.
    pinned: Limits,
    /// Bytes and entries on their way in.
    reserved: Limits,
}

impl Catalog {
    pub(super) fn new(limits: Limits, policy: Box<dyn Policy>) -> Self {
        let none = Limits { bytes: 0, entries: 0 };
        Self {
            entries: HashMap::new(),
            order: BTreeSet::new(),
            policy,
            limits,
            bytes: 0,
            pinned: none,
            reserved: none,
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Record> {
        self.entries.get(digest).map(|e| e.record)
    }

    pub(super) fn digests(&self) -> Vec<Digest> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn pinned(&self) -> Vec<Digest> {
        let pinned = self.entries.iter().filter(|(_, entry)| entry.record.pinned);
        pinned.map(|(digest, _)| *digest).collect()
    }

    pub(super) fn usage(&self) -> Usage {
        let entries = self.entries.len() as u64;
        Usage { bytes: self.bytes, entries, capacity_bytes: Some(self.limits.bytes) }
    }

    /// Sets room for `size` bytes aside, removing as many others as that takes,
    /// and at least `shortfall` bytes of them. `None`, and nothing removed, when
    /// pins and reservations leave too little.
    pub(super) fn reserve(&mut self, size: u64, shortfall: u64) -> Option<Vec<(Digest, Record)>> {
        let fixed = self.pinned.bytes.checked_add(self.reserved.bytes)?.checked_add(size)?;
        if fixed > self.limits.bytes
            || self.pinned.entries + self.reserved.entries + 1 > self.limits.entries
            || self.bytes - self.pinned.bytes < shortfall
        {
            return None;
        }
        self.reserved.bytes += size;
        self.reserved.entries += 1;
        let enough = self.bytes - shortfall;
        Some(self.evict_down_to(enough))
    }

    /// Like [`reserve`](Self::reserve), but never at the cost of others.
    pub(super) fn reserve_spare(&mut self, size: u64) -> bool {
        let fits = self
            .bytes
            .checked_add(self.reserved.bytes)
            .and_then(|b| b.checked_add(size))
            .is_some_and(|b| b <= self.limits.bytes)
            && (self.entries.len() as u64 + self.reserved.entries) < self.limits.entries;
        if fits {
            self.reserved.bytes += size;
            self.reserved.entries += 1;
        }
        fits
    }

    pub(super) fn release(&mut self, size: u64) {
        self.reserved.bytes -= size;
        self.reserved.entries -= 1;
    }

    /// Removes entries, lowest rank first, until the limits hold.
    pub(super) fn shrink(&mut self) -> Vec<(Digest, Record)> {
        self.evict_down_to(self.limits.bytes)
    }

    fn evict_down_to(&mut self, bytes: u64) -> Vec<(Digest, Record)> {
        let mut victims = Vec::new();
        while self.bytes > bytes
            || self.bytes + self.reserved.bytes > self.limits.bytes
            || self.entries.len() as u64 + self.reserved.entries > self.limits.entries
        {
            let Some(&(_, _, digest)) = self.order.first() else { break };
            victims.extend(self.remove(&digest).map(|record| (digest, record)));
        }
        victims
    }

    /// Bytes that are on their way in.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reserved.bytes
    }

    /// Adds an entry, or learns more about one that is there.
    pub(super) fn insert(&mut self, digest: Digest, record: Record) -> Record {
        let hints = Hints {
            compile_seconds: record.compile_seconds,
            priority: record.priority,
            pinned: record.pinned,
        };
        if let Some(merged) = self.update(&digest, |known| {
            known.merge(hints);
            known.last_used_ms = known.last_used_ms.max(record.last_used_ms);
        }) {
            return merged;
        }
        self.add(digest, Entry { record, only_copy: false });
        record
    }

    /// Adds what `hints` say about an entry, which was just used.
    pub(super) fn merge(&mut self, digest: &Digest, hints: Hints, now_ms: u64) -> Option<Record> {
        self.update(digest, |known| {
            known.merge(hints);
            known.last_used_ms = known.last_used_ms.max(now_ms);
        })
    }

    pub(super) fn touch(&mut self, digest: &Digest, now_ms: u64) -> Option<Record> {
        self.update(digest, |known| known.last_used_ms = known.last_used_ms.max(now_ms))
    }

    pub(super) fn set_pinned(&mut self, digest: &Digest, pinned: bool) -> Option<Record> {
        self.update(digest, |known| known.pinned = pinned)
    }

    pub(super) fn set_only_copy(&mut self, digest: &Digest, only_copy: bool) {
        if let Some(mut entry) = self.take(digest) {
            entry.only_copy = only_copy;
            self.add(*digest, entry);
        }
    }

    pub(super) fn remove(&mut self, digest: &Digest) -> Option<Record> {
        self.take(digest).map(|e| e.record)
    }

    fn update(&mut self, digest: &Digest, change: impl FnOnce(&mut Record)) -> Option<Record> {
        let mut entry = self.take(digest)?;
        change(&mut entry.record);
        let record = entry.record;
        self.add(*digest, entry);
        Some(record)
    }

    fn take(&mut self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.remove(digest)?;
        self.bytes -= entry.record.size;
        if entry.record.pinned {
            self.pinned.bytes -= entry.record.size;
            self.pinned.entries -= 1;
        } else {
            self.order.remove(&self.place(digest, &entry));
        }
        Some(entry)
    }

    fn add(&mut self, digest: Digest, entry: Entry) {
        self.bytes += entry.record.size;
        if entry.record.pinned {
            self.pinned.bytes += entry.record.size;
            self.pinned.entries += 1;
        } else {
            self.order.insert(self.place(&digest, &entry));
        }
        self.entries.insert(digest, entry);
    }

    fn place(&self, digest: &Digest, entry: &Entry) -> Place {
        let Record { size, compile_seconds, priority, last_used_ms, .. } = entry.record;
        let candidate = Candidate { size, compile_seconds, priority, last_used_ms };
        (entry.only_copy, self.policy.rank(&candidate), *digest)
    }
}
