//! The parts of the node that the dashboard reads.
//!
//! Invariant: reading them changes nothing.

use std::sync::Arc;

use kiln_cluster::{Cluster, Index};
use kiln_proto::NodeId;

use super::sample::Counts;
use crate::{
    cache::Tiers, counters::CounterSource, manager::Manager, monitor::Monitor, net::tls::Dialer,
};

/// What the dashboard reads.
pub struct Sources {
    /// This node's id.
    pub node: NodeId,
    /// Flights, misses, latencies.
    pub manager: Arc<Manager>,
    /// Entries, leases, what is wanted.
    pub index: Index,
    /// Members.
    pub cluster: Arc<Cluster>,
    /// The way to them.
    pub dialer: Dialer,
    /// For their usage.
    pub tiers: Arc<Tiers>,
    /// What the parts of the node count.
    pub counters: Vec<Arc<dyn CounterSource>>,
    /// What the node sees of itself.
    pub monitor: Monitor,
}

impl Sources {
    /// Requests so far.
    pub(super) fn counts(&self) -> Counts {
        Counts::read(self.counters.iter().flat_map(|source| source.snapshot()))
    }
}
