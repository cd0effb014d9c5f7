//! What the API answers from.
//!
//! Invariant: a caller that names no namespace or no bound gets the configured
//! one, in whichever call.

use std::{sync::Arc, time::Duration};

use kiln_cluster::{Cluster, Index};
use kiln_proto::pb;
use tokio::time::Instant;

use super::{departure::Departure, meters::Meters, wire};
use crate::{
    cache::{Arrivals, Tiers},
    counters::CounterSource,
    dashboard::Dashboard,
    error::Error,
    manager::{Manager, Request},
    monitor::Monitor,
    net::tls::Dialer,
};

/// The parts of the node that calls ask.
pub struct Parts {
    /// This node's id.
    pub node: u64,
    /// Compile, load, save.
    pub manager: Arc<Manager>,
    /// The replicated index.
    pub index: Index,
    /// Membership.
    pub cluster: Arc<Cluster>,
    /// The way to the other members.
    pub dialer: Dialer,
    /// The way out of the cluster.
    pub departure: Arc<Departure>,
    /// For their usage.
    pub tiers: Arc<Tiers>,
    /// Memory for what clients send.
    pub arrivals: Arrivals,
    /// In which who publishes must send 64 KiB.
    pub patience: Duration,
    /// Bound on a call whose caller names none.
    pub default_deadline: Duration,
    /// Tenant of a call whose caller names none.
    pub default_namespace: String,
    /// The metrics.
    pub meters: Meters,
    /// What the status call adds up.
    pub counters: Vec<Arc<dyn CounterSource>>,
    /// What is shown of the cluster.
    pub dashboard: Arc<Dashboard>,
    /// What the node sees of itself.
    pub monitor: Monitor,
}

impl Parts {
    /// One request per target, for the tenant that the caller names.
    pub(super) fn requests(&self, mut wire: pb::CompileRequest) -> Result<Vec<Request>, Error> {
        if wire.namespace.is_empty() {
            wire.namespace.clone_from(&self.default_namespace);
        }
        let bound = wire::bound(wire.deadline_ms, self.default_deadline);
        Request::read(wire, Instant::now() + bound)
    }

    /// The namespace that a caller names, or the configured one.
    pub(super) fn namespace<'a>(&'a self, named: &'a str) -> &'a str {
        if named.is_empty() { &self.default_namespace } else { named }
    }
}
