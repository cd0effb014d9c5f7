//! How long requests took, in buckets that can be added up over nodes.
//!
//! Invariant: recording is one atomic addition and never waits; all nodes have the same
//! buckets, each within an eighth of its values.

use std::time::Duration;

use histogram::{AtomicHistogram, Config, SparseHistogram};

use super::Outcome;

/// Buckets by the microsecond: an eighth wide, up to 19 hours. Longer counts as that.
pub const BUCKETS: Config = match Config::new(3, 36) {
    Ok(buckets) => buckets,
    Err(_) => panic!("the parameters of the buckets are valid"),
};
const LONGEST_US: u64 = (1 << 36) - 1;

/// Requests that were answered with an artifact since they were last taken.
#[derive(Debug)]
pub struct Latencies {
    hits: AtomicHistogram,
    compiles: AtomicHistogram,
}

impl Default for Latencies {
    fn default() -> Self {
        let empty = || AtomicHistogram::with_config(&BUCKETS);
        Self { hits: empty(), compiles: empty() }
    }
}

impl Latencies {
    /// A request was answered after so long. Who waited for another's compile waited for
    /// a compile.
    pub(super) fn record(&self, outcome: Outcome, took: Duration) {
        let of = match outcome {
            Outcome::Hit => &self.hits,
            Outcome::Compiled | Outcome::Coalesced => &self.compiles,
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(LONGEST_US);
        // Never out of range: it was cut to the last bucket.
        drop(of.increment(micros));
    }

    /// Hits and compiles, in microseconds, since the last call, which begins anew.
    pub fn take(&self) -> (SparseHistogram, SparseHistogram) {
        let taken = |of: &AtomicHistogram| SparseHistogram::from(&of.drain());
        (taken(&self.hits), taken(&self.compiles))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_not_taken_again_and_no_time_is_too_long() {
        let latencies = Latencies::default();
        latencies.record(Outcome::Hit, Duration::from_micros(100));
        latencies.record(Outcome::Coalesced, Duration::MAX);
        let (hits, compiles) = latencies.take();
        let count = |of: &SparseHistogram| of.count().iter().sum::<u64>();
        assert_eq!((count(&hits), count(&compiles)), (1, 1));
        assert!(latencies.take().0.is_empty());
    }
}
