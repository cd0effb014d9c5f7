//! What the disk tier holds and who goes first: in memory, without I/O.
//!
//! Invariant: bytes and entries, those held and those reserved together, never
//! exceed the limits; and `order` has exactly the entries that may be evicted:
//! those that are neither pinned nor guarded, nor pieces of a whole that is. A piece
//! goes after every whole here that is known to refer to it.

mod tune;

use std::collections::{BTreeSet, HashMap, HashSet};

use kiln_proto::Digest;

use super::{
    record::{Piece, Record},
    references::{References, Referred, Standing},
};
use crate::cache::{
    Hints, Usage,
    eviction::{Candidate, Policy, Rank},
};

/// References that may be remembered for each entry that may be held.
const REFERENCES: u64 = 2;
/// What a small tier may remember.
const FEWEST_REFERENCES: u64 = 8192;
/// A whole that was used so lately is not used again for the order of leaving.
const LATELY_MS: u64 = 30_000;

/// The most that may be held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

struct Entry {
    record: Record,
    /// Which of the files that had this name in turn it describes.
    file: FileId,
}

/// One file of this run: the next one with the same name has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64);

/// Before all ranks come those that exist elsewhere too; before a piece comes a whole
/// of the same standing.
type Place = (bool, Rank, bool, Digest);

pub(super) struct Catalog {
    entries: HashMap<Digest, Entry>,
    order: BTreeSet<Place>,
    policy: Box<dyn Policy>,
    limits: Limits,
    bytes: u64,
    /// Bytes and entries that can't be evicted: pinned, guarded, or both.
    fixed: Limits,
    /// How many guard each digest, whether it is here or not.
    guards: HashMap<Digest, u32>,
    /// Not yet in L3, here or not yet found here: evicted only when nothing else is left.
    only_copies: HashSet<Digest>,
    /// Which are wholes, of which pieces.
    references: References,
    /// Those of them that are here and may be evicted.
    evictable_only: Limits,
    /// Digests of which it will be known in a moment whether they are here, and
    /// for how many reasons.
    unsettled: HashMap<Digest, u32>,
    files: u64,
    /// Bytes and entries on their way in.
    reserved: Limits,
}

impl Catalog {
    pub(super) fn new(limits: Limits, policy: Box<dyn Policy>) -> Self {
        let none = Limits { bytes: 0, entries: 0 };
        let most = limits.entries.saturating_mul(REFERENCES).max(FEWEST_REFERENCES);
        let references = References::new(usize::try_from(most).unwrap_or(usize::MAX));
        Self {
            entries: HashMap::new(),
            order: BTreeSet::new(),
            policy,
            limits,
            bytes: 0,
            fixed: none,
            guards: HashMap::new(),
            only_copies: HashSet::new(),
            references,
            evictable_only: none,
            unsettled: HashMap::new(),
            files: 0,
            reserved: none,
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Record> {
        self.entries.get(digest).map(|e| e.record)
    }

    pub(super) fn digests(&self) -> Vec<Digest> {
        self.entries.keys().copied().collect()
    }

    /// With their sizes.
    pub(super) fn contents(&self) -> Vec<(Digest, u64)> {
        self.entries.iter().map(|(digest, entry)| (*digest, entry.record.size)).collect()
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
        let fixed = self.fixed.bytes.checked_add(self.reserved.bytes)?.checked_add(size)?;
        if fixed > self.limits.bytes
            || self.fixed.entries + self.reserved.entries + 1 > self.limits.entries
            || self.bytes - self.fixed.bytes < shortfall
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
            let Some(&(.., digest)) = self.order.first() else { break };
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
            known.touch(record.last_used_ms);
        }) {
            return merged;
        }
        self.files += 1;
        let file = FileId(self.files);
        self.add(digest, Entry { record, file });
        self.hold_pieces(&digest);
        record
    }

    /// Adds what `hints` say about an entry, which was just used.
    pub(super) fn merge(&mut self, digest: &Digest, hints: Hints, now_ms: u64) -> Option<Record> {
        self.update(digest, |known| {
            known.merge(hints);
            known.touch(now_ms);
        })
    }

