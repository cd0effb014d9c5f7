//! One sample of a node's load, and the time that it covers.
//!
//! Invariant: plain data; another node's figures are taken as they come, and neither their
//! sums nor their buckets can break anything here.

use std::time::Duration;

use histogram::SparseHistogram;
use serde::{Deserialize, Serialize};

use crate::manager::BUCKETS;

/// What one sample covers.
pub(super) const SPAN: Duration = Duration::from_secs(5);
/// An hour of them.
pub(super) const KEPT: usize = 720;

/// Requests by how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Answered from memory.
    pub hits_memory: u64,
    /// Answered from disk.
    pub hits_disk: u64,
    /// Answered with another node's bytes.
    pub hits_peer: u64,
    /// Answered from the object store.
    pub hits_object: u64,
    /// Waited for another's compile.
    pub coalesced: u64,
    /// Compiled here.
    pub compiled: u64,
    /// Ended with an error.
    pub failed: u64,
    /// Redis clients' values that were found.
    pub resp_hits: u64,
    /// Redis clients' values that were not.
    pub resp_misses: u64,
}

/// What happened in one span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Which span: its beginning is this times [`SPAN`] after the Unix epoch.
    pub slot: u64,
    /// Requests in it.
    pub counts: Counts,
    /// Bucket and count, of hits in microseconds; see [`BUCKETS`].
    pub hits: Vec<(u32, u64)>,
    /// The same of compiles, and of waits for compiles.
    pub compiles: Vec<(u32, u64)>,
    /// Flights that compile, at its end.
    pub compiling: u64,
    /// Flights that wait.
    pub waiting: u64,
    /// Bytes in this node's memory tier.
    pub memory_bytes: u64,
    /// Bytes on its disk tier.
    pub disk_bytes: u64,
}

impl Counts {
    /// What `snapshot` counts.
    pub(super) fn read(snapshot: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        let mut counts = Self::default();
        for (name, value) in snapshot {
            if let Some(count) = counts.named(name) {
                *count = value;
            }
        }
        counts
    }

    fn named(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "hits_memory" => &mut self.hits_memory,
            "hits_disk" => &mut self.hits_disk,
            "hits_peer" => &mut self.hits_peer,
            "hits_object" => &mut self.hits_object,
            "coalesced" => &mut self.coalesced,
            "compiled" => &mut self.compiled,
            "failed" => &mut self.failed,
            "resp_hits" => &mut self.resp_hits,
            "resp_misses" => &mut self.resp_misses,
            _ => return None,
        })
    }

    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            hits_memory: with(self.hits_memory, other.hits_memory),
            hits_disk: with(self.hits_disk, other.hits_disk),
            hits_peer: with(self.hits_peer, other.hits_peer),
            hits_object: with(self.hits_object, other.hits_object),
            coalesced: with(self.coalesced, other.coalesced),
            compiled: with(self.compiled, other.compiled),
            failed: with(self.failed, other.failed),
            resp_hits: with(self.resp_hits, other.resp_hits),
            resp_misses: with(self.resp_misses, other.resp_misses),
        }
    }

    /// What came since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        self.each(before, u64::saturating_sub)
    }

    /// Both together; another node's figures are taken as they come, and overflow nothing.
    pub(super) fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }
}

/// The histogram behind the pairs; `None` where there is no such.
pub(super) fn histogram(pairs: &[(u32, u64)]) -> Option<SparseHistogram> {
    let (index, count) = pairs.iter().copied().unzip();
    SparseHistogram::from_parts(BUCKETS, index, count).ok()
}

pub(super) fn slot_of(since_epoch: Duration) -> u64 {
    since_epoch.as_secs() / SPAN.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_name_and_never_go_below_nothing() {
        let before = Counts::read([("hits_disk", 5), ("resp_hits", 1), ("another", 9)]);
        let now = Counts::read([("hits_disk", 7)]);
        assert_eq!(now.since(before), Counts { hits_disk: 2, ..Counts::default() });
        let most = Counts { failed: u64::MAX, ..Counts::default() };
        assert_eq!(most.plus(most).failed, u64::MAX);
    }

    #[test]
    fn what_is_no_histogram_is_none() {
        assert!(histogram(&[(3, 1), (4, 1)]).is_some());
        for broken in [&[(4, 1), (3, 1)][..], &[(u32::MAX, 1)], &[(3, 1), (3, 1)]] {
            assert!(histogram(broken).is_none(), "{broken:?}");
        }
    }
}
