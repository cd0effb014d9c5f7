//! The status call.
//!
//! Invariant: it tells what this node sees now, and asks nobody.

use kiln_proto::pb;

use super::{parts::Parts, wire};
use crate::cache::Health;

/// This node's view of itself and the cluster.
pub(super) fn status(parts: &Parts) -> pb::StatusResponse {
    let status = parts.cluster.status();
    let nodes = status.nodes.iter().map(|node| pb::NodeStatus {
        id: node.id,
        grpc: node.facts.grpc.clone(),
        transfer: node.facts.transfer.clone(),
        voter: node.voter,
        reachable: node.reachable,
        compilers: node.facts.compilers.iter().map(Into::into).collect(),
    });
    let signers = parts.index.signers().into_iter();
    let counters = parts.counters.iter().flat_map(|source| source.snapshot());
    let health = parts.tiers.health();
    let tiers = parts.tiers.usage().into_iter().map(|(name, usage)| pb::TierStatus {
        name: name.to_string(),
        bytes: usage.bytes,
        entries: usage.entries,
        capacity_bytes: usage.capacity_bytes.unwrap_or_default(),
        healthy: health.contains(&(name, Health::Up)),
    });
    pb::StatusResponse {
        node: parts.node,
        version: crate::VERSION.into(),
        role: wire::role(&parts.cluster, status.role).into(),
        leader: status.leader.unwrap_or_default(),
        term: status.term,
        applied: status.applied,
        quorum: status.quorum,
        entries: status.entries,
        nodes: nodes.collect(),
        tiers: tiers.collect(),
        compilers: parts.manager.compilers().fingerprints().iter().map(Into::into).collect(),
        counters: counters.map(|(name, value)| pb::Counter { name: name.into(), value }).collect(),
        signers: signers
            .map(|(node, key)| pb::Signer { node, key: key.to_bytes().to_vec().into() })
            .collect(),
        leaving: parts.departure.progress().map(Into::into),
        emergency: emergency(parts),
    }
}

/// Absent where the node does without nothing.
fn emergency(parts: &Parts) -> Option<pb::EmergencyMode> {
    let mode = parts.monitor.emergency().mode();
    (!mode.is_normal()).then(|| (&mode).into())
}
