//! Who votes, who follows, who is gone.
//!
//! Invariant: the leader alone changes the membership, one change at a time, from
//! what is registered to what Raft knows: a registered node becomes a learner, a
//! learner that keeps up becomes a voter where one is wanted, a voter that is
//! dead or left is replaced, one too many becomes a learner again, a node that left
//! is forgotten. Voters come to an odd number: an even one tolerates no more failures
//! and needs more answers. A node that abstains never votes.

use std::collections::{BTreeMap, BTreeSet};

use kiln_proto::NodeId;
use openraft::{BasicNode, ChangeMembers, Instant as _};

use crate::{
    command::{Command, Response},
    error::ClusterError,
    leader::Leader,
    raft::Metrics,
    rpc::{Answer, Unanswered},
    watch::Nodes,
};

/// Log entries that a learner may lack and still count as keeping up.
const CLOSE: u64 = 256;

/// What the leader knows about one node.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// It answered within the time after which it would count as dead.
    alive: bool,
    /// It has nearly the whole log, and answered just now.
    keeps_up: bool,
}

/// The voters that there should be, where they differ from `voters`; none of them
/// of `never`, who left or abstain.
fn plan(
    voters: &BTreeSet<NodeId>,
    learners: &BTreeSet<NodeId>,
    never: &BTreeSet<NodeId>,
    wanted: usize,
    health: impl Fn(NodeId) -> Health,
) -> Option<BTreeSet<NodeId>> {
    let mut spares = learners.iter().filter(|id| !never.contains(id) && health(**id).keeps_up);
    let mut next = BTreeSet::new();
    for voter in voters.difference(never) {
        let replacement = if health(*voter).alive { None } else { spares.next() };
        next.insert(*replacement.unwrap_or(voter));
    }
    let spares: Vec<NodeId> = spares.copied().collect();
    let mut more = wanted.saturating_sub(next.len()).min(spares.len());
    if more > 0 && (next.len() + more).is_multiple_of(2) {
        more -= 1;
    }
    next.extend(spares.into_iter().take(more));
    while next.len() > wanted {
        // The dead first, then the newest: whoever scales down removes those.
        let dead = next.iter().rev().find(|id| !health(**id).alive).copied();
        let Some(surplus) = dead.or_else(|| next.last().copied()) else { break };
        next.remove(&surplus);
    }
    (!next.is_empty() && next != *voters).then_some(next)
}

fn health(leader: &Leader, metrics: &Metrics, id: NodeId) -> Health {
    if id == metrics.id {
        return Health { alive: true, keeps_up: true };
    }
    let timings = &leader.timings;
    let acked = metrics.heartbeat.as_ref().and_then(|h| h.get(&id).copied().flatten());
    let Some(acked) = acked else {
        // Nothing heard since this node leads: it counts as dead once that is long enough.
        let leading = leader.counting_for().unwrap_or_default();
        return Health { alive: leading < timings.dead_after, keeps_up: false };
    };
    let silent = acked.into_inner().elapsed();
    let matched = metrics.replication.as_ref().and_then(|r| r.get(&id).copied().flatten());
    let behind = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.map_or(0, |m| m.index));
    Health {
        alive: silent < timings.dead_after,
        keeps_up: silent < timings.election_max && matched.is_some() && behind < CLOSE,
    }
}

/// One step towards the membership that there should be.
pub(crate) async fn adjust(leader: &Leader) -> Result<(), ClusterError> {
    let raft = &leader.member.running()?.raft;
    let Some(metrics) = leader.member.metrics() else { return Ok(()) };
    if metrics.membership_config != metrics.committed_membership_config {
        return Ok(());
    }
    let membership = metrics.membership_config.membership();
    let known: BTreeSet<NodeId> = membership.nodes().map(|(id, _)| *id).collect();
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let learners = &known - &voters;
    if !voters.contains(&metrics.id) {
        // It made itself a learner; the library lets it lead on, and fails if it changes more.
        hand_over(leader).await;
        return Ok(());
    }
    let nodes = leader.replica.nodes();
    if nodes.is_empty() {
        return Ok(()); // not founded yet
    }
    let change = async |change: ChangeMembers<NodeId, BasicNode>, retain| {
        tracing::info!(%change, "changing the membership");
        let changed = raft.change_membership(change, retain).await;
        changed.map(drop).map_err(ClusterError::unavailable)
    };

    let joined = nodes.iter().filter(|(id, node)| node.is_member() && !known.contains(id));
    let joined: BTreeMap<NodeId, BasicNode> =
        joined.map(|(id, node)| (*id, BasicNode::new(node.facts.members()))).collect();
    if !joined.is_empty() {
        return change(ChangeMembers::AddNodes(joined), true).await;
    }
    let left: BTreeSet<NodeId> =
        known.iter().copied().filter(|id| nodes.get(id).is_none_or(|n| !n.is_member())).collect();
    let counters = leader.replica.counters().unwrap_or_default();
    let wanted = usize::try_from(counters.voters).unwrap_or(usize::MAX);
    let never = |id: &NodeId| nodes.get(id).is_none_or(|n| !n.is_member() || !n.eligible);
    let never: BTreeSet<NodeId> = known.iter().copied().filter(never).collect();
    let health_of = |id| health(leader, &metrics, id);
    if let Some(next) = plan(&voters, &learners, &never, wanted, health_of) {
        return change(ChangeMembers::ReplaceAllVoters(next), true).await;
    }
    let gone: BTreeSet<NodeId> = learners.intersection(&left).copied().collect();
    if !gone.is_empty() {
        return change(ChangeMembers::RemoveNodes(gone), true).await;
    }
    set_aside_replaced(leader, &metrics, &learners).await
}