    pub(super) fn touch(&mut self, digest: &Digest, now_ms: u64) -> Option<(Record, FileId)> {
        let record = self.update(digest, |known| known.touch(now_ms))?;
        Some((record, self.file(digest)?))
    }

    /// The file that an entry describes.
    pub(super) fn file(&self, digest: &Digest) -> Option<FileId> {
        self.entries.get(digest).map(|e| e.file)
    }

    /// From now on `digest`, here or not yet, is neither evicted nor removed.
    pub(super) fn guard(&mut self, digest: &Digest) {
        self.change_guards(digest, |guards| guards + 1);
    }

    /// Takes one guard back.
    pub(super) fn unguard(&mut self, digest: &Digest) {
        self.change_guards(digest, |guards| guards.saturating_sub(1));
    }

    pub(super) fn is_guarded(&self, digest: &Digest) -> bool {
        self.guards.contains_key(digest)
    }

    fn change_guards(&mut self, digest: &Digest, change: impl FnOnce(u32) -> u32) {
        // Out of the order and in again: its place depends on the guards.
        let entry = self.remove_entry(digest);
        match change(self.guards.get(digest).copied().unwrap_or(0)) {
            0 => self.guards.remove(digest),
            guards => self.guards.insert(*digest, guards),
        };
        if let Some(entry) = entry {
            self.add(*digest, entry);
            self.hold_pieces(digest);
        }
    }

    /// Something is under way that decides whether `digest` is here.
    pub(super) fn unsettle(&mut self, digest: &Digest) {
        *self.unsettled.entry(*digest).or_default() += 1;
    }

    /// It was decided.
    pub(super) fn settle(&mut self, digest: &Digest) {
        if let Some(reasons) = self.unsettled.get_mut(digest) {
            *reasons -= 1;
            if *reasons == 0 {
                self.unsettled.remove(digest);
            }
        }
    }

    pub(super) fn is_settled(&self, digest: &Digest) -> bool {
        !self.unsettled.contains_key(digest)
    }

    pub(super) fn set_pinned(&mut self, digest: &Digest, pinned: bool) -> Option<Record> {
        self.update(digest, |known| known.pinned = pinned)
    }

    pub(super) fn is_only_copy(&self, digest: &Digest) -> bool {
        self.only_copies.contains(digest)
    }

    /// Whether what L3 does not have yet takes more than half of the room that is left
    /// beside what cannot be evicted.
    pub(super) fn is_crowded(&self) -> bool {
        let Limits { bytes, entries } = self.limits;
        self.evictable_only.bytes > bytes.saturating_sub(self.fixed.bytes) / 2
            || self.evictable_only.entries > entries.saturating_sub(self.fixed.entries) / 2
    }

    pub(super) fn set_only_copy(&mut self, digest: &Digest, only_copy: bool) {
        // Out of the order and in again: its place depends on this.
        let entry = self.remove_entry(digest);
        match only_copy {
            true => self.only_copies.insert(*digest),
            false => self.only_copies.remove(digest),
        };
        if let Some(entry) = entry {
            self.add(*digest, entry);
            self.hold_pieces(digest);
        }
    }

    pub(super) fn remove(&mut self, digest: &Digest) -> Option<Record> {
        let record = self.remove_entry(digest).map(|e| e.record);
        self.forget_pieces(digest);
        record
    }

    /// Remembers that `whole`, here or expected, is of no use without `pieces`: they
    /// leave after it, and are fixed as long as it is.
    pub(super) fn refer(&mut self, whole: &Digest, pieces: &[Piece]) -> Referred {
        if self.references.knows(whole, pieces) {
            return Referred::Known;
        }
        self.let_go(whole);
        // Out of the order and in again: a whole is worth what it saves for all its bytes.
        let entry = self.remove_entry(whole);
        let referred = self.references.refer(whole, pieces);
        if let Some(entry) = entry {
            self.add(*whole, entry);
            self.hold_pieces(whole);
        }
        referred
    }

    /// All pieces that `whole` is known to be made of.
    pub(super) fn pieces(&self, whole: &Digest) -> std::sync::Arc<[Piece]> {
        self.references.pieces(whole)
    }

    /// Forgets what `whole` is made of: its pieces are blobs like others.
    pub(super) fn forget_pieces(&mut self, whole: &Digest) {
        self.let_go(whole);
        let entry = self.remove_entry(whole);
        self.references.forget(whole);
        if let Some(entry) = entry {
            self.add(*whole, entry);
        }
    }

