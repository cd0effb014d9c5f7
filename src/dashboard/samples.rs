//! This node's load and latency over time.
//!
//! Samples are taken at whole multiples of a span since the Unix epoch, so that those of
//! all nodes can be added up.
//!
//! Invariant: at most an hour of samples are in memory, whatever the load; a sample's counts
//! are what happened in its span alone.

use std::{collections::VecDeque, sync::Arc};

use histogram::SparseHistogram;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    sample::{Counts, KEPT, SPAN, Sample, slot_of},
    sources::Sources,
};
use crate::{clock, manager::FlightStage};

/// The samples of this node.
#[derive(Debug, Default)]
pub(super) struct Samples(Mutex<VecDeque<Sample>>);

impl Samples {
    pub(super) fn push(&self, sample: Sample) {
        let mut kept = self.0.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(sample);
    }

    /// Those of spans later than `slot`, the oldest first.
    pub(super) fn after(&self, slot: u64) -> Vec<Sample> {
        self.0.lock().iter().filter(|sample| sample.slot > slot).cloned().collect()
    }
}

/// Samples until `stop`.
pub(super) async fn run(sources: Arc<Sources>, samples: Arc<Samples>, stop: CancellationToken) {
    let mut before = sources.counts();
    loop {
        let now = clock::since_epoch();
        let slot = slot_of(now);
        let end = SPAN * u32::try_from(slot + 1).unwrap_or(u32::MAX);
        tokio::select! {
            () = tokio::time::sleep(end.saturating_sub(now)) => {}
            () = stop.cancelled() => return,
        }
        // A timer may come a moment before the clock: the next loop would see an empty span.
        if clock::since_epoch() < end {
            continue;
        }
        let counts = sources.counts();
        samples.push(sample(&sources, slot, counts.since(before)));
        before = counts;
    }
}

fn sample(sources: &Sources, slot: u64, counts: Counts) -> Sample {
    let (hits, compiles) = sources.manager.recent().latencies.take();
    let flights = sources.manager.under_way();
    let at = |stage| flights.iter().filter(|flight| flight.stage == stage).count() as u64;
    let bytes = |tier: &str| {
        let usage = sources.tiers.usage().into_iter();
        usage.filter(|(name, _)| name.as_str() == tier).map(|(_, usage)| usage.bytes).sum()
    };
    Sample {
        slot,
        counts,
        hits: pairs(&hits),
        compiles: pairs(&compiles),
        compiling: at(FlightStage::Compiling),
        waiting: at(FlightStage::Waiting),
        memory_bytes: bytes("memory"),
        disk_bytes: bytes("disk"),
    }
}

fn pairs(of: &SparseHistogram) -> Vec<(u32, u64)> {
    of.index().iter().copied().zip(of.count().iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_sample_goes_first_and_only_newer_ones_are_told() {
        let samples = Samples::default();
        for slot in 1..=KEPT as u64 + 5 {
            samples.push(Sample { slot, ..Sample::default() });
        }
        assert_eq!(samples.after(0).len(), KEPT);
        assert_eq!(samples.after(0)[0].slot, 6);
        assert_eq!(samples.after(KEPT as u64 + 4).len(), 1);
    }
}
