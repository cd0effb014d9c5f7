//! The cache tiers: memory (L1), disk (L2), object store (L3).
//!
//! Invariant: tiers know digests and bytes, nothing of keys, manifests, peers
//! or the cluster; whoever asks [`Tiers`] gets bytes that were hashed here.

mod blob;
mod clock;
mod disk;
mod eviction;
mod memory;
mod meter;
mod tier;
mod tiered;

#[cfg(test)]
mod conformance;

pub use blob::{Blob, BlobError, BlobWriter};
pub use clock::{Clock, SystemClock};
pub use disk::{Change, DiskCounters, DiskSettings, DiskTier, Swept};
pub use eviction::{Candidate, CostAware, EvictionSettings, Lru, Policy, Rank};
pub use memory::{MemorySettings, MemoryTier};
pub use tier::{Health, Hints, Priority, Tier, TierError, TierName, Usage};
pub use tiered::{Kept, Tiers, TiersSettings};
