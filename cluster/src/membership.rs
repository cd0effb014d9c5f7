//! Who votes, who follows, who is gone.
//!
//! Invariant: the leader alone changes the membership, one change at a time, from
//! what is registered to what Raft knows: a registered node becomes a learner, a
//! learner that keeps up becomes a voter where one is wanted, a voter that is
//! dead or left is replaced, one too many becomes a learner again, a node that left
//! is forgotten. Voters come to an odd number: an even one tolerates no more failures
//! and needs more answers. A node that abstains never votes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kiln_proto::NodeId;
use openraft::{BasicNode, ChangeMembers, Instant as _};
use tokio::time::Instant;

use crate::{
    bootstrap::{Assignment, Greeting},
    command::{Command, Response},
    core::Core,
    error::ClusterError,
    leader::{Answer, Reply, Request, unexpected},
    peers::{abstains, frame, unframe},
    raft::Metrics,
    table::{self, Counters},
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

fn health(core: &Core, metrics: &Metrics, id: NodeId) -> Health {
    if id == metrics.id {
        return Health { alive: true, keeps_up: true };
    }
    let acked = metrics.heartbeat.as_ref().and_then(|h| h.get(&id).copied().flatten());
    let Some(acked) = acked else {
        // Nothing heard since this node leads: it counts as dead once that is long enough.
        return Health { alive: core.armed_for() < core.timings.dead_after, keeps_up: false };
    };
    let silent = acked.into_inner().elapsed();
    let matched = metrics.replication.as_ref().and_then(|r| r.get(&id).copied().flatten());
    let behind = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.map_or(0, |m| m.index));
    Health {
        alive: silent < core.timings.dead_after,
        keeps_up: silent < core.timings.election_max && matched.is_some() && behind < CLOSE,
    }
}

impl Core {
    /// One step towards the membership that there should be.
    pub(crate) async fn tend_membership(&self) -> Result<(), ClusterError> {
        let member = self.member()?;
        let Some(metrics) = self.metrics() else { return Ok(()) };
        if metrics.membership_config != metrics.committed_membership_config {
            return Ok(());
        }
        let membership = metrics.membership_config.membership();
        let known: BTreeSet<NodeId> = membership.nodes().map(|(id, _)| *id).collect();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let learners = &known - &voters;
        let nodes = self.watch.nodes();
        if nodes.is_empty() {
            return Ok(()); // not founded yet
        }
        let change = async |change: ChangeMembers<NodeId, BasicNode>, retain| {
            tracing::info!(%change, "changing the membership");
            let changed = member.raft.change_membership(change, retain).await;
            changed.map(drop).map_err(ClusterError::unavailable)
        };

        let joined = nodes.iter().filter(|(id, node)| !node.left && !known.contains(id));
        let joined: BTreeMap<NodeId, BasicNode> =
            joined.map(|(id, node)| (*id, BasicNode::new(&node.facts.grpc))).collect();
        if !joined.is_empty() {
            return change(ChangeMembers::AddNodes(joined), true).await;
        }
        let left: BTreeSet<NodeId> =
            known.iter().copied().filter(|id| nodes.get(id).is_none_or(|n| n.left)).collect();
        let counters: Counters = table::read(&*self.store, ())?.unwrap_or_default();
        let wanted = usize::try_from(counters.voters).unwrap_or(usize::MAX);
        let never = |id: &NodeId| nodes.get(id).is_none_or(|n| n.left || !n.eligible);
        let never: BTreeSet<NodeId> = known.iter().copied().filter(never).collect();
        let health_of = |id| health(self, &metrics, id);
        if let Some(next) = plan(&voters, &learners, &never, wanted, health_of) {
            return change(ChangeMembers::ReplaceAllVoters(next), true).await;
        }
        let gone: BTreeSet<NodeId> = learners.intersection(&left).copied().collect();
        if !gone.is_empty() {
            return change(ChangeMembers::RemoveNodes(gone), true).await;
        }
        self.retire_replaced(&metrics, &learners).await
    }

    /// A dead learner whose address another node answers by now never returns.
    async fn retire_replaced(
        &self,
        metrics: &Metrics,
        learners: &BTreeSet<NodeId>,
    ) -> Result<(), ClusterError> {
        let nodes = self.watch.nodes();
        let replaced = learners.iter().find(|id| {
            let Some(node) = nodes.get(id) else { return false };
            let same_place = nodes
                .iter()
                .any(|(other, n)| other > *id && !n.left && n.facts.grpc == node.facts.grpc);
            !node.left && same_place && !health(self, metrics, **id).alive
        });
        match replaced {
            Some(id) => match self.propose(Command::Leave(*id)).await {
                Answer::Done(_) => Ok(()),
                Answer::NotLeader => Err(ClusterError::unavailable("no longer the leader")),
                Answer::Refused(e) => Err(e),
            },
            None => Ok(()),
        }
    }

    /// Leaves the cluster for good: another node leads and this one is out of the
    /// membership when it returns.
    pub(crate) async fn leave(self: &Arc<Self>) -> Result<(), ClusterError> {
        let me = self.member()?.owner.node;
        if self.leads() {
            self.hand_over(me).await;
        }
        match self.ask(Request::Remove(me)).await? {
            Reply::Removed => Ok(()),
            other => Err(ClusterError::invalid(format!("an answer out of place: {other:?}"))),
        }
    }

