//! What a metric is: its name, what it counts, and what its values mean.
//!
//! Invariant: a metric has the labels that it names and no others; none of them takes its
//! value from what a client sends, so that the number of series is bounded by the code.

use metrics::Unit;

/// One metric of the node.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As Prometheus reads it.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// What one is one of.
    pub unit: Unit,
    /// Which series there are.
    pub labels: &'static [&'static str],
    /// What it says, for people.
    pub help: &'static str,
}

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// How often which value was seen, by buckets with these upper ends.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The name that Prometheus has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Requests of any door: from a mapped blob to a wait for another node's compile.
pub(super) const REQUESTS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
    5.0, 30.0, 120.0, 600.0,
];
/// Compiles: from a small kernel to what the time limit ends.
pub(super) const COMPILES: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
/// What a disk and a quorum take: from an NVMe's fsync to a disk that is about to fail.
pub(super) const DISK: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];

/// A counter of events.
pub(super) const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit: Unit::Count, labels, help }
}

/// A counter of bytes.
pub(super) const fn bytes_total(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit: Unit::Bytes, labels, help }
}

/// A number of things, now.
pub(super) const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit: Unit::Count, labels, help }
}

/// Bytes, now.
pub(super) const fn bytes(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit: Unit::Bytes, labels, help }
}

/// How long something took.
pub(super) const fn seconds(
    name: &'static str,
    buckets: &'static [f64],
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram(buckets), unit: Unit::Seconds, labels, help }
}