    /// Whether `whole` is known to be made of `pieces`, and was used a moment ago, which
    /// is as good as now.
    pub(super) fn knows_use(&self, whole: &Digest, pieces: &[Piece], now_ms: u64) -> bool {
        let used = self.get(whole).map(|known| known.last_used_ms);
        used.is_some_and(|used| now_ms.saturating_sub(used) < LATELY_MS)
            && self.references.knows(whole, pieces)
    }

    /// Counts a use of `whole` as one of its pieces too; those that are here.
    pub(super) fn touch_whole(&mut self, whole: &Digest, now_ms: u64) -> Vec<Digest> {
        let pieces = self.pieces(whole);
        let all = pieces.iter().map(|piece| piece.pack).chain([*whole]);
        all.filter(|digest| self.touch(digest, now_ms).is_some()).collect()
    }

    /// Holds the pieces of `whole` at the standing that it has now.
    fn hold_pieces(&mut self, whole: &Digest) {
        let standing = self.entries.get(whole).map(|entry| self.own_standing(whole, entry));
        self.change_holds(whole, standing);
    }

    fn let_go(&mut self, whole: &Digest) {
        self.change_holds(whole, None);
    }

    fn change_holds(&mut self, whole: &Digest, after: Option<Standing>) {
        let before = self.references.standing(whole);
        if before == after {
            return;
        }
        for piece in &*self.references.pieces(whole) {
            let entry = self.remove_entry(&piece.pack);
            self.references.change_hold(whole, &piece.pack, before, after);
            if let Some(entry) = entry {
                self.add(piece.pack, entry);
            }
        }
        self.references.hold(whole, after);
    }

    fn update(&mut self, digest: &Digest, change: impl FnOnce(&mut Record)) -> Option<Record> {
        let mut entry = self.remove_entry(digest)?;
        change(&mut entry.record);
        let record = entry.record;
        self.add(*digest, entry);
        self.hold_pieces(digest);
        Some(record)
    }

    fn remove_entry(&mut self, digest: &Digest) -> Option<Entry> {
        let entry = self.entries.remove(digest)?;
        self.bytes -= entry.record.size;
        if self.is_fixed(digest, &entry) {
            self.fixed.bytes -= entry.record.size;
            self.fixed.entries -= 1;
        } else {
            self.order.remove(&self.place(digest, &entry));
            if self.is_only_copy(digest) {
                self.evictable_only.bytes -= entry.record.size;
                self.evictable_only.entries -= 1;
            }
        }
        Some(entry)
    }

    fn add(&mut self, digest: Digest, entry: Entry) {
        self.bytes += entry.record.size;
        if self.is_fixed(&digest, &entry) {
            self.fixed.bytes += entry.record.size;
            self.fixed.entries += 1;
        } else {
            self.order.insert(self.place(&digest, &entry));
            if self.is_only_copy(&digest) {
                self.evictable_only.bytes += entry.record.size;
                self.evictable_only.entries += 1;
            }
        }
        self.entries.insert(digest, entry);
    }

    fn is_fixed(&self, digest: &Digest, entry: &Entry) -> bool {
        entry.record.pinned
            || self.is_guarded(digest)
            || self.references.held(digest).is_some_and(|held| held.fixed)
    }

    fn place(&self, digest: &Digest, entry: &Entry) -> Place {
        let own = self.own_standing(digest, entry);
        let held = self.references.held(digest);
        let Standing { only_copy, rank, .. } = held.map_or(own, |held| held.max(own));
        (only_copy, rank, held.is_some(), *digest)
    }

    /// Without what wholes lend it.
    fn own_standing(&self, digest: &Digest, entry: &Entry) -> Standing {
        let Record { size, compile_seconds, priority, last_used_ms, pinned } = entry.record;
        let size = size.saturating_add(self.references.bytes(digest));
        let rank = self.policy.rank(&Candidate { size, compile_seconds, priority, last_used_ms });
        let fixed = pinned || self.is_guarded(digest);
        Standing { fixed, only_copy: self.is_only_copy(digest), rank }
    }
}
