//! How much memory the blobs of one process may take together.
//!
//! Invariant: the charges that exist never exceed the budget. A blob is charged
//! from before its memory is allocated until its last clone is dropped, so a slow
//! reader counts like a writer; each costs at least an even share, so the number
//! of blobs, and of their descriptors, is bounded with their bytes.
//!
//! Caches that hold blobs only to save work give way first ([`Reclaim`]); whoever
//! still finds no room waits in turn, for a bounded time, and is then refused.

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use metrics::{counter, gauge};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The unit of account: a page.
const PAGE: u64 = 4096;

/// How much, and how patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetSettings {
    /// Most bytes of all blobs together.
    pub bytes: u64,
    /// Most blobs, each of which is a descriptor and a mapping.
    pub blobs: u64,
    /// Longest wait for others to give memory back.
    pub wait: Duration,
}

/// Why a budget has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Others have it: try again later, or elsewhere.
    #[error("{wanted} bytes: the memory for blobs in flight is taken; try again later")]
    Busy {
        /// Bytes asked for.
        wanted: u64,
    },
    /// It never fits: raise the limit.
    #[error("{wanted} bytes are more than memory.bytes and memory.in_flight together: {most}")]
    TooLarge {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes of the whole budget.
        most: u64,
    },
}

/// A cache that can give memory back.
pub trait Reclaim: Send + Sync {
    /// Drops blobs that nobody else holds, of at least `bytes` together if there
    /// are so many. Must not block.
    fn reclaim(&self, bytes: u64);
}

/// Memory for blobs; clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    pages: Arc<Semaphore>,
    most_pages: u32,
    /// What the smallest blob costs.
    least: u64,
    wait: Duration,
    waiting: AtomicUsize,
    cache: OnceLock<Weak<dyn Reclaim>>,
}

/// Memory that was set aside; given back when dropped.
#[derive(Debug)]
pub struct Charge {
    pages: OwnedSemaphorePermit,
}

impl Charge {
    /// Bytes that were set aside.
    pub fn bytes(&self) -> u64 {
        self.pages.num_permits() as u64 * PAGE
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        gauge!("kiln_blob_memory_bytes").decrement(self.bytes() as f64);
    }
}

impl Budget {
    /// A budget of which nothing is taken.
    pub fn new(settings: BudgetSettings) -> Self {
        let BudgetSettings { bytes, blobs, wait } = settings;
        let most_pages = (bytes / PAGE).clamp(1, u32::MAX.into());
        let least = (most_pages * PAGE).div_ceil(blobs.max(1)).max(PAGE);
        Self(Arc::new(Inner {
            pages: Arc::new(Semaphore::new(most_pages as usize)),
            most_pages: u32::try_from(most_pages).unwrap_or(u32::MAX),
            least,
            wait,
            waiting: AtomicUsize::new(0),
            cache: OnceLock::new(),
        }))
    }

    /// The cache that gives way when room is short. The first one stays.
    pub fn reclaim_from(&self, cache: Weak<dyn Reclaim>) {
        let first = self.0.cache.set(cache).is_ok();
        debug_assert!(first, "one budget, one cache");
    }

    /// Sets memory for a blob of `size` bytes aside. Waits a bounded time where
    /// it is short; refused requests were counted.
    pub async fn charge(&self, size: u64) -> Result<Charge, NoRoom> {
        let pages = self.pages_for(size)?;
        if let Ok(taken) = Arc::clone(&self.0.pages).try_acquire_many_owned(pages) {
            return Ok(charged(taken));
        }
        let _waiting = Waiting::new(&self.0.waiting);
        let mut turn = pin!(Arc::clone(&self.0.pages).acquire_many_owned(pages));
        // In the queue first, so that what the cache gives back comes to whoever
        // made it do so and not to a request that arrives meanwhile.
        let taken = match futures::poll!(turn.as_mut()) {
            std::task::Poll::Ready(taken) => Ok(taken),
            std::task::Poll::Pending => {
                if let Some(cache) = self.0.cache.get().and_then(Weak::upgrade) {
                    cache.reclaim(u64::from(pages) * PAGE);
                }
                timeout(self.0.wait, turn).await
            }
        };
        match taken {
            Ok(Ok(taken)) => Ok(charged(taken)),
            Ok(Err(_)) | Err(_) => {
                counter!("kiln_blob_memory_refused_total").increment(1);
                Err(NoRoom::Busy { wanted: size })
            }
        }
    }

