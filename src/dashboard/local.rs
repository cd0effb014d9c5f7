//! What this node tells of itself.
//!
//! Invariant: it asks no other node, so that two nodes that ask each other end.

use std::{sync::Arc, time::Instant};

use kiln_proto::NodeId;

use super::{
    reasons::Reasons,
    samples::Samples,
    sources::Sources,
    view::{Figures, FlightView, TierView},
    watched::watched,
};
use crate::{cache::Health, manager::Flight};

/// This node, looked at.
pub(super) struct Local {
    sources: Arc<Sources>,
    samples: Arc<Samples>,
    reasons: Reasons,
    began: Instant,
}

impl Local {
    pub(super) fn new(sources: Arc<Sources>, samples: Arc<Samples>) -> Self {
        Self { sources, samples, reasons: Reasons::default(), began: Instant::now() }
    }

    /// What there is to tell now, with the samples of spans later than `samples_after`.
    pub(super) fn figures(&self, samples_after: u64) -> Figures {
        let sources = &self.sources;
        let status = sources.cluster.status();
        let health = sources.tiers.health();
        let tiers = sources.tiers.usage().into_iter().map(|(name, usage)| TierView {
            name: name.to_string(),
            bytes: usage.bytes,
            entries: usage.entries,
            capacity_bytes: usage.capacity_bytes.unwrap_or_default(),
            healthy: health.contains(&(name, Health::Up)),
        });
        let counters = sources.counters.iter().flat_map(|source| source.snapshot());
        let role = if sources.cluster.has_left() { "removed" } else { status.role.name() };
        let flights = sources.manager.under_way();
        let (alerts, decisions) = watched(&sources.monitor.report());
        Figures {
            node: sources.node,
            version: crate::VERSION.into(),
            role: role.into(),
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            term: status.term,
            applied: status.applied,
            counters: counters.map(|(name, value)| (name.to_owned(), value)).collect(),
            tiers: tiers.collect(),
            compilers: sources.manager.compilers().fingerprints(),
            flights: flights.iter().map(|flight| shown(sources.node, flight)).collect(),
            misses: self.reasons.told(sources, sources.manager.recent().misses()),
            alerts,
            decisions,
            samples: self.samples.after(samples_after),
        }
    }
}

fn shown(node: NodeId, flight: &Flight) -> FlightView {
    let (pieces_over, pieces) = flight.pieces;
    FlightView {
        node,
        key: flight.key.to_string(),
        label: flight.label.clone(),
        compiler: flight.compiler.clone(),
        stage: flight.stage.name().into(),
        seconds: flight.age.as_secs_f64(),
        pieces_over: pieces_over as u64,
        pieces: pieces as u64,
    }
}
