//! L1: verified blobs in sealed memory.
//!
//! Invariant: bytes and blobs stay within the settings, pins and guards included; a blob
//! here is one descriptor and one mapping, so the number of blobs is a limit of
//! its own.
//!
//! The order of leaving is quick_cache's (S3-FIFO's kin): recency and frequency.
//! What is evicted here lies on the disk still, so the cost of a compile does
//! not enter: a miss in L1 costs a read, not a compile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytesize::ByteSize;
use kiln_proto::Digest;
use parking_lot::Mutex;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync::Cache};
use serde::{Deserialize, Serialize};

use super::{Blob, Hints, Tier, TierError, TierName, Usage, meter};

/// How much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemorySettings {
    /// Most bytes.
    pub capacity: ByteSize,
    /// Most blobs: each holds a descriptor open, so keep it well below the
    /// process's limit.
    pub max_entries: u64,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self { capacity: ByteSize::gib(1), max_entries: 4096 }
    }
}

#[derive(Clone)]
struct Resident {
    blob: Blob,
    stay: Arc<Stay>,
}

/// Why a blob may not leave. Changed only under [`MemoryTier::fixed`].
#[derive(Default)]
struct Stay {
    pinned: AtomicBool,
    guards: AtomicU32,
}

impl Stay {
    fn is_asked_for(&self) -> bool {
        self.pinned.load(Ordering::Relaxed) || self.guards.load(Ordering::Relaxed) > 0
    }
}

/// Keeps a blob in memory until it is dropped.
pub(super) struct MemoryGuard {
    tier: Arc<MemoryTier>,
    digest: Digest,
    stay: Arc<Stay>,
}

