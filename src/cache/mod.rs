//! The cache tiers: memory (L1), disk (L2), object store (L3).
//!
//! Invariant: tiers know digests and bytes, nothing of keys, manifests, peers
//! or the cluster; whoever asks [`Tiers`] gets bytes that were hashed here.

mod arrivals;
mod blob;
mod budget;
mod clock;
mod collect;
mod disk;
mod eviction;
mod memory;
mod meter;
mod object;
mod tier;
mod tiered;
mod upload_queue;
mod uploads;

#[cfg(test)]
pub(crate) mod conformance;

pub use arrivals::{Arrivals, Arriving};
pub use blob::{Blob, BlobError, BlobWriter};
pub use budget::{Budget, BudgetSettings, Charge, NoRoom, Reclaim};
pub use clock::{Clock, SystemClock};
pub use collect::{CollectSettings, Collected, Collector, PackIndex, PackState};
pub use disk::{DiskCounters, DiskSettings, DiskTier, Piece, Renewed, Swept};
pub use eviction::{Candidate, CostAware, EvictionSettings, Lru, Policy, Rank};
pub use memory::{MemorySettings, MemoryTier};
pub use object::{ObjectName, ObjectSettings, ObjectTier, STORE_MARKER, StoredPack};
pub use tier::{
    Change, Health, Hints, IndexError, Presence, Priority, Removal, Tier, TierError, TierName,
    Usage,
};
pub use tiered::{Guard, Inserted, Kept, Tiers, TiersSettings};
pub use uploads::UploadIndex;