/// A dead learner whose address another node has by now is not asked any more. It may
/// come back: addresses are given away while their nodes are away.
async fn set_aside_replaced(
    leader: &Leader,
    metrics: &Metrics,
    learners: &BTreeSet<NodeId>,
) -> Result<(), ClusterError> {
    let nodes = leader.replica.nodes();
    let replaced = learners.iter().find(|id| {
        let Some(node) = nodes.get(id) else { return false };
        let same_place = nodes.iter().any(|(other, n)| {
            other != *id && n.is_member() && n.facts.members() == node.facts.members()
        });
        node.is_member() && same_place && !health(leader, metrics, **id).alive
    });
    let Some(id) = replaced else { return Ok(()) };
    match leader.propose(Command::SetAway(*id)).await {
        Ok(_) => Ok(()),
        Err(Unanswered::NotLeader) => Err(ClusterError::unavailable("no longer the leader")),
        Err(Unanswered::Refused(e)) => Err(e),
    }
}

/// Gives the leadership to the voter that has most of the log, if there is
/// one. Raft would elect another leader in any case; this is only quicker.
pub(crate) async fn hand_over(leader: &Leader) {
    let (Ok(running), Some(metrics)) = (leader.member.running(), leader.member.metrics()) else {
        return;
    };
    let me = running.owner.node;
    let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
    let replication = metrics.replication.iter().flatten();
    let heir = replication
        .filter(|(id, _)| voters.contains(id) && **id != me)
        .filter(|(id, _)| health(leader, &metrics, **id).keeps_up)
        .max_by_key(|(_, matched)| **matched);
    let Some((heir, _)) = heir else { return };
    if let Err(e) = running.raft.trigger().transfer_leader(*heir).await {
        tracing::warn!(error = %e, "the leadership was not handed over");
        return;
    }
    let moved = running.raft.wait(Some(leader.timings.election_max));
    if let Err(e) = moved
        .metrics(|m| m.current_leader.is_some_and(|leader| leader != me), "another leader")
        .await
    {
        tracing::warn!(error = %e, "the leadership was not taken over");
    }
}

/// Whether the cluster lives on without `node`.
fn may_leave(nodes: &Nodes, node: NodeId) -> Result<(), ClusterError> {
    let Some(leaves) = nodes.get(&node) else {
        return Err(ClusterError::invalid(format!("there is no node {node}")));
    };
    let mut others = nodes.iter().filter(|(id, n)| **id != node && n.is_member());
    match leaves.left {
        // Its removal goes on.
        true => Ok(()),
        false if others.clone().next().is_none() => {
            Err(ClusterError::invalid("the last node cannot leave"))
        }
        false if leaves.eligible && !others.any(|(_, n)| n.eligible) => {
            Err(ClusterError::invalid(format!(
                "node {node} is the last that may vote, and cannot leave: first start another one \
                 with cluster.voter = true"
            )))
        }
        false => Ok(()),
    }
}

