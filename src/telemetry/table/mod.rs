//! All metrics that a node has: the one list from which their buckets, their descriptions
//! and `deploy/METRICS.md` come.
//!
//! Invariant: a name that is recorded anywhere is listed here with its labels, and what is
//! listed is recorded (a test reads the source for both).

mod cluster;
mod doors;
mod health;
mod requests;
mod tiers;

use super::metric::Metric;

/// Metrics of one part of the node.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Whose they are.
    pub title: &'static str,
    /// In the order in which one reads them.
    pub metrics: &'static [Metric],
}

/// All groups.
pub const GROUPS: &[Group] = &[
    Group { title: "Requests and compiles", metrics: requests::METRICS },
    Group { title: "What falls, and what the node does about itself", metrics: health::METRICS },
    Group { title: "Tiers", metrics: tiers::METRICS },
    Group { title: "Doors", metrics: doors::METRICS },
    Group { title: "Cluster and Raft", metrics: cluster::METRICS },
];

/// All metrics.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    GROUPS.iter().flat_map(|group| group.metrics)
}

/// The metric of that name.
pub fn find(name: &str) -> Option<&'static Metric> {
    all().find(|metric| metric.name == name)
}