impl Drop for MemoryGuard {
    fn drop(&mut self) {
        self.tier.change(&self.digest, &self.stay, |stay| {
            stay.guards.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Charges every blob at least an even share of the capacity: then one weight
/// bounds bytes and entries both.
#[derive(Clone)]
struct Charge {
    least: u64,
}

impl Charge {
    fn of(&self, size: u64) -> u64 {
        size.max(self.least)
    }
}

impl Weighter<Digest, Resident> for Charge {
    fn weight(&self, _: &Digest, resident: &Resident) -> u64 {
        self.of(resident.blob.size())
    }
}

#[derive(Clone)]
struct Pins;

impl Lifecycle<Digest, Resident> for Pins {
    type RequestState = Vec<Blob>;

    fn is_pinned(&self, _: &Digest, resident: &Resident) -> bool {
        resident.stay.is_asked_for()
    }

    fn on_evict(&self, evicted: &mut Vec<Blob>, _: Digest, resident: Resident) {
        evicted.push(resident.blob);
    }
}

/// The memory tier.
pub struct MemoryTier {
    cache: Cache<Digest, Resident, Charge, DefaultHashBuilder, Pins>,
    charge: Charge,
    /// Changed only under [`MemoryTier::fixed`].
    capacity: AtomicU64,
    bytes: AtomicU64,
    /// What pins and guards are charged. Held by every writer: a pin and an
    /// insertion must not both take the last room. Readers do not need it.
    fixed: Mutex<u64>,
}

/// quick_cache admits nothing larger than this part of its capacity.
const LARGEST: f64 = 0.97;

impl MemoryTier {
    /// An empty tier.
    pub fn new(settings: &MemorySettings) -> Result<Self, TierError> {
        let refused = |why: String| TierError::Settings { tier: TierName::Memory, why };
        if settings.max_entries == 0 {
            return Err(refused(
                "max_entries is 0; to do without L1, give it a small capacity".into(),
            ));
        }
        let capacity = settings.capacity.as_u64();
        let charge = Charge { least: capacity.div_ceil(settings.max_entries).max(1) };
        let options = OptionsBuilder::new()
            // Shards would divide the capacity, and a large blob fit in none.
            .shards(1)
            .hot_allocation(LARGEST)
            .estimated_items_capacity(settings.max_entries as usize)
            .weight_capacity(capacity)
            .build()
            .map_err(|e| refused(e.to_string()))?;
        let hasher = DefaultHashBuilder::default();
        let cache = Cache::with_options(options, charge.clone(), hasher, Pins);
        let (bytes, fixed) = (AtomicU64::new(0), Mutex::new(0));
        Ok(Self { cache, charge, capacity: AtomicU64::new(capacity), bytes, fixed })
    }

    /// The blob, if it is here. Counts as a use.
    pub fn lookup(&self, digest: &Digest) -> Option<Blob> {
        let found = self.cache.get(digest).map(|resident| resident.blob);
        match found {
            Some(_) => meter::hit(TierName::Memory),
            None => meter::miss(TierName::Memory),
        }
        found
    }

    /// The blob, if it is here; neither a use nor a hit.
    pub(super) fn peek(&self, digest: &Digest) -> Option<Blob> {
        self.cache.peek(digest).map(|resident| resident.blob)
    }

    /// Whether it is here; no use.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.cache.contains_key(digest)
    }

    /// Keeps `blob`; returns what made room for it.
    pub fn admit(&self, blob: &Blob, pin: bool) -> Result<Vec<Digest>, TierError> {
        let (digest, charge) = (blob.digest(), self.charge.of(blob.size()));
        let mut fixed = self.fixed.lock();
        if let Some(known) = self.cache.peek(&digest) {
            if pin {
                self.change_locked(&mut fixed, &known, |stay| {
                    stay.pinned.store(true, Ordering::Relaxed);
                });
            }
            return Ok(Vec::new());
        }
        let capacity = self.capacity();
        let largest = (capacity as f64 * LARGEST) as u64;
        if charge > largest || charge > capacity.saturating_sub(*fixed) {
            let why = format!("{} of {capacity} bytes are pinned or guarded", *fixed);
            return Err(TierError::Full { tier: TierName::Memory, bytes: blob.size(), why });
        }
        let stay = Arc::new(Stay { pinned: pin.into(), ..Stay::default() });
        let resident = Resident { blob: blob.clone(), stay };
        let mut evicted = Vec::new();
        self.cache.insert_with_lifecycle(digest, resident, &mut evicted);
        if pin {
            *fixed += charge;
        }
        self.bytes.fetch_add(blob.size(), Ordering::Relaxed);
        let freed = evicted.iter().map(Blob::size).sum();
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        drop(fixed);
        meter::evicted(TierName::Memory, evicted.len() as u64);
        meter::usage(TierName::Memory, self.usage());
        Ok(evicted.iter().map(Blob::digest).collect())
    }

    /// Gives blobs up that nobody else holds, until `charge` bytes of the budget
    /// came back or none is left; returns them. In no order: rare, and what goes is
    /// on the disk still.
    pub(super) fn evict(&self, charge: u64) -> Vec<Digest> {
        let mut fixed = self.fixed.lock();
        let (mut freed, mut gone) = (0, Vec::new());
        for (digest, known) in self.cache.iter() {
            if freed >= charge {
                break;
            }
            // One clone is the cache's, one is this one.
            let ours_alone = known.blob.clones() <= 2;
            if known.blob.charge() == 0 || known.stay.is_asked_for() || !ours_alone {
                continue;
            }
            freed += known.blob.charge();
            gone.push(digest);
        }
        let blobs: Vec<_> =
            gone.iter().filter_map(|d| self.remove_unguarded(&mut fixed, d)).collect();
        drop(fixed);
        meter::evicted(TierName::Memory, gone.len() as u64);
        meter::usage(TierName::Memory, self.usage());
        drop(blobs);
        gone
    }

    /// Most bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// At most so many bytes from now on; what left for that. In no order, as
    /// [`evict`](Self::evict). What pins and guards have of it stays. The number of blobs
    /// is bounded as by the settings, or by less.
    pub(super) fn resize(&self, capacity: u64) -> Vec<Digest> {
        let mut fixed = self.fixed.lock();
        let mut excess = self.cache.weight().saturating_sub(capacity);
        let mut gone = Vec::new();
        for (digest, known) in self.cache.iter() {
            if excess == 0 {
                break;
            }
            if !known.stay.is_asked_for() {
                excess = excess.saturating_sub(self.charge.of(known.blob.size()));
                gone.push(digest);
            }
        }
        gone.retain(|digest| self.remove_unguarded(&mut fixed, digest).is_some());
        // Nothing is left for it to evict by itself, of which nobody would be told.
        let capacity = capacity.max(self.cache.weight());
        self.cache.set_capacity(capacity);
        self.capacity.store(capacity, Ordering::Relaxed);
        drop(fixed);
        meter::evicted(TierName::Memory, gone.len() as u64);
        meter::usage(TierName::Memory, self.usage());
        gone
    }

    /// Pins a blob or takes the pin back; whether it is here.
    pub fn set_pinned(&self, digest: &Digest, pin: bool) -> bool {
        let mut fixed = self.fixed.lock();
        let Some(known) = self.cache.peek(digest) else { return false };
        self.change_locked(&mut fixed, &known, |stay| stay.pinned.store(pin, Ordering::Relaxed));
        true
    }

    pub(super) fn is_pinned(&self, digest: &Digest) -> bool {
        self.cache.peek(digest).is_some_and(|known| known.stay.pinned.load(Ordering::Relaxed))
    }

    pub(super) fn pinned(&self) -> Vec<Digest> {
        let pinned = |known: &Resident| known.stay.pinned.load(Ordering::Relaxed);
        self.cache.iter().filter_map(|(digest, known)| pinned(&known).then_some(digest)).collect()
    }

    /// Keeps a blob that is here until the guard is dropped. `None`: it is not here.
    pub(super) fn guard(self: &Arc<Self>, digest: &Digest) -> Option<MemoryGuard> {
        let mut fixed = self.fixed.lock();
        let known = self.cache.peek(digest)?;
        self.change_locked(&mut fixed, &known, |stay| {
            stay.guards.fetch_add(1, Ordering::Relaxed);
        });
        Some(MemoryGuard { tier: Arc::clone(self), digest: *digest, stay: known.stay })
    }

    /// Changes why the blob of `stay` may not leave, if it is the one that is here.
    fn change(&self, digest: &Digest, stay: &Arc<Stay>, change: impl FnOnce(&Stay)) {
        let mut fixed = self.fixed.lock();
        match self.cache.peek(digest).filter(|known| Arc::ptr_eq(&known.stay, stay)) {
            Some(known) => self.change_locked(&mut fixed, &known, change),
            None => change(stay),
        }
    }

    #[cfg(test)]
    pub(super) fn fixed_bytes(&self) -> u64 {
        *self.fixed.lock()
    }

    fn change_locked(&self, fixed: &mut u64, known: &Resident, change: impl FnOnce(&Stay)) {
        let before = known.stay.is_asked_for();
        change(&known.stay);
        let charge = self.charge.of(known.blob.size());
        match (before, known.stay.is_asked_for()) {
            (false, true) => *fixed += charge,
            (true, false) => *fixed -= charge,
            _ => {}
        }
    }

    /// Forgets a blob; whether it was here. Who holds it keeps it, and one that is
    /// guarded stays.
    pub fn forget(&self, digest: &Digest) -> bool {
        let mut fixed = self.fixed.lock();
        let taken = self.remove_unguarded(&mut fixed, digest);
        drop(fixed);
        meter::usage(TierName::Memory, self.usage());
        taken.is_some()
    }

    fn remove_unguarded(&self, fixed: &mut u64, digest: &Digest) -> Option<Blob> {
        let unguarded = |known: &Resident| known.stay.guards.load(Ordering::Relaxed) == 0;
        let (_, known) = self.cache.remove_if(digest, unguarded)?;
        if known.stay.is_asked_for() {
            *fixed -= self.charge.of(known.blob.size());
        }
        self.bytes.fetch_sub(known.blob.size(), Ordering::Relaxed);
        Some(known.blob)
    }
}

#[async_trait]
impl Tier for MemoryTier {
    fn name(&self) -> TierName {
        TierName::Memory
    }

    async fn get(&self, digest: &Digest) -> Result<Option<Blob>, TierError> {
        Ok(self.lookup(digest))
    }

    async fn put(&self, blob: &Blob, hints: Hints) -> Result<(), TierError> {
        self.admit(blob, hints.pinned).map(|_| ())
    }

    async fn remove(&self, digest: &Digest) -> Result<bool, TierError> {
        Ok(self.forget(digest))
    }

    async fn contains(&self, digest: &Digest) -> Result<bool, TierError> {
        Ok(self.holds(digest))
    }

    fn usage(&self) -> Usage {
        let bytes = self.bytes.load(Ordering::Relaxed);
        let entries = self.cache.len() as u64;
        Usage { bytes, entries, capacity_bytes: Some(self.capacity()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::conformance::{self, blob};

    fn tier(capacity: u64, max_entries: u64) -> MemoryTier {
        MemoryTier::new(&MemorySettings { capacity: ByteSize(capacity), max_entries }).unwrap()
    }

    #[tokio::test]
    async fn conforms() {
        conformance::suite(&tier(64 << 20, 64)).await;
    }

    #[test]
    fn pins_are_never_evicted_and_never_exceed_the_capacity() {
        let tier = tier(10_000, 10);
        let pinned: Vec<_> = (0..9).map(|n| blob(n, 500)).collect();
        for blob in &pinned {
            tier.admit(blob, true).unwrap();
        }
        for n in 100..200 {
            tier.admit(&blob(n, 1000), false).unwrap();
            assert!(pinned.iter().all(|p| tier.holds(&p.digest())));
        }
        tier.admit(&blob(9, 500), true).unwrap();
        let refused = tier.admit(&blob(10, 1), false).unwrap_err();
        assert!(matches!(refused, TierError::Full { .. }), "{refused}");
        assert!(tier.set_pinned(&pinned[0].digest(), false));
        assert_eq!(tier.admit(&blob(10, 1), false).unwrap(), [pinned[0].digest()]);
    }

    #[test]
    fn evicted_memory_stays_valid_for_who_holds_it() {
        let tier = tier(1000, 10);
        let first = blob(1, 900);
        tier.admit(&first, false).unwrap();
        let held = tier.lookup(&first.digest()).unwrap();
        assert_eq!(tier.admit(&blob(2, 900), false).unwrap(), [first.digest()]);
        assert_eq!(&*held, &*blob(1, 900));
    }

    #[test]
    fn a_smaller_tier_gives_up_what_nothing_keeps_and_a_larger_one_takes_more() {
        let tier = tier(1000, 10);
        let pinned = blob(1, 300);
        tier.admit(&pinned, true).unwrap();
        (2..8).for_each(|n| assert_eq!(tier.admit(&blob(n, 100), false).unwrap(), []));
        let gone = tier.resize(450);
        assert_eq!(gone.len(), 5);
        assert!(tier.holds(&pinned.digest()) && gone.iter().all(|digest| !tier.holds(digest)));
        assert_eq!((tier.usage().bytes, tier.capacity()), (400, 450));
        assert!(tier.admit(&blob(9, 200), false).is_err(), "the pin has most of it");
        assert_eq!(tier.resize(100).len(), 1, "a pin stays");
        assert_eq!(tier.capacity(), 300, "and so does its room");
        assert_eq!(tier.resize(1000), []);
        assert_eq!(tier.admit(&blob(9, 500), false).unwrap(), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Invariant 10 for memory.
        #[test]
        fn caps_hold_for_any_input(
            ops in prop::collection::vec((0..20u64, 0..1200usize, 0..8u8), 1..200),
        ) {
            let tier = tier(4000, 8);
            let mut here = std::collections::HashMap::new();
            for (n, size, kind) in ops {
                let blob = blob(n, size);
                match kind {
                    0..5 => if let Ok(evicted) = tier.admit(&blob, kind == 0) {
                        here.insert(blob.digest(), blob.size());
                        for digest in evicted {
                            here.remove(&digest);
                        }
                    },
                    5 => {
                        tier.forget(&blob.digest());
                        here.remove(&blob.digest());
                    }
                    6 => { tier.set_pinned(&blob.digest(), size % 2 == 0); }
                    _ => if let Some(found) = tier.lookup(&blob.digest()) {
                        prop_assert_eq!(&*found, &*blob);
                    },
                }
                let usage = tier.usage();
                prop_assert!(usage.bytes <= 4000 && usage.entries <= 8, "{:?}", usage);
                prop_assert_eq!(usage.bytes, here.values().sum::<u64>());
                prop_assert_eq!(usage.entries, here.len() as u64);
            }
        }
    }
}
