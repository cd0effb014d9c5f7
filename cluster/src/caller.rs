//! Who calls, by its certificate: a member speaks for itself alone.
//!
//! Invariant: where a certificate names a node or a key, nothing is taken that claims to
//! come from another, nor from one that has not joined, as far as this replica can know: a node
//! that it has not heard of proves that it was let in, and where it hears a leader, waits until it
//! has heard of it. Who connects in plain text has no certificate, and is believed:
//! whether plain text is taken at all is decided where connections are accepted.

use std::{fmt, net::SocketAddr, sync::Arc};

use kiln_proto::NodeId;
use tonic::Extensions;

use crate::{command::NewNode, endorsement::Roster, watch::Nodes};

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

/// A peer that was refused for its certificate.
#[derive(Debug, Clone)]
pub struct RefusedPeer {
    /// Who it is by its certificate.
    pub caller: Caller,
    /// Why, as metrics have it.
    pub why: &'static str,
    /// What its certificate names, and for whom it spoke.
    pub said: String,
}

/// Is told of each of them.
#[derive(Clone)]
pub struct RefusalWitness(pub Arc<dyn Fn(&RefusedPeer) + Send + Sync>);

impl fmt::Debug for RefusalWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefusalWitness")
    }
}

/// Why a caller is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub why: &'static str,
    /// As [`RefusedPeer`] has it.
    pub said: String,
    /// For who asked.
    pub text: String,
}

/// Refuses what its caller says for the node `claimed`, if its certificate names another
/// one, or another key than that node has in `roster`; or if no such node has joined, as
/// `leader` would have told, from which this replica hears and which has a quorum.
///
/// Where there is no such leader, a node that is not known may have joined while this replica
/// was away, and need its vote, or lead now: then it is heard if it `proves`, with its certificate's
/// key, that it was let in. Who knows nobody, not even who let it in, hears all.
pub(crate) fn check(
    extensions: &Extensions,
    claimed: Option<NodeId>,
    roster: &dyn Roster,
    leader: impl FnOnce() -> Option<NodeId>,
    proves: impl FnOnce(NodeId, Option<[u8; 32]>) -> bool,
) -> Result<(), Refusal> {
    let Some(caller) = extensions.get::<Caller>() else { return Ok(()) };
    if let Some(node) = caller.node
        && claimed != Some(node)
    {
        return refuse("wrong_node", &format!("node {node}"), &said(claimed));
    }
    if (caller.node.is_none() && caller.key.is_none()) || roster.knows_nobody() {
        return Ok(());
    }
    let wrong_key = || {
        let key = caller.key.unwrap_or_default();
        refuse("wrong_key", &format!("key {}", hex::encode(key)), &said(claimed))
    };
    let Some(id) = claimed else { return wrong_key() };
    match roster.name(id) {
        Some(name) if caller.key.is_none_or(|key| key == name) => Ok(()),
        Some(_) => wrong_key(),
        None if caller.key.is_some_and(|key| roster.has_name(&key)) => wrong_key(),
        // The leader itself may have joined while this replica was away: until that has what it
        // missed, it does not know it.
        None => match leader().filter(|leader| *leader != id) {
            None if proves(id, caller.key) => Ok(()),
            _ => not_joined(caller, id),
        },
    }
}

/// Refuses a candidate that is not of the key that its certificate names, or that has a
/// certificate of a node that the cluster knows by another key.
pub(crate) fn check_candidate(
    extensions: &Extensions,
    candidate: &NewNode,
    nodes: &Nodes,
) -> Result<(), Refusal> {
    let Some(caller) = extensions.get::<Caller>() else { return Ok(()) };
    let said = || format!("the candidate of key {}", hex::encode(candidate.key));
    if let Some(key) = caller.key
        && key != candidate.key
    {
        return refuse("wrong_key", &format!("key {}", hex::encode(key)), &said());
    }
    match caller.node.and_then(|node| Some((node, nodes.get(&node)?))) {
        Some((node, known)) if known.key.to_bytes() != candidate.key => {
            refuse("wrong_node", &format!("node {node}"), &said())
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

fn refuse(why: &'static str, named: &str, claimed: &str) -> Result<(), Refusal> {
    let text = format!(
        "the certificate of this peer names {named}, and it speaks for {claimed}: give each node a \
         certificate of its own (kiln certs issue)"
    );
    Err(Refusal { why, said: format!("{named} speaks for {claimed}"), text })
}

fn not_joined(caller: &Caller, node: NodeId) -> Result<(), Refusal> {
    let text = format!(
        "node {node} has not joined this cluster, or cannot prove it to this member, which has not \
         heard of it: a node joins before it sends anything else (start.join)"
    );
    let named = match caller.key {
        Some(key) => format!("key {}", hex::encode(key)),
        None => format!("node {node}"),
    };
    Err(Refusal { why: "not_joined", said: format!("{named} speaks for node {node}"), text })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::{command::NodeFacts, watch::NodeInfo};

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
            check(&of(node, key), claimed, &nodes(), || None, |_, _| true)
        };
        assert!(judge(Some(1), None, Some(1)).is_ok());
        assert!(judge(Some(1), Some(key(1)), Some(1)).is_ok());
        assert!(judge(None, Some(key(1)), Some(1)).is_ok());
        assert!(judge(None, None, Some(2)).is_ok(), "it names nobody");
        assert!(judge(None, Some(key(3)), Some(3)).is_ok(), "it joined while this one was away");
        for (node, named, claimed, why) in [
            (Some(1), None, Some(2), "wrong_node"),
            (Some(1), None, None, "wrong_node"),
            (None, Some(key(1)), Some(2), "wrong_key"),
            (Some(2), Some(key(1)), Some(2), "wrong_key"),
            (None, Some(key(1)), None, "wrong_key"),
            (None, Some(key(2)), Some(3), "wrong_key"),
        ] {
            let refused = judge(node, named, claimed).unwrap_err();
            assert_eq!(refused.why, why, "{node:?} {claimed:?}");
        }
        let (plain, led) = (Extensions::new(), || Some(1));
        assert!(check(&plain, Some(1), &nodes(), led, |_, _| false).is_ok(), "plain text");
        let (of_one, nobody) = (of(None, Some(key(1))), Nodes::default());
        assert!(check(&of_one, Some(1), &nobody, led, |_, _| false).is_ok(), "nobody is known");
    }

    #[test]
    fn who_is_not_known_is_heard_only_where_nobody_leads_and_it_proves_that_it_joined() {
        let judge = |node, key: Option<[u8; 32]>, leader, proves| {
            let shows = |id, named| {
                assert_eq!((id, named), (3, key), "the proof of this node and certificate");
                proves
            };
            let judged = check(&of(node, key), Some(3), &nodes(), || leader, shows);
            judged.map_err(|refused| refused.why)
        };
        for (node, named) in [(Some(3), None), (None, Some(key(3))), (Some(3), Some(key(3)))] {
            for proves in [true, false] {
                assert_eq!(judge(node, named, Some(1), proves), Err("not_joined"), "{node:?}");
            }
            for unled in [None, Some(3)] {
                assert_eq!(judge(node, named, unled, true), Ok(()), "it joined meanwhile");
                assert_eq!(judge(node, named, unled, false), Err("not_joined"), "{node:?}");
            }
        }
        assert_eq!(judge(None, None, Some(1), false), Ok(()), "it names nobody");
        let of_two = of(Some(2), Some(key(2)));
        assert!(check(&of_two, Some(2), &nodes(), || Some(1), |_, _| false).is_ok(), "it joined");
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
