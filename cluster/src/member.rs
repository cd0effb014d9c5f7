//! This node as a member of Raft: its handle, who leads, and when a quorum was last
//! heard of.
//!
//! Invariant: the handle is set once, after this disk's identity is durable; until
//! then the store can be read and nothing can be proposed.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kiln_proto::NodeId;
use openraft::{ServerState, async_runtime::watch::WatchReceiver};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use crate::{
    error::ClusterError,
    network::Network,
    peers::Peers,
    quorum::{self, QuorumAge},
    raft::{Leadership, Metrics},
    settings::Timings,
    store::{LogStore, Machine, Owner, Store},
    watch::Watch,
};

/// Most log entries that are removed at once.
const PURGED_AT_ONCE: u64 = 1024;
/// Between the elections that two voters begin because a leader's connection ended.
const TURN: Duration = Duration::from_millis(150);
/// Elections that one voter begins for that reason. Raft's own time-outs follow.
const TURNS: u32 = 3;

pub(crate) type Raft = openraft::Raft<crate::raft::Types, Machine>;

/// Raft under this node's identity.
pub(crate) struct Running {
    pub owner: Owner,
    pub raft: Raft,
}

/// One node's membership, from before it has one.
pub(crate) struct Member {
    timings: Timings,
    log_entries: u64,
    peers: Arc<Peers>,
    running: OnceLock<Running>,
    /// Notified when `running` is set.
    started: Notify,
    /// When this node last heard of a leader that has a quorum.
    contact: Mutex<Instant>,
    /// When this node last heard of any leader.
    heard: Mutex<Instant>,
    /// Whether the cluster said that this node left it.
    removed: AtomicBool,
}

impl Member {
    pub(crate) fn new(timings: Timings, log_entries: u64, peers: Arc<Peers>) -> Self {
        Self {
            timings,
            log_entries,
            peers,
            running: OnceLock::new(),
            started: Notify::new(),
            contact: Mutex::new(Instant::now()),
            heard: Mutex::new(Instant::now()),
            removed: AtomicBool::new(false),
        }
    }

