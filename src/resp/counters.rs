//! What Redis clients did, for `kiln status` and `/metrics` alike.
//!
//! Invariant: counters only rise; a GET is a hit or a miss, and a SET ends in
//! exactly one way. One that was answered before it ended is counted as late besides.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::table::Family;
use crate::counters::CounterSource;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// Requests of any kind.
    Requests,
    /// Keys that were asked for and found.
    Hits,
    /// Keys that were asked for and not found.
    Misses,
    /// GETs that waited for another client's SET.
    Waits,
    /// Of those, the ones that got its value.
    WaitHits,
    /// Misses whose client holds the lease of the key.
    Leases,
    /// SETs that were committed.
    Stored,
    /// SETs of the bytes that the key had already.
    Unchanged,
    /// SETs that were answered and not stored, or not known to be.
    Failed,
    /// SETs that were answered before they were committed.
    Late,
    /// SETs whose place a later one took before they were committed.
    Superseded,
    /// Connections over the limit.
    Refused,
}

const NAMES: [(&str, &str); 12] = [
    ("resp_requests", "kiln_resp_requests_total"),
    ("resp_hits", "kiln_resp_hits_total"),
    ("resp_misses", "kiln_resp_misses_total"),
    ("resp_waits", "kiln_resp_waits_total"),
    ("resp_wait_hits", "kiln_resp_wait_hits_total"),
    ("resp_leases", "kiln_resp_leases_total"),
    ("resp_sets_stored", "kiln_resp_sets_stored_total"),
    ("resp_sets_unchanged", "kiln_resp_sets_unchanged_total"),
    ("resp_sets_failed", "kiln_resp_sets_failed_total"),
    ("resp_sets_late", "kiln_resp_sets_late_total"),
    ("resp_sets_superseded", "kiln_resp_sets_superseded_total"),
    ("resp_refused", "kiln_resp_refused_connections_total"),
];

/// Counts since the node started.
pub struct Counters {
    values: [AtomicU64; NAMES.len()],
    metrics: [metrics::Counter; NAMES.len()],
    open: AtomicU64,
    connections: metrics::Gauge,
    waited: metrics::Histogram,
    /// By family of command.
    took: [metrics::Histogram; 3],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: Default::default(),
            metrics: NAMES.map(|(_, metric)| metrics::counter!(metric)),
            open: AtomicU64::new(0),
            connections: metrics::gauge!("kiln_resp_connections"),
            waited: metrics::histogram!("kiln_resp_wait_seconds"),
            took: Family::ALL.map(|family| {
                metrics::histogram!("kiln_resp_request_seconds", "family" => family.name())
            }),
        }
    }
}

impl Counters {
    pub(super) fn add(&self, count: Count) {
        self.values[count as usize].fetch_add(1, Ordering::Relaxed);
        self.metrics[count as usize].increment(1);
    }

    pub(super) fn get(&self, count: Count) -> u64 {
        self.values[count as usize].load(Ordering::Relaxed)
    }

    /// A GET waited so long for another client.
    pub(super) fn waited(&self, seconds: f64) {
        self.waited.record(seconds);
    }

    /// A request was answered after so long.
    pub(super) fn took(&self, family: Family, time: Duration) {
        self.took[family as usize].record(time);
    }

    /// A connection begins; it ends when the guard is dropped.
    pub(super) fn connection(&self) -> Open<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.connections.increment(1);
        Open(self)
    }

    /// Connections now.
    pub(super) fn connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

impl CounterSource for Counters {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        NAMES.iter().zip(&self.values).map(|((name, _), value)| (*name, read(value))).collect()
    }
}

/// An open connection.
pub(super) struct Open<'a>(&'a Counters);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.connections.decrement(1);
    }
}
