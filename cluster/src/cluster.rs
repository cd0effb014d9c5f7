//! One running member, and what it looks like from outside.
//!
//! Invariant: a `Cluster` is the only owner of its data folder; after `shutdown`
//! nothing of it runs.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use kiln_proto::{Digest, NodeId, NodeIdentity};
use openraft::{Instant, ServerState};
use tonic::service::Routes;

use crate::{
    command::{Command, NodeFacts, Response},
    core::Core,
    error::ClusterError,
    index::Index,
    leader::{Reply, Request},
    pb::peer_server::PeerServer,
    peers::MOST_MESSAGE,
    raft::Metrics,
    service::Service,
    settings::{Settings, Start},
    table::{self, Counters},
};

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
    /// Whether a leader with a quorum was heard of lately: writes are possible.
    pub quorum: bool,
    /// All nodes that did not leave.
    pub nodes: Vec<NodeStatus>,
    /// Keys with an artifact.
    pub entries: u64,
    /// Publications with other bytes than the committed ones.
    pub differing: u64,
}

/// One member of a cluster.
pub struct Cluster {
    pub(crate) core: Arc<Core>,
    start: Start,
}

impl Cluster {
    /// Opens the data folder. The routes are to be served at `facts.grpc` before
    /// [`Cluster::start`] is called; local reads work at once.
    pub fn open(settings: Settings, signing: SigningKey) -> Result<(Self, Routes), ClusterError> {
        let start = settings.start.clone();
        let core = Core::open(settings, signing)?;
        let service = PeerServer::new(Service { core: Arc::clone(&core) })
            .max_decoding_message_size(MOST_MESSAGE)
            .max_encoding_message_size(MOST_MESSAGE);
        Ok((Self { core, start }, Routes::new(service)))
    }

    /// Founds, joins or resumes. Returns when this node is registered and knows a
    /// leader; a node that resumes returns at once, since it can read without one.
    pub async fn start(&self) -> Result<NodeIdentity, ClusterError> {
        let core = &self.core;
        let owner = core.identity.lock().owner;
        let resumed = owner.is_some();
        match owner {
            Some(owner) => {
                core.refresh_addresses();
                core.run_raft(owner).await?;
                let founding = Arc::clone(core);
                core.tasks.spawn(async move {
                    if let Err(e) = founding.finish_founding().await {
                        tracing::error!(error = %e, "the founding of this cluster failed");
                    }
                });
            }
            None => core.find_place(&self.start).await?,
        }
        let member = core.member()?;
        core.tasks.spawn(Arc::clone(core).follow_addresses());
        core.tasks.spawn(Arc::clone(core).keep_house());
        core.tasks.spawn(Arc::clone(core).keep_leases());
        core.tasks.spawn(Arc::clone(core).fence_writes());
        core.tasks.spawn(Arc::clone(core).take_standing(self.start.clone()));
        let me = member.owner.node;
        if resumed {
            let peers = self.start.peers().to_vec();
            core.tasks.spawn(Arc::clone(core).come_back(peers));
            self.elect_sole_voter().await;
        } else {
            self.wait_until_registered(me).await?;
        }
        Ok(NodeIdentity::new(me, core.signing.clone()))
    }

    /// The only voter of a cluster needs nobody's leave to lead.
    async fn elect_sole_voter(&self) {
        let (Ok(member), Some(metrics)) = (self.core.member(), self.core.metrics()) else {
            return;
        };
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        if voters == BTreeSet::from([member.owner.node])
            && let Err(e) = member.raft.trigger().elect(false).await
        {
            tracing::warn!(error = %e, "no election could be held");
        }
    }

    async fn wait_until_registered(&self, me: NodeId) -> Result<(), ClusterError> {
        let mut progress = self.core.watch.progress();
        while !self.core.watch.nodes().contains_key(&me) || self.core.leader().is_none() {
            tokio::select! {
                changed = progress.changed() => changed.map_err(ClusterError::unavailable)?,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
                () = self.core.stop.cancelled() => {
                    return Err(ClusterError::unavailable("this node stops"));
                }
            }
        }
        Ok(())
    }

    /// The handle on the index; it may be used before [`Cluster::start`] for reads.
    pub fn index(&self) -> Index {
        Index::new(Arc::clone(&self.core))
    }

    /// Admits the candidate that waits at `address`, and tells its id.
    pub async fn add(&self, address: &str) -> Result<NodeId, ClusterError> {
        match self.core.ask(Request::Add(address.to_owned())).await? {
            Reply::Joined(owner) => Ok(owner.node),
            other => Err(ClusterError::invalid(format!("an answer out of place: {other:?}"))),
        }
    }

    /// Replaces what the cluster knows of this node's addresses and compilers.
    pub async fn set_facts(&self, facts: NodeFacts) -> Result<(), ClusterError> {
        let node = self.core.member()?.owner.node;
        self.core.write(Command::Facts { node, facts }).await.map(drop)
    }