    /// Notes that this node left the cluster, or was removed: its replica may never
    /// hear of it. It does not stand for election any more, unless it still votes: then
    /// the removal goes on, and what the others lack may be in its log alone.
    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Ordering::Relaxed);
        if let Some(running) = self.running.get()
            && !self.votes()
        {
            running.raft.runtime_config().elect(false);
        }
    }

    /// Whether Raft counts on this node's vote, as far as it knows.
    pub(crate) fn votes(&self) -> bool {
        self.metrics().is_some_and(|metrics| {
            metrics.membership_config.membership().voter_ids().any(|id| id == metrics.id)
        })
    }

    /// Whether it did.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Starts Raft over `store` as `owner`, whose identity is durable.
    pub(crate) async fn start(
        &self,
        owner: Owner,
        store: &Arc<Store>,
        watch: &Arc<Watch>,
    ) -> Result<(), ClusterError> {
        let (timings, log_entries) = (&self.timings, self.log_entries);
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: format!("{:x}", owner.cluster),
            heartbeat_interval: millis(timings.heartbeat),
            election_timeout_min: millis(timings.election_min),
            election_timeout_max: millis(timings.election_max),
            install_snapshot_timeout: 600_000,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(log_entries),
            max_in_snapshot_log_to_keep: log_entries / 2,
            purge_batch_size: (log_entries / 16).clamp(1, PURGED_AT_ONCE),
            replication_lag_threshold: log_entries.saturating_mul(2),
            enable_pre_vote: Some(true),
            // A leader without a quorum falls silent, so that who can elect another does.
            quorum_loss_probe_interval: Some(millis(timings.election_max) * 2),
            // The state is not fsynced per command, so a restarted leader may be behind itself.
            enable_leader_restore: Some(false),
            // A follower whose disk lost what it had acknowledged gets it again; the leader
            // is not to blame, and must not end for it.
            allow_log_reversion: Some(true),
            // Followers write while the leader fsyncs.
            broadcast_submitted_on_append: Some(true),
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(ClusterError::invalid)?);
        let machine =
            Machine::new(Arc::clone(store), Arc::clone(watch)).map_err(ClusterError::storage)?;
        let quorum = Arc::<QuorumAge>::default();
        let network =
            Network { peers: Arc::clone(&self.peers), me: owner, quorum: Arc::clone(&quorum) };
        let log = LogStore::new(Arc::clone(store));
        let raft = Raft::new(owner.node, config, network, log, machine)
            .await
            .map_err(ClusterError::storage)?;
        quorum.follow(raft.metrics());
        if self.running.set(Running { owner, raft }).is_err() {
            return Err(ClusterError::invalid("this node runs already"));
        }
        self.started.notify_waiters();
        Ok(())
    }

    /// Raft, once this node has a cluster.
    pub(crate) fn running(&self) -> Result<&Running, ClusterError> {
        let waiting = || ClusterError::unavailable("this node is not a member of a cluster yet");
        self.running.get().ok_or_else(waiting)
    }

    /// Returns when Raft runs, if that is after this call.
    pub(crate) fn started(&self) -> Notified<'_> {
        self.started.notified()
    }

    pub(crate) fn metrics(&self) -> Option<Metrics> {
        Some(self.running.get()?.raft.metrics().borrow_watched().clone())
    }

    /// The leader as this node knows it.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let running = self.running.get()?;
        let metrics = running.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let leads = leader != running.owner.node || metrics.state == ServerState::Leader;
        leads.then_some(leader)
    }

    /// Whether this node believes to be the leader.
    pub(crate) fn leads(&self) -> bool {
        self.running.get().is_some_and(|m| self.leader() == Some(m.owner.node))
    }

    /// The channel that tells who leads.
    pub(crate) fn leadership(&self) -> Result<Leadership, ClusterError> {
        Ok(self.running()?.raft.server_metrics())
    }

    /// Returns when this node knows of another leader than `known`.
    pub(crate) async fn leader_changes(&self, known: NodeId) {
        let Ok(mut leadership) = self.leadership() else { return };
        while leadership.borrow_watched().current_leader == Some(known) {
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }

    /// Notes that the leader had a quorum so long ago.
    pub(crate) fn note_contact(&self, quorum_age: Duration) {
        *self.heard.lock() = Instant::now();
        if let Some(at) = Instant::now().checked_sub(quorum_age) {
            let mut contact = self.contact.lock();
            *contact = at.max(*contact);
        }
    }

    /// When this node last had contact with a leader that had a quorum.
    pub(crate) fn last_contact(&self) -> Instant {
        let contact = *self.contact.lock();
        let metrics = self.metrics().filter(|metrics| metrics.state == ServerState::Leader);
        let acked = metrics.and_then(|metrics| Instant::now().checked_sub(quorum::age(&metrics)));
        acked.map_or(contact, |acked| contact.max(acked))
    }

    /// The leader, where it was heard within its lease that it has a quorum.
    pub(crate) fn heard_leader(&self) -> Option<NodeId> {
        let heard = self.last_contact().elapsed() < self.timings.election_max;
        self.leader().filter(|_| heard)
    }

    /// When a request that started at `started` gives up on finding a leader: soon where
    /// none with a quorum was heard of for long, and after [`Timings::patience`] and an
    /// election in any case.
    pub(crate) fn give_up_at(&self, started: Instant) -> Instant {
        let Timings { heartbeat, patience, election_max, .. } = self.timings;
        let soonest = started + heartbeat * 2;
        soonest.max(self.last_contact() + patience).min(started + patience + election_max)
    }

    /// The leader's connection ended, most likely with its process: stands for election as
    /// soon as that leader's lease is over, unless one is heard of until then. The voters
    /// take turns, so that they do not split the votes; each first asks the others
    /// whether they would vote for it, which disturbs no leader that they hear.
    pub(crate) async fn replace_lost_leader(&self) {
        let ended = Instant::now();
        let (Ok(running), Some(metrics), Some(lost)) =
            (self.running(), self.metrics(), self.leader())
        else {
            return;
        };
        let voters = metrics.membership_config.membership().voter_ids();
        let mut voters: Vec<NodeId> = voters.filter(|id| *id != lost).collect();
        voters.sort_unstable();
        let Some(place) = voters.iter().position(|id| *id == running.owner.node) else { return };
        let turn = |n: usize| TURN * u32::try_from(n).unwrap_or(u32::MAX);
        let mut at = *self.heard.lock() + self.timings.election_max + turn(place);
        for _ in 0..TURNS {
            tokio::time::sleep_until(at).await;
            if *self.heard.lock() > ended || self.leader() != Some(lost) {
                return;
            }
            tracing::info!(leader = lost, "the leader's connection ended: an election");
            if let Err(e) = running.raft.trigger().elect(true).await {
                tracing::debug!(error = %e, "no election could be held");
                return;
            }
            at = Instant::now() + turn(voters.len());
        }
    }

    /// Where a node is: by its facts, or by the membership before those are known.
    pub(crate) fn address_of(&self, node: NodeId) -> Result<String, tonic::Status> {
        let in_membership = || {
            let metrics = self.metrics()?;
            let node = metrics.membership_config.membership().get_node(&node)?;
            Some(node.addr.clone())
        };
        let unknown = || tonic::Status::unavailable(format!("node {node} has no known address"));
        self.peers.address(node).or_else(in_membership).ok_or_else(unknown)
    }
}