    /// Whether somebody waits: then nothing is kept that can be had again.
    pub fn is_short(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// Longest wait for others to give memory back.
    pub fn patience(&self) -> Duration {
        self.0.wait
    }

    /// Bytes of the whole budget.
    pub fn capacity(&self) -> u64 {
        u64::from(self.0.most_pages) * PAGE
    }

    /// Bytes charged now.
    pub fn in_use(&self) -> u64 {
        self.capacity() - self.0.pages.available_permits() as u64 * PAGE
    }

    fn pages_for(&self, size: u64) -> Result<u32, NoRoom> {
        let pages = size.max(self.0.least).div_ceil(PAGE);
        match u32::try_from(pages) {
            Ok(pages) if pages <= self.0.most_pages => Ok(pages),
            _ => {
                counter!("kiln_blob_memory_refused_total").increment(1);
                Err(NoRoom::TooLarge { wanted: size, most: self.capacity() })
            }
        }
    }
}

fn charged(pages: OwnedSemaphorePermit) -> Charge {
    let charge = Charge { pages };
    gauge!("kiln_blob_memory_bytes").increment(charge.bytes() as f64);
    charge
}

/// Counts one that waits, also where its request is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    const MIB: u64 = 1 << 20;
    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    fn budget(wait: Duration) -> Budget {
        Budget::new(BudgetSettings { bytes: MIB, blobs: 16, wait })
    }

    /// Holds charges, and gives them back one by one.
    struct Cache(Mutex<Vec<Charge>>);

    impl Reclaim for Cache {
        fn reclaim(&self, mut bytes: u64) {
            while bytes > 0
                && let Some(charge) = self.0.lock().pop()
            {
                bytes = bytes.saturating_sub(charge.bytes());
            }
        }
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_a_bounded_time() {
        let budget = budget(SHORT);
        let taken = budget.charge(MIB).await.unwrap();
        assert_eq!(budget.charge(1).await.unwrap_err(), NoRoom::Busy { wanted: 1 });
        assert!(!budget.is_short(), "nobody waits any more");
        drop(taken);
        assert_eq!(budget.in_use(), 0);
        budget.charge(MIB).await.unwrap();
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_turn() {
        let budget = budget(LONG);
        let taken = budget.charge(MIB).await.unwrap();
        let (large, small) = tokio::join!(
            async {
                let large = budget.charge(MIB).await.unwrap();
                large.pages.num_permits()
            },
            async {
                tokio::task::yield_now().await;
                assert!(budget.is_short(), "the large one waits");
                drop(taken);
                budget.charge(1).await
            },
        );
        assert_eq!(large, 256);
        small.unwrap();
    }

    #[tokio::test]
    async fn tiny_blobs_are_bounded_in_number() {
        let budget = budget(SHORT);
        let mut all = Vec::new();
        for _ in 0..16 {
            all.push(budget.charge(0).await.unwrap());
        }
        assert_eq!(budget.charge(0).await.unwrap_err(), NoRoom::Busy { wanted: 0 });
    }

    #[tokio::test]
    async fn what_never_fits_is_refused_at_once() {
        let budget = budget(LONG);
        let refused = budget.charge(MIB + 1).await.unwrap_err();
        assert_eq!(refused, NoRoom::TooLarge { wanted: MIB + 1, most: MIB });
    }

    #[tokio::test]
    async fn a_cache_gives_way_before_anybody_waits() {
        let budget = budget(LONG);
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(budget.charge(0).await.unwrap());
        }
        let cache: Arc<Cache> = Arc::new(Cache(Mutex::new(held)));
        let weak: Weak<dyn Reclaim> = Arc::downgrade(&(cache.clone() as Arc<dyn Reclaim>));
        budget.reclaim_from(weak);
        let _half = budget.charge(MIB / 2).await.unwrap();
        assert_eq!(cache.0.lock().len(), 8);
    }
}
