//! Who belongs to the cluster, who of them may vote, and how many should.
//!
//! Invariant: pure, as all of [`super::apply`]. An identity is given out once; a node
//! that left never comes back under it, and one that is away comes back by its own word.

use kiln_proto::NodeId;

use super::{Event, admission, keys, revocations};
use crate::{
    admission::NotAdmitted,
    command::{NewNode, NodeFacts, Response},
    table::{self, Counters, NodeRecord, Standing, StateError, Txn, View},
};

/// Voters to strive for in a cluster that was founded with fewer.
const LEAST_VOTERS: u64 = 3;

pub(super) fn counters<V: View>(txn: &Txn<'_, V>) -> Result<Counters, StateError> {
    Ok(txn.get(())?.unwrap_or_default())
}

pub(super) fn found<V: View>(
    txn: &mut Txn<'_, V>,
    cluster: u64,
    nodes: Vec<NewNode>,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let mut counters = counters(txn)?;
    if counters.cluster != 0 {
        return Ok(Response::Refused("the cluster exists already".into()));
    }
    counters.cluster = cluster;
    counters.voters = LEAST_VOTERS.max(nodes.len() as u64);
    counters.next_node = 1;
    for node in nodes {
        register(txn, &mut counters, node)?;
    }
    txn.put((), &counters)?;
    events.push(Event::NodesChanged);
    Ok(Response::Done)
}

fn register<V: View>(
    txn: &mut Txn<'_, V>,
    counters: &mut Counters,
    node: NewNode,
) -> Result<NodeId, StateError> {
    let id = counters.next_node;
    counters.next_node += 1;
    let NewNode { candidate, facts, key } = node;
    txn.put(id, &NodeRecord { candidate, facts, key, standing: Standing::Eligible })?;
    Ok(id)
}

pub(super) fn join<V: View>(
    txn: &mut Txn<'_, V>,
    node: NewNode,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let allowed = admission::without_word(txn)?;
    join_by(txn, node, allowed, events)
}

/// Whether a disk that has joined before is the node that it was then.
pub(crate) fn may_return(left: bool, same_key: bool) -> Result<(), &'static str> {
    match (left, same_key) {
        (true, _) => Err("this disk belongs to a node that left"),
        (false, false) => Err("this disk joined with another signing key"),
        (false, true) => Ok(()),
    }
}

/// The id of a candidate: a new one where it is `allowed`, and its own where it has one.
pub(super) fn join_by<V: View>(
    txn: &mut Txn<'_, V>,
    node: NewNode,
    allowed: Result<(), NotAdmitted>,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let mut counters = counters(txn)?;
    if counters.cluster == 0 {
        return Ok(Response::NotFounded);
    }
    let known = table::nodes(&*txn)?.into_iter().find(|(_, n)| n.candidate == node.candidate);
    if let Some((id, known)) = known {
        return Ok(match may_return(known.left(), known.key == node.key) {
            Ok(()) => Response::Node(id),
            Err(why) => Response::Refused(why.into()),
        });
    }
    if let Err(why) = allowed {
        return Ok(Response::NotAdmitted(why));
    }
    if revocations::is_revoked_key(txn, &node.key)? {
        let why = "its signing key was revoked: empty the whole data folder, signing.key too";
        return Ok(Response::Refused(why.into()));
    }
    if let Some(of) = keys::one_of_several(txn, &node.key)? {
        return Ok(Response::Refused(format!(
            "its signing key is one that node {of} has, or had, beside others: empty the whole \
             data folder, signing.key too, or start it with all that this folder had as that node"
        )));
    }
    let id = register(txn, &mut counters, node)?;
    txn.put((), &counters)?;
    events.push(Event::NodesChanged);
    Ok(Response::Node(id))
}

pub(super) fn leave<V: View>(
    txn: &mut Txn<'_, V>,
    id: NodeId,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(node) = txn.get::<NodeRecord>(id)?.filter(|n| !n.left()) else {
        return Ok(Response::Changed(false));
    };
    txn.put(id, &NodeRecord { standing: Standing::Left, ..node })?;
    events.push(Event::NodesChanged);
    Ok(Response::Changed(true))
}

pub(super) fn set_facts<V: View>(
    txn: &mut Txn<'_, V>,
    id: NodeId,
    facts: NodeFacts,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(node) = txn.get::<NodeRecord>(id)?.filter(|n| !n.left()) else {
        return Ok(Response::Changed(false));
    };
    let standing = match node.standing {
        // It is back.
        Standing::Away => Standing::Eligible,
        Standing::AwayAbstains => Standing::Abstains,
        standing => standing,
    };
    txn.put(id, &NodeRecord { facts, standing, ..node })?;
    events.push(Event::NodesChanged);
    Ok(Response::Changed(true))
}

pub(super) fn set_away<V: View>(
    txn: &mut Txn<'_, V>,
    id: NodeId,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let present = txn.get::<NodeRecord>(id)?.filter(|n| !n.left() && !n.away());
    let Some(node) = present else {
        return Ok(Response::Changed(false));
    };
    let standing = match node.standing {
        Standing::Abstains => Standing::AwayAbstains,
        _ => Standing::Away,
    };
    txn.put(id, &NodeRecord { standing, ..node })?;
    events.push(Event::NodesChanged);
    Ok(Response::Changed(true))
}

pub(super) fn set_voter<V: View>(
    txn: &mut Txn<'_, V>,
    id: NodeId,
    voter: bool,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let standing = if voter { Standing::Eligible } else { Standing::Abstains };
    let may_change = |n: &NodeRecord| !n.left() && !n.away() && n.standing != standing;
    let known = txn.get::<NodeRecord>(id)?.filter(may_change);
    let Some(node) = known else {
        return Ok(Response::Changed(false));
    };
    txn.put(id, &NodeRecord { standing, ..node })?;
    events.push(Event::NodesChanged);
    Ok(Response::Changed(true))
}

/// `raise`: never to fewer, for a node that knows only what it was started with.
pub(super) fn set_voters<V: View>(
    txn: &mut Txn<'_, V>,
    voters: u64,
    raise: bool,
) -> Result<Response, StateError> {
    let counters = counters(txn)?;
    if voters == counters.voters || (raise && voters < counters.voters) {
        return Ok(Response::Changed(false));
    }
    txn.put((), &Counters { voters, ..counters })?;
    Ok(Response::Changed(true))
}
