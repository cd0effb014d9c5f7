//! Nodes that come and go, in the audit log of every node, and those that are kept out.
//!
//! Invariant: each node's log has each change once, as this node's replica learned of it;
//! who asked to be let in, and by which token, is in that of the node that was asked. Refusals
//! are told by [`Access`], which bounds them.

use std::{collections::BTreeMap, sync::Arc};

use kiln_cluster::{
    Index, IndexEvent, NodeInfo, RefusalWitness, RefusedPeer,
    admission::{Candidacy, Witness},
};
use kiln_proto::NodeId;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, Identity},
    audit::{Audit, Event},
};

/// Writes down who asked this node to be let in.
pub(super) fn witness(access: Arc<Access>) -> Witness {
    Witness(Arc::new(move |candidacy| {
        let Candidacy { from, address, token, outcome } = candidacy;
        let by = token.map_or_else(|| "no token".to_owned(), |id| format!("join token {id:016x}"));
        let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.to_string());
        match outcome {
            Ok(node) => {
                let who = Identity::Member(Some(*node));
                let said = format!("at {address}, asked from {from}, with {by}");
                access.audit().record(Event::new("let_in", &who).of(node).saying(said));
            }
            Err(why) => access.refused_node(*why, &format!("{address} from {from}, with {by}")),
        }
    }))
}

/// Writes down whom this node refuses for its certificate.
pub(super) fn refusals(access: Arc<Access>) -> RefusalWitness {
    RefusalWitness(Arc::new(move |refused| {
        let RefusedPeer { caller, why, said } = refused;
        let from = caller.from.map_or_else(String::new, |from| format!("{}: ", from.ip()));
        let who = Identity::Member(caller.node);
        access.tell_of_refusal(why, "members", &format!("{from}{said}"), &who);
    }))
}

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
