//! The cache's metrics: names and labels in one place.
//!
//! Invariant: every metric of the tiers starts with `kiln_tier_` and carries the
//! label `tier`; no label takes a value from a request.

use metrics::{counter, gauge};

use super::{TierError, TierName, Usage};

pub(super) fn hit(tier: TierName) {
    counter!("kiln_tier_hits_total", "tier" => tier.as_str()).increment(1);
}

pub(super) fn miss(tier: TierName) {
    counter!("kiln_tier_misses_total", "tier" => tier.as_str()).increment(1);
}

pub(super) fn evicted(tier: TierName, blobs: u64) {
    counter!("kiln_tier_evictions_total", "tier" => tier.as_str()).increment(blobs);
}

/// A file that was there by the index and gone from the folder.
pub(super) fn lost(tier: TierName) {
    counter!("kiln_tier_lost_total", "tier" => tier.as_str()).increment(1);
}

/// A blob that is kept in memory only, for the disk did not take it.
pub(super) fn degraded() {
    counter!("kiln_tier_degraded_total", "tier" => TierName::Disk.as_str()).increment(1);
}

pub(super) fn failed(error: &TierError) {
    let tier = error.tier().as_str();
    if let TierError::Corrupt { .. } = error {
        counter!("kiln_tier_corrupt_total", "tier" => tier).increment(1);
    } else {
        counter!("kiln_tier_errors_total", "tier" => tier, "kind" => error.kind()).increment(1);
    }
}

pub(super) fn usage(tier: TierName, usage: Usage) {
    gauge!("kiln_tier_bytes", "tier" => tier.as_str()).set(usage.bytes as f64);
    gauge!("kiln_tier_entries", "tier" => tier.as_str()).set(usage.entries as f64);
    if let Some(most) = usage.capacity_bytes {
        gauge!("kiln_tier_capacity_bytes", "tier" => tier.as_str()).set(most as f64);
    }
}

/// What one pass over leftovers did, by `what`: `temporary`, `adopted`, ...
pub(super) fn swept(tier: TierName, what: &'static str, count: u64) {
    counter!("kiln_tier_swept_total", "tier" => tier.as_str(), "what" => what).increment(count);
}

pub(super) fn uploads_pending(count: u64) {
    gauge!("kiln_tier_uploads_pending", "tier" => TierName::Object.as_str()).set(count as f64);
}

pub(super) fn upload(outcome: &'static str) {
    let tier = TierName::Object.as_str();
    counter!("kiln_tier_uploads_total", "tier" => tier, "outcome" => outcome).increment(1);
}