    /// Removes a node for good, dead or alive.
    pub async fn remove(&self, node: NodeId) -> Result<(), ClusterError> {
        match self.core.ask(Request::Remove(node)).await? {
            Reply::Removed => Ok(()),
            other => Err(ClusterError::invalid(format!("an answer out of place: {other:?}"))),
        }
    }

    /// Sets how many voters the leader strives for: 1, 3, 5 or 7. Fewer than there are
    /// become learners again, the dead and the newest first.
    pub async fn set_voters(&self, voters: u64) -> Result<bool, ClusterError> {
        if !matches!(voters, 1 | 3 | 5 | 7) {
            return Err(ClusterError::invalid("a cluster strives for 1, 3, 5 or 7 voters"));
        }
        let command = Command::SetVoters { voters, raise: false };
        match self.core.write(command).await?.1 {
            Response::Changed(changed) => Ok(changed),
            other => Err(ClusterError::invalid(format!("an answer out of place: {other:?}"))),
        }
    }

    /// Leaves for good. The node hands the leadership over if it has it, and is
    /// out of the membership when this returns: shut it down then.
    pub async fn leave(&self) -> Result<(), ClusterError> {
        self.core.leave().await
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> ClusterStatus {
        let core = &self.core;
        let metrics = core.metrics();
        let counters = table::read::<Counters>(&*core.store, ()).ok().flatten().unwrap_or_default();
        let lately = core.timings.election_max + core.timings.heartbeat * 2;
        let quorum = core.last_contact().elapsed() < lately && core.leader().is_some();
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
        let reachable = |id: NodeId| {
            let metrics = metrics.as_ref()?;
            if id == metrics.id {
                return Some(true);
            }
            if role == Role::Leader {
                let acked = metrics.heartbeat.as_ref()?.get(&id).copied().flatten();
                return Some(acked.is_some_and(|acked| acked.into_inner().elapsed() < lately));
            }
            (metrics.current_leader == Some(id)).then_some(quorum)
        };
        let nodes = core.watch.nodes();
        let nodes = nodes.iter().filter(|(_, node)| !node.left).map(|(id, node)| NodeStatus {
            id: *id,
            facts: node.facts.clone(),
            voter: voters.contains(id),
            reachable: reachable(*id),
        });
        ClusterStatus {
            node: core.member.get().map(|m| m.owner.node),
            cluster: core.member.get().map(|m| m.owner.cluster),
            role,
            leader: core.leader(),
            term: metrics.as_ref().map_or(0, |m| m.current_term),
            applied: *core.watch.progress().borrow(),
            quorum,
            nodes: nodes.collect(),
            entries: counters.entries,
            differing: counters.differing,
        }
    }

    /// Shortens the log to what was applied by now; a node that lacks more than
    /// that gets a snapshot. The log is shortened now and then in any case.
    pub async fn compact(&self) -> Result<(), ClusterError> {
        let raft = &self.core.member()?.raft;
        let applied = *self.core.watch.progress().borrow();
        let wait = raft.wait(Some(self.core.timings.patience));
        raft.trigger().snapshot().await.map_err(ClusterError::storage)?;
        let covered = |m: &Metrics| m.snapshot.is_some_and(|s| s.index >= applied);
        wait.metrics(covered, "a snapshot").await.map_err(ClusterError::unavailable)?;
        raft.trigger().purge_log(applied).await.map_err(ClusterError::storage)?;
        let purged = |m: &Metrics| m.purged.is_some_and(|p| p.index >= applied);
        wait.metrics(purged, "a shorter log").await.map_err(ClusterError::unavailable)?;
        Ok(())
    }

    /// The applied log index and the digest of the whole replicated state at it:
    /// equal on all nodes that applied the same log. Reads everything.
    pub fn state_digest(&self) -> Result<(u64, Digest), ClusterError> {
        self.core.store.digest()
    }

    /// Returns when this node can no longer work, with the reason: its disk
    /// failed, or Raft stopped. Stop the process then.
    pub async fn failed(&self) -> ClusterError {
        let Some(member) = self.core.member.get() else {
            return std::future::pending().await;
        };
        let wait = member.raft.wait(None);
        match wait.metrics(|m| m.running_state.is_err(), "stopped").await {
            Ok(metrics) => match metrics.running_state {
                Err(e) => ClusterError::storage(e),
                Ok(()) => ClusterError::storage("Raft stopped"),
            },
            Err(e) => ClusterError::storage(e),
        }
    }

    /// Stops everything that runs for this member. A leader hands over first: the
    /// others then need not wait to find out that it is gone.
    pub async fn shutdown(&self) {
        if let Some(member) = self.core.member.get()
            && self.core.leads()
        {
            self.core.hand_over(member.owner.node).await;
        }
        self.core.stop.cancel();
        if let Some(member) = self.core.member.get()
            && let Err(e) = member.raft.shutdown().await
        {
            tracing::warn!(error = %e, "Raft did not stop cleanly");
        }
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }
}
