//! Nodes that come and go, in the audit log of every node.
//!
//! Invariant: each node's log has each change once, as this node's replica learned of it.

use std::collections::BTreeMap;

use kiln_cluster::{Index, IndexEvent, NodeInfo};
use kiln_proto::NodeId;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::{
    access::Identity,
    audit::{Audit, Event},
};

/// Follows `index` until `stop`.
pub(super) async fn follow(audit: Audit, index: Index, stop: CancellationToken) {
    let mut events = index.events();
    let mut known: BTreeMap<NodeId, NodeInfo> = index.all_nodes().into_iter().collect();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            Ok(IndexEvent::NodesChanged | IndexEvent::Reset) | Err(RecvError::Lagged(_)) => {}
            Ok(_) => continue,
            Err(RecvError::Closed) => return,
        }
        let now: BTreeMap<NodeId, NodeInfo> = index.all_nodes().into_iter().collect();
        for (node, info) in &now {
            let before = known.get(node);
            let by = Identity::Member(Some(*node));
            if before.is_none() {
                let at = info.facts.members();
                audit.record(Event::new("join", &by).of(node).saying(format!("at {at}")));
            }
            if info.left && before.is_none_or(|before| !before.left) {
                audit.record(Event::new("leave", &by).of(node));
            }
        }
        known = now;
    }
}