    /// Gives the leadership to the voter that has most of the log, if there is
    /// one. Raft would elect another leader in any case; this is only quicker.
    pub(crate) async fn hand_over(&self, me: NodeId) {
        let (Ok(member), Some(metrics)) = (self.member(), self.metrics()) else { return };
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        let replication = metrics.replication.iter().flatten();
        let heir = replication
            .filter(|(id, _)| voters.contains(id) && **id != me)
            .filter(|(id, _)| health(self, &metrics, **id).keeps_up)
            .max_by_key(|(_, matched)| **matched);
        let Some((heir, _)) = heir else { return };
        if let Err(e) = member.raft.trigger().transfer_leader(*heir).await {
            tracing::warn!(error = %e, "the leadership was not handed over");
            return;
        }
        let moved = member.raft.wait(Some(self.timings.election_max));
        if let Err(e) = moved.metrics(|m| m.current_leader != Some(me), "another leader").await {
            tracing::warn!(error = %e, "the leadership was not taken over");
        }
    }
}

/// Admits the candidate that waits at `address`.
pub(crate) async fn add(core: &Arc<Core>, address: &str) -> Answer<Reply> {
    let greeting = match greet(core, address).await {
        Ok(greeting) => greeting,
        Err(e) => return Answer::Refused(e),
    };
    let ours = core.member.get().map(|m| m.owner.cluster);
    match greeting.owner {
        Some(owner) if Some(owner.cluster) == ours => return Answer::Done(Reply::Joined(owner)),
        Some(_) => return Answer::Refused(ClusterError::invalid("it belongs to another cluster")),
        None => {}
    }
    let candidate = greeting.node.candidate;
    let owner = match Box::pin(core.admit(greeting.node, greeting.abstains)).await {
        Ok(Reply::Joined(owner)) => owner,
        Ok(other) => return unexpected(&other),
        Err(e) => return Answer::Refused(e),
    };
    Answer::from(assign(core, address, &Assignment { candidate, owner }).await)
        .map(|()| Reply::Joined(owner))
}

impl<T> Answer<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Done(value) => Answer::Done(f(value)),
            Self::NotLeader => Answer::NotLeader,
            Self::Refused(e) => Answer::Refused(e),
        }
    }
}

/// Asks who is at `address`.
pub(crate) async fn greet(core: &Core, address: &str) -> Result<Greeting, ClusterError> {
    let asking = async {
        let mine = frame(&core.introduction().candidate)?;
        let answer = core.peers.at(address)?.hello(mine).await?;
        let abstains = abstains(answer.metadata());
        Ok(Greeting { abstains, ..unframe(answer.get_ref())? })
    };
    let asked = tokio::time::timeout(Duration::from_secs(2), asking).await?;
    asked.map_err(|status: tonic::Status| ClusterError::unavailable(status.message()))
}

/// Tells the candidate at `address` who it is from now on.
pub(crate) async fn assign(
    core: &Core,
    address: &str,
    assignment: &Assignment,
) -> Result<(), ClusterError> {
    let asking = async { core.peers.at(address)?.assign(frame(assignment)?).await };
    let asked = tokio::time::timeout(core.timings.patience, asking).await?;
    asked.map(drop).map_err(|status| ClusterError::unavailable(status.message()))
}

/// Removes a node, and answers when Raft no longer counts on it.
pub(crate) async fn remove(core: &Arc<Core>, node: NodeId) -> Answer<Reply> {
    let nodes = core.watch.nodes();
    let present = nodes.iter().filter(|(_, n)| !n.left);
    match nodes.get(&node) {
        None => return Answer::Refused(ClusterError::invalid(format!("there is no node {node}"))),
        Some(n) if !n.left && present.count() == 1 => {
            return Answer::Refused(ClusterError::invalid("the last node cannot leave"));
        }
        Some(_) => {}
    }
    match core.propose(Command::Leave(node)).await {
        Answer::Done(Reply::Written { response: Response::Changed(_), .. }) => {}
        other => return other,
    }
    core.housekeeping.notify_one();
    let Some(member) = core.member.get() else { return Answer::NotLeader };
    let gone = |m: &Metrics| {
        let settled = m.membership_config == m.committed_membership_config;
        let membership = m.membership_config.membership();
        let here = match node == m.id {
            true => membership.voter_ids().any(|id| id == node),
            false => membership.get_node(&node).is_some(),
        };
        settled && !here
    };
    match member.raft.wait(Some(core.timings.patience)).metrics(gone, "a node is removed").await {
        Ok(_) => Answer::Done(Reply::Removed),
        Err(e) => Answer::Refused(ClusterError::unavailable(format!("the removal goes on: {e}"))),
    }
}

impl Core {
    /// For how long this node has been the leader.
    fn armed_for(&self) -> Duration {
        let since = *self.armed_since.lock();
        since.map_or(Duration::ZERO, |since: Instant| since.elapsed())
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
    fn those_who_left_make_room() {
        assert_eq!(planned(&[1, 2, 3], &[4], &[3], &[]), Some(set(&[1, 2, 4])));
        assert_eq!(planned(&[1, 2, 3], &[], &[3], &[]), Some(set(&[1, 2])));
        assert_eq!(planned(&[1, 2, 3], &[4], &[4], &[]), None);
        assert_eq!(planned(&[1], &[2], &[1], &[]), Some(set(&[2])));
    }
}
