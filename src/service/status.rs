//! The status call.
//!
//! Invariant: it tells what this node sees now, and asks nobody but where the whole is
//! asked for: then it ends within [`PATIENCE`] and the scan's bound, and says what it did
//! not learn.

use std::{collections::HashSet, time::Duration};

use kiln_cluster::Role;
use kiln_proto::{Digest, pb, pb::kiln_client::KilnClient};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::{parts::Parts, trust, wire};
use crate::{
    cache::{Health, TierName},
    net::tls::Dialer,
    scan,
};

/// What the leader has for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What counting has.
const COUNTING: Duration = Duration::from_secs(5);

/// [`status`], with what the leader knows of the nodes, and the index of the object tier.
pub(super) async fn whole(parts: &Parts) -> pb::StatusResponse {
    let mut status = status(parts);
    if let Some((bytes, entries)) = count_stored(parts).await {
        for tier in status.tiers.iter_mut().filter(|tier| tier.uncounted) {
            (tier.bytes, tier.entries, tier.uncounted) = (bytes, entries, false);
        }
    }
    if status.role == Role::Leader.name() || status.leader == 0 {
        return status;
    }
    let leader = parts.cluster.status().nodes.into_iter().find(|node| node.id == status.leader);
    let asked = leader
        .map(|leader| timeout(PATIENCE, ask(&parts.dialer, leader.facts.members().to_owned())));
    let answer = match asked {
        Some(asked) => asked.await.ok().flatten(),
        None => None,
    };
    // One that leads no more knows no more than this node does.
    let answer = answer.filter(|a| a.node == status.leader && a.role == Role::Leader.name());
    if let Some(answer) = answer {
        status.seen_by = answer.node;
        for seen in answer.nodes {
            if let Some(node) = status.nodes.iter_mut().find(|node| node.id == seen.id) {
                (node.reachable, node.silent_ms) = (seen.reachable, seen.silent_ms);
            }
        }
    }
    status
}

/// What the node at `address` has at hand.
async fn ask(dialer: &Dialer, address: String) -> Option<pb::StatusResponse> {
    let channel = dialer.channel(&address, |e: Endpoint| e.connect_timeout(PATIENCE)).ok()?;
    let answer = KilnClient::new(channel).status(pb::StatusRequest::default()).await;
    Some(answer.ok()?.into_inner())
}

/// Bytes and number of the packs that the index says are in the object store; `None` where
/// there are more entries than can be read now.
async fn count_stored(parts: &Parts) -> Option<(u64, u64)> {
    parts.tiers.usage().iter().find(|(name, _)| *name == TierName::Object)?;
    let index = parts.index.clone();
    let stop = CancellationToken::new();
    let (_ended, stopped) = (stop.clone().drop_guard(), stop);
    let count = move || {
        let mut packs: HashSet<Digest> = HashSet::new();
        let mut bytes = 0_u64;
        let bounds = scan::Bounds { time: COUNTING, ..scan::Bounds::default() };
        let scanned = scan::each(&index, bounds, &stopped, |entry| {
            if entry.stored && packs.insert(entry.pack) {
                let manifest = entry.manifest.read_unverified();
                bytes = bytes.saturating_add(manifest.map_or(0, |manifest| manifest.pack_size));
            }
        });
        let complete = scanned.is_ok_and(|scanned| scanned.complete);
        complete.then_some((bytes, packs.len() as u64))
    };
    tokio::task::spawn_blocking(count).await.ok().flatten()
}

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
        silent_ms: node.silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
    });
    let counters = parts.counters.iter().flat_map(|source| source.snapshot());
    let health = parts.tiers.health();
    let tiers = parts.tiers.usage().into_iter().map(|(name, usage)| pb::TierStatus {
        name: name.to_string(),
        bytes: usage.bytes,
        entries: usage.entries,
        capacity_bytes: usage.capacity_bytes.unwrap_or_default(),
        healthy: health.contains(&(name, Health::Up)),
        // A store that others fill too has no usage of ours.
        uncounted: name == TierName::Object,
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
        signers: trust::believed(parts),
        leaving: parts.departure.progress().map(Into::into),
        emergency: emergency(parts),
        left: status.left.clone(),
        away: status.away.clone(),
        seen_by: 0,
        // Who asks is the call's affair.
        access: None,
    }
}

/// Absent where the node does without nothing.
fn emergency(parts: &Parts) -> Option<pb::EmergencyMode> {
    let mode = parts.monitor.emergency().mode();
    (!mode.is_normal()).then(|| (&mode).into())
}
