//! Who calls, by its certificate: a member speaks for itself alone.
//!
//! Invariant: where a certificate names a node or a key, nothing is taken that claims to
//! come from another, nor, while this replica is led, from one that has not joined. Who connects in plain text has no certificate, and is believed:
//! whether plain text is taken at all is decided where connections are accepted.

use std::{net::SocketAddr, sync::Arc};

use kiln_proto::NodeId;
use tonic::{Extensions, Status};

use crate::{
    command::NewNode,
    watch::{NodeInfo, Nodes},
};

/// The other end of a connection, as a connection's `ConnectInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Where it calls from.
    pub from: Option<SocketAddr>,
    /// The node that its certificate names.
    pub node: Option<NodeId>,
    /// The signing key that its certificate names.
    pub key: Option<[u8; 32]>,
    /// The names in a client's certificate.
    pub names: Option<Arc<[String]>>,
    /// The user at the other end, on this machine.
    pub uid: Option<u32>,
}

/// Refuses what its caller says for the node `claimed`, if its certificate names another
/// one, or another key than that node is registered with; or if no such node has joined, as
/// `leader` would have told, from which this replica hears and which has a quorum.
///
/// Where there is no such leader, a node that is not registered is heard: it may have joined
/// while this replica was away, and need its vote, or lead now.
pub(crate) fn check(
    extensions: &Extensions,
    claimed: Option<NodeId>,
    nodes: &Nodes,
    leader: impl FnOnce() -> Option<NodeId>,
) -> Result<(), Status> {
    let Some(caller) = extensions.get::<Caller>() else { return Ok(()) };
    if let Some(node) = caller.node
        && claimed != Some(node)
    {
        return refuse(caller, "wrong_node", &format!("node {node}"), &said(claimed));
    }
    // Nobody is registered before the first command.
    if (caller.node.is_none() && caller.key.is_none()) || nodes.is_empty() {
        return Ok(());
    }
    let wrong_key = || {
        let key = caller.key.unwrap_or_default();
        refuse(caller, "wrong_key", &format!("key {}", hex::encode(key)), &said(claimed))
    };
    let Some(id) = claimed else { return wrong_key() };
    let has_key = |node: &NodeInfo, key| node.key.to_bytes() == key;
    match nodes.get(&id) {
        Some(known) if caller.key.is_none_or(|key| has_key(known, key)) => Ok(()),
        Some(_) => wrong_key(),
        None if caller.key.is_some_and(|key| nodes.values().any(|of| has_key(of, key))) => {
            wrong_key()
        }
        // The leader itself may have joined while this replica was away: until that has what it
        // missed, it does not know it.
        None => match leader().filter(|leader| *leader != id) {
            None => Ok(()),
            Some(_) => not_joined(caller, id),
        },
    }
}

/// Refuses a candidate that is not of the key that its certificate names, or that has a
/// certificate of a node that the cluster knows by another key.
pub(crate) fn check_candidate(
    extensions: &Extensions,
    candidate: &NewNode,
    nodes: &Nodes,
) -> Result<(), Status> {
    let Some(caller) = extensions.get::<Caller>() else { return Ok(()) };
    let said = || format!("the candidate of key {}", hex::encode(candidate.key));
    if let Some(key) = caller.key
        && key != candidate.key
    {
        return refuse(caller, "wrong_key", &format!("key {}", hex::encode(key)), &said());
    }
    match caller.node.and_then(|node| Some((node, nodes.get(&node)?))) {
        Some((node, known)) if known.key.to_bytes() != candidate.key => {
            refuse(caller, "wrong_node", &format!("node {node}"), &said())
        }
        _ => Ok(()),
    }
}

/// Whether the certificate of who calls is that of `candidate`, which [`check_candidate`] let
/// pass: of its key, or of the node that it is.
pub(crate) fn is_of(extensions: &Extensions, candidate: &NewNode, nodes: &Nodes) -> bool {
    let Some(caller) = extensions.get::<Caller>() else { return false };
    let named = caller.node.and_then(|node| nodes.get(&node));
    caller.key == Some(candidate.key)
        || named.is_some_and(|known| known.candidate == candidate.candidate)
}

fn said(claimed: Option<NodeId>) -> String {
    claimed.map_or_else(|| "no node".to_owned(), |node| format!("node {node}"))
}

