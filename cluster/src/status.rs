//! The cluster as one node sees it.
//!
//! Invariant: reads only what this node knows already; it asks nobody.

use std::time::Duration;

use kiln_proto::NodeId;
use openraft::{Instant as _, ServerState};

use crate::{command::NodeFacts, member::Member, replica::Replica, settings::Timings};

/// What a node is in Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Orders all changes.
    Leader,
    /// Votes, and follows a leader.
    Follower,
    /// Stands for election.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Has no cluster yet.
    Waiting,
    /// Stopped, by request or by a failed disk.
    Stopped,
}

impl Role {
    /// The name in JSON and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
        }
    }
}

/// A node as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its addresses and compilers.
    pub facts: NodeFacts,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it answered lately; `None` where this node cannot know.
    pub reachable: Option<bool>,
    /// For how long the leader has not heard of it, where this node leads and heard of it.
    pub silent: Option<Duration>,
}

/// The cluster as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// This node's id, once it has one.
    pub node: Option<NodeId>,
    /// The cluster's name.
    pub cluster: Option<u64>,
    /// This node's role.
    pub role: Role,
    /// The leader that this node knows of.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// The log index up to which the local replica has applied.
    pub applied: u64,
    /// The log index of the last entry of this node's log, committed or not.
    pub logged: u64,
    /// Whether a leader with a quorum was heard of lately: writes are possible.
    pub quorum: bool,
    /// All nodes that are members now.
    pub nodes: Vec<NodeStatus>,
    /// Those that are members no more.
    pub left: Vec<NodeId>,
    /// Those that are set aside until they come back.
    pub away: Vec<NodeId>,
    /// Keys with an artifact.
    pub entries: u64,
    /// Publications with other bytes than the committed ones.
    pub differing: u64,
}

/// What `member` and its replica know as of now.
pub(crate) fn status(member: &Member, replica: &Replica, timings: &Timings) -> ClusterStatus {
    let metrics = member.metrics();
    let counters = replica.counters().unwrap_or_default();
    let lately = timings.election_max + timings.heartbeat * 2;
    let quorum = member.last_contact().elapsed() < lately && member.leader().is_some();
    let role = match &metrics {
        None => Role::Waiting,
        Some(m) if m.running_state.is_err() => Role::Stopped,
        Some(m) => match m.state {
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        },
    };
    // In the middle of a change, a node votes for good only if it does so on both sides.
    let configs = metrics
        .iter()
        .flat_map(|m| m.committed_membership_config.membership().get_joint_config().clone());
    let voters = configs.reduce(|a, b| &a & &b).unwrap_or_default();
    let silent = |id: NodeId| {
        let metrics = metrics.as_ref().filter(|m| role == Role::Leader && id != m.id)?;
        let acked = metrics.heartbeat.as_ref()?.get(&id).copied().flatten();
        Some(acked?.into_inner().elapsed())
    };
    let reachable = |id: NodeId| {
        let metrics = metrics.as_ref()?;
        if id == metrics.id {
            return Some(true);
        }
        if role == Role::Leader {
            return Some(silent(id).is_some_and(|silent| silent < lately));
        }
        (metrics.current_leader == Some(id)).then_some(quorum)
    };
    let known = replica.nodes();
    let nodes = known.iter().filter(|(_, node)| node.is_member()).map(|(id, node)| NodeStatus {
        id: *id,
        facts: node.facts.clone(),
        voter: voters.contains(id),
        reachable: reachable(*id),
        silent: silent(*id),
    });
    let left = known.iter().filter(|(_, node)| node.left).map(|(id, _)| *id);
    let away = known.iter().filter(|(_, node)| node.away && !node.left).map(|(id, _)| *id);
    let owner = member.running().ok().map(|running| running.owner);
    ClusterStatus {
        node: owner.map(|owner| owner.node),
        cluster: owner.map(|owner| owner.cluster),
        role,
        leader: member.leader(),
        term: metrics.as_ref().map_or(0, |m| m.current_term),
        applied: replica.applied(),
        logged: metrics.as_ref().and_then(|m| m.last_log_index).unwrap_or(0),
        quorum,
        nodes: nodes.collect(),
        left: left.collect(),
        away: away.collect(),
        entries: counters.entries,
        differing: counters.differing,
    }
}
