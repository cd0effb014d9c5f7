//! The samples of all nodes, added up.
//!
//! Invariant: at most an hour of spans are kept; a node is in a span once,
//! with what it told last; what a node tells of the future is not kept.

use std::collections::{BTreeMap, HashMap};

use histogram::SparseHistogram;
use kiln_proto::NodeId;

use super::{
    sample::{Counts, KEPT, SPAN, Sample, histogram},
    view::Point,
};

/// Spans that another node's clock may be ahead.
const AHEAD: u64 = 12;
const QUANTILES: [f64; 3] = [0.50, 0.95, 0.99];

/// Samples by span and node.
#[derive(Debug, Default)]
pub(super) struct History(BTreeMap<u64, HashMap<NodeId, Sample>>);

impl History {
    /// What `node` sampled.
    pub(super) fn add(&mut self, node: NodeId, samples: Vec<Sample>, now: u64) {
        for sample in samples {
            if sample.slot <= now + AHEAD && sample.slot + KEPT as u64 > now {
                self.0.entry(sample.slot).or_default().insert(node, sample);
            }
        }
        while self.0.len() > KEPT {
            self.0.pop_first();
        }
        self.0.retain(|slot, _| slot + KEPT as u64 + AHEAD > now);
    }

    /// The last `most` spans, the oldest first. Spans without a sample are left out.
    pub(super) fn points(&self, most: usize) -> Vec<Point> {
        let from = self.0.len().saturating_sub(most);
        self.0.iter().skip(from).map(|(slot, samples)| point(*slot, samples)).collect()
    }
}

fn point(slot: u64, samples: &HashMap<NodeId, Sample>) -> Point {
    let sum = |of: fn(&Sample) -> u64| samples.values().map(of).fold(0, u64::saturating_add);
    let counts = samples.values().fold(Counts::default(), |sum, one| sum.plus(one.counts));
    Point {
        at_unix_ms: slot.saturating_mul(SPAN.as_secs()).saturating_mul(1000),
        nodes: samples.len() as u64,
        counts,
        hit_ms: quantiles(samples.values().map(|sample| &sample.hits)),
        compile_ms: quantiles(samples.values().map(|sample| &sample.compiles)),
        compiling: sum(|sample| sample.compiling),
        waiting: sum(|sample| sample.waiting),
        memory_bytes: sum(|sample| sample.memory_bytes),
        disk_bytes: sum(|sample| sample.disk_bytes),
    }
}

/// Milliseconds; `None` where there is nothing. A node whose buckets make no sense is left out.
fn quantiles<'a>(of: impl Iterator<Item = &'a Vec<(u32, u64)>>) -> Option<[f64; 3]> {
    let mut all: Option<SparseHistogram> = None;
    for one in of.filter_map(|pairs| histogram(pairs)) {
        all = match all {
            None => Some(one),
            Some(sum) => Some(sum.checked_add(&one).unwrap_or(sum)),
        };
    }
    let found = all?.quantiles(&QUANTILES).ok().flatten()?;
    let mut millis = found.entries().values().map(|bucket| bucket.end() as f64 / 1000.0);
    Some([millis.next()?, millis.next()?, millis.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::BUCKETS;

    fn sample(slot: u64, micros: &[u64]) -> Sample {
        let mut hits = histogram::Histogram::with_config(&BUCKETS);
        micros.iter().for_each(|micros| hits.increment(*micros).unwrap());
        let sparse = SparseHistogram::from(&hits);
        let pairs = sparse.index().iter().copied().zip(sparse.count().iter().copied()).collect();
        let counts = Counts { hits_memory: micros.len() as u64, ..Counts::default() };
        Sample { slot, counts, hits: pairs, ..Sample::default() }
    }

    #[test]
    fn percentiles_are_those_of_all_nodes_together() {
        let mut history = History::default();
        history.add(1, vec![sample(100, &[1000; 98])], 100);
        history.add(2, vec![sample(100, &[1_000_000; 2])], 100);
        let points = history.points(9);
        assert_eq!((points.len(), points[0].nodes, points[0].counts.hits_memory), (1, 2, 100));
        let [p50, p95, p99] = points[0].hit_ms.unwrap();
        assert!((1.0..1.2).contains(&p50) && p95 == p50, "{p50} {p95}");
        assert!((1000.0..1150.0).contains(&p99), "{p99}");
        assert_eq!(points[0].compile_ms, None);
    }

    #[test]
    fn a_node_is_in_a_span_once_and_hostile_samples_are_left_out() {
        let mut history = History::default();
        history.add(1, vec![sample(100, &[5]), sample(100, &[5])], 100);
        let broken = Sample { hits: vec![(u32::MAX, u64::MAX)], ..sample(100, &[]) };
        history.add(2, vec![broken, sample(u64::MAX - 9, &[1]), sample(0, &[1])], 1000);
        history.add(3, vec![Sample { hits: vec![(7, u64::MAX)], ..sample(1000, &[]) }], 1000);
        history.add(4, vec![Sample { hits: vec![(7, u64::MAX)], ..sample(1000, &[]) }], 1000);
        let points = history.points(9);
        assert_eq!(points.len(), 1, "{points:?}");
        assert!(points[0].hit_ms.is_some());
    }

    #[test]
    fn no_more_spans_are_kept_than_the_bound() {
        let mut history = History::default();
        let all = (1..=3 * KEPT as u64).map(|slot| sample(slot, &[])).collect();
        history.add(1, all, 2 * KEPT as u64);
        assert!(history.0.len() <= KEPT);
        assert_eq!(history.points(2).len(), 2);
    }
}