fn refuse(caller: &Caller, why: &'static str, named: &str, claimed: &str) -> Result<(), Status> {
    metrics::counter!("kiln_refused_peers_total", "why" => why).increment(1);
    tracing::warn!(from = ?caller.from, named, claimed, "a peer is refused: not its certificate");
    Err(Status::permission_denied(format!(
        "the certificate of this peer names {named}, and it speaks for {claimed}: give each node a \
         certificate of its own (kiln certs issue)"
    )))
}

fn not_joined(caller: &Caller, node: NodeId) -> Result<(), Status> {
    metrics::counter!("kiln_refused_peers_total", "why" => "not_joined").increment(1);
    tracing::warn!(from = ?caller.from, node, "a peer is refused: it has not joined");
    Err(Status::permission_denied(format!(
        "node {node} has not joined this cluster: a node joins before it sends anything else \
         (start.join)"
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::SigningKey;
    use tonic::Code;

    use super::*;
    use crate::command::NodeFacts;

    fn key(node: u64) -> [u8; 32] {
        SigningKey::from_bytes(&[node as u8; 32]).verifying_key().to_bytes()
    }

    fn nodes() -> Nodes {
        let node = |id: u64| {
            let key = SigningKey::from_bytes(&[id as u8; 32]).verifying_key();
            let (facts, candidate) = (NodeFacts::default(), [id as u8; 16]);
            let (left, away, eligible, revoked) = (false, false, true, None);
            let keys = NodeInfo::only(key);
            (id, NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate })
        };
        (1..=2).map(node).collect()
    }

    fn of(node: Option<NodeId>, key: Option<[u8; 32]>) -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(Caller { node, key, ..Caller::default() });
        extensions
    }

    #[test]
    fn a_certificate_speaks_for_its_node_alone() {
        let judge = |node, key: Option<[u8; 32]>, claimed| {
            check(&of(node, key), claimed, &nodes(), || None)
        };
        assert!(judge(Some(1), None, Some(1)).is_ok());
        assert!(judge(Some(1), Some(key(1)), Some(1)).is_ok());
        assert!(judge(None, Some(key(1)), Some(1)).is_ok());
        assert!(judge(None, None, Some(2)).is_ok(), "it names nobody");
        assert!(judge(None, Some(key(3)), Some(3)).is_ok(), "it joined while this one was away");
        for (node, named, claimed) in [
            (Some(1), None, Some(2)),
            (Some(1), None, None),
            (None, Some(key(1)), Some(2)),
            (Some(2), Some(key(1)), Some(2)),
            (None, Some(key(1)), None),
            (None, Some(key(2)), Some(3)),
        ] {
            let refused = judge(node, named, claimed).unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{node:?} {claimed:?}");
        }
        assert!(check(&Extensions::new(), Some(1), &nodes(), || Some(1)).is_ok(), "plain text");
        assert!(check(&of(None, Some(key(1))), Some(1), &Nodes::default(), || Some(2)).is_ok());
    }

    #[test]
    fn who_has_not_joined_is_heard_only_where_nobody_leads() {
        let judge = |node, key: Option<[u8; 32]>, leader| {
            check(&of(node, key), Some(3), &nodes(), || leader).map_err(|refused| refused.code())
        };
        for (node, named) in [(Some(3), None), (None, Some(key(3))), (Some(3), Some(key(3)))] {
            assert_eq!(judge(node, named, Some(1)), Err(Code::PermissionDenied), "{node:?}");
            assert_eq!(judge(node, named, None), Ok(()), "it joined while this one was away");
            assert_eq!(judge(node, named, Some(3)), Ok(()), "it leads, and tells that it joined");
        }
        assert_eq!(judge(None, None, Some(1)), Ok(()), "it names nobody");
        let member = check(&of(Some(2), Some(key(2))), Some(2), &nodes(), || Some(1));
        assert!(member.is_ok(), "it joined");
    }

    #[test]
    fn a_candidate_has_the_key_of_its_certificate() {
        let judge = |node, named: Option<[u8; 32]>, of_candidate: u64| {
            let facts = NodeFacts::default();
            let candidate = NewNode { candidate: [9; 16], facts, key: key(of_candidate) };
            check_candidate(&of(node, named), &candidate, &nodes())
        };
        assert!(judge(None, Some(key(7)), 7).is_ok());
        assert!(judge(None, None, 7).is_ok());
        assert!(judge(Some(9), None, 7).is_ok(), "an id to come");
        assert!(judge(Some(1), None, 1).is_ok(), "it joins again");
        assert!(judge(None, Some(key(7)), 8).is_err());
        assert!(judge(Some(1), None, 8).is_err(), "another's certificate");
    }
}