/// Removes a node, and answers when Raft no longer counts on it.
pub(crate) async fn remove(leader: &Leader, node: NodeId) -> Answer<()> {
    // Of two that leave at once the second is judged without the first.
    let removing = leader.removing.lock().await;
    may_leave(&leader.replica.nodes(), node)?;
    match leader.propose(Command::Leave(node)).await?.response {
        Response::Changed(_) => {}
        other => return Err(ClusterError::unexpected(&other).into()),
    }
    drop(removing);
    leader.housekeeping.notify_one();
    let gone = |m: &Metrics| {
        let settled = m.membership_config == m.committed_membership_config;
        let membership = m.membership_config.membership();
        let here = match node == m.id {
            true => membership.voter_ids().any(|id| id == node),
            false => membership.get_node(&node).is_some(),
        };
        settled && !here
    };
    let wait = leader.member.running()?.raft.wait(Some(leader.timings.patience));
    match wait.metrics(gone, "a node is removed").await {
        Ok(_) => Ok(()),
        Err(e) => Err(ClusterError::unavailable(format!("the removal goes on: {e}")).into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(ids: &[NodeId]) -> BTreeSet<NodeId> {
        ids.iter().copied().collect()
    }

    fn planned(
        voters: &[NodeId],
        learners: &[NodeId],
        left: &[NodeId],
        dead: &[NodeId],
    ) -> Option<BTreeSet<NodeId>> {
        let health = |id| {
            let alive = !dead.contains(&id);
            Health { alive, keeps_up: alive }
        };
        plan(&set(voters), &set(learners), &set(left), 3, health)
    }

    #[test]
    fn voters_grow_in_odd_numbers() {
        assert_eq!(planned(&[1], &[], &[], &[]), None);
        assert_eq!(planned(&[1], &[2], &[], &[]), None, "two voters bear no failure either");
        assert_eq!(planned(&[1], &[2, 3], &[], &[]), Some(set(&[1, 2, 3])));
        assert_eq!(planned(&[1, 2], &[3], &[], &[]), Some(set(&[1, 2, 3])));
        assert_eq!(planned(&[1, 2, 3], &[4, 5], &[], &[]), None);
    }

    #[test]
    fn the_dead_are_replaced_and_only_by_the_living() {
        assert_eq!(planned(&[1, 2, 3], &[4], &[], &[3]), Some(set(&[1, 2, 4])));
        assert_eq!(planned(&[1, 2, 3], &[4], &[], &[3, 4]), None);
        assert_eq!(planned(&[1, 2, 3], &[], &[], &[3]), None);
    }

    #[test]
    fn voters_shrink_to_the_number_wanted() {
        let five = set(&[1, 2, 3, 4, 5]);
        let shrunk = |dead: &[NodeId]| {
            let health = |id| Health { alive: !dead.contains(&id), keeps_up: !dead.contains(&id) };
            plan(&five, &set(&[]), &set(&[]), 3, health)
        };
        assert_eq!(shrunk(&[]), Some(set(&[1, 2, 3])));
        assert_eq!(shrunk(&[1, 4]), Some(set(&[2, 3, 5])), "the dead go first");
    }

    #[test]
    fn whoever_alone_may_vote_stays() {
        use crate::{command::NodeFacts, watch::NodeInfo};
        let node = |id: u64, eligible, left, away| {
            let key = ed25519_dalek::SigningKey::from_bytes(&[id as u8; 32]).verifying_key();
            let candidate = [id as u8; 16];
            let (facts, revoked) = (NodeFacts::default(), None);
            let keys = NodeInfo::only(key);
            (id, NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate })
        };
        let leaves = |others: &[(NodeId, NodeInfo)]| {
            let all = others.iter().cloned().chain([node(1, true, false, false)]);
            may_leave(&all.collect(), 1)
        };
        let refused = |others: &[_]| match leaves(others) {
            Err(ClusterError::Invalid(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(refused(&[]).contains("the last node"));
        assert!(refused(&[node(2, true, true, false)]).contains("the last node"));
        assert!(refused(&[node(2, false, false, false)]).contains("the last that may vote"));
        let away = [node(2, false, false, false), node(3, true, false, true)];
        assert!(refused(&away).contains("the last that may vote"), "who is silent elects nobody");
        assert_eq!(leaves(&[node(2, true, false, false)]), Ok(()));

        let mut nodes: Nodes = [node(1, true, true, false), node(2, false, false, false)].into();
        assert_eq!(may_leave(&nodes, 1), Ok(()), "it left, and is asked again");
        nodes.extend([node(3, true, false, false)]);
        assert_eq!(may_leave(&nodes, 2), Ok(()), "it never votes");
        assert!(may_leave(&nodes, 9).is_err());
    }

    #[test]
    fn those_who_left_make_room() {
        assert_eq!(planned(&[1, 2, 3], &[4], &[3], &[]), Some(set(&[1, 2, 4])));
        assert_eq!(planned(&[1, 2, 3], &[], &[3], &[]), Some(set(&[1, 2])));
        assert_eq!(planned(&[1, 2, 3], &[4], &[4], &[]), None);
        assert_eq!(planned(&[1], &[2], &[1], &[]), Some(set(&[2])));
    }
}
