//! What every part of a member shares.
//!
//! Invariant: `member` is set once, after this disk's identity is durable; until
//! then the store can be read and nothing can be proposed.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use kiln_proto::{ArtifactKey, Digest, Failure, NodeId};
use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    command::{Candidate, NewNode, NodeFacts},
    entry::{Entry, PackState},
    error::ClusterError,
    held::Held,
    identity::Identity,
    leader::Gates,
    network::Network,
    peers::Peers,
    raft::{Metrics, Raft, Types},
    settings::{Settings, Timings},
    store::{LogStore, Machine, Owner, Store},
    table::{self, BlobRecord, EntryRecord, FailureRecord, ObjectRecord},
    watch::Watch,
    writes::Writes,
};

/// The library's log is shortened after this many applied entries.
const LOG_LENGTH: u64 = 20_000;
/// Entries kept behind that, for followers that were away for a moment.
const LOG_KEPT: u64 = 10_000;

/// A running member of a cluster.
pub(crate) struct Member {
    pub owner: Owner,
    pub raft: Raft,
}

/// One node's part of the cluster.
pub(crate) struct Core {
    pub data_dir: PathBuf,
    pub timings: Timings,
    pub signing: SigningKey,
    pub facts: NodeFacts,
    pub voter: bool,
    pub identity: Mutex<Identity>,
    /// Candidates seen at the last look at the peers.
    pub seen: Mutex<BTreeSet<Candidate>>,
    /// Held while an assignment is accepted.
    pub accepting: tokio::sync::Mutex<()>,
    pub store: Arc<Store>,
    pub watch: Arc<Watch>,
    pub peers: Arc<Peers>,
    pub held: Held,
    pub writes: Writes,
    pub gates: Gates,
    pub member: OnceLock<Member>,
    /// Notified when `member` is set.
    pub assigned: Notify,
    /// When this node last heard of a leader that has a quorum.
    pub contact: Mutex<Instant>,
    /// Whether this node leads and counts the time of leases.
    pub armed: AtomicBool,
    /// Since when.
    pub armed_since: Mutex<Option<Instant>>,
    /// Wakes the leader's housekeeping.
    pub housekeeping: Notify,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Core {
    pub(crate) fn open(settings: Settings, signing: SigningKey) -> Result<Arc<Self>, ClusterError> {
        let Settings { data_dir, facts, timings, voter, .. } = settings;
        std::fs::create_dir_all(&data_dir)
            .map_err(|e| ClusterError::storage(format!("create {}: {e}", data_dir.display())))?;
        let store = Store::open(&data_dir)?;
        let identity = Identity::open(&data_dir, &store)?;
        let applied = store.applied()?.last.map_or(0, |id| id.index);
        let deadlines = crate::leases::Deadlines::new(timings.lifetimes());
        let watch = Arc::new(Watch::new(&*store, applied, deadlines)?);
        Ok(Arc::new(Self {
            data_dir,
            timings,
            signing,
            facts,
            voter,
            identity: Mutex::new(identity),
            seen: Mutex::default(),
            accepting: tokio::sync::Mutex::new(()),
            store,
            watch,
            peers: Arc::default(),
            held: Held::default(),
            writes: Writes::new()?,
            gates: Gates::default(),
            member: OnceLock::new(),
            assigned: Notify::new(),
            contact: Mutex::new(Instant::now()),
            armed: AtomicBool::new(false),
            armed_since: Mutex::new(None),
            housekeeping: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// What this node tells about itself when it joins.
    pub(crate) fn introduction(&self) -> NewNode {
        NewNode {
            candidate: self.identity.lock().candidate,
            facts: self.facts.clone(),
            key: self.signing.verifying_key().to_bytes(),
        }
    }

    /// Starts Raft as `owner`, whose identity is durable.
    pub(crate) async fn run_raft(&self, owner: Owner) -> Result<(), ClusterError> {
        let timings = &self.timings;
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: format!("{:x}", owner.cluster),
            heartbeat_interval: millis(timings.heartbeat),
            election_timeout_min: millis(timings.election_min),
            election_timeout_max: millis(timings.election_max),
            install_snapshot_timeout: 600_000,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(LOG_LENGTH),
            max_in_snapshot_log_to_keep: LOG_KEPT,
            purge_batch_size: 1024,
            replication_lag_threshold: LOG_LENGTH * 2,
            enable_pre_vote: Some(true),
            // The state is not fsynced per command, so a restarted leader may be behind itself.
            enable_leader_restore: Some(false),
            // Followers write while the leader fsyncs.
            broadcast_submitted_on_append: Some(true),
            ..openraft::Config::default()
        };
        let config = Arc::new(config.validate().map_err(ClusterError::invalid)?);
        let machine = Machine::new(Arc::clone(&self.store), Arc::clone(&self.watch))
            .map_err(ClusterError::storage)?;
        let network = Network { peers: Arc::clone(&self.peers), me: owner };
        let log = LogStore::new(Arc::clone(&self.store));
        let raft = Raft::new(owner.node, config, network, log, machine)
            .await
            .map_err(ClusterError::storage)?;
        if self.member.set(Member { owner, raft }).is_err() {
            return Err(ClusterError::invalid("this node runs already"));
        }
        self.assigned.notify_waiters();
        Ok(())
    }

    pub(crate) fn member(&self) -> Result<&Member, ClusterError> {
        let waiting = || ClusterError::unavailable("this node is not a member of a cluster yet");
        self.member.get().ok_or_else(waiting)
    }

    pub(crate) fn metrics(&self) -> Option<Metrics> {
        Some(self.member.get()?.raft.metrics().borrow_watched().clone())
    }

    /// The leader as this node knows it.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let member = self.member.get()?;
        let metrics = member.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let leads = leader != member.owner.node || metrics.state == ServerState::Leader;
        leads.then_some(leader)
    }

    /// Notes that the leader has a quorum now.
    pub(crate) fn touch(&self) {
        *self.contact.lock() = Instant::now();
    }

    /// When this node last had contact with a leader that had a quorum.
    pub(crate) fn last_contact(&self) -> Instant {
        let contact = *self.contact.lock();
        let Some(metrics) = self.metrics() else { return contact };
        let leads = metrics.state == ServerState::Leader;
        if leads && metrics.membership_config.membership().voter_ids().eq([metrics.id]) {
            return Instant::now(); // a quorum of its own
        }
        let acked = metrics.last_quorum_acked;
        let acked = acked.and_then(|at| Instant::now().checked_sub(at.into_inner().elapsed()));
        acked.map_or(contact, |acked| contact.max(acked))
    }

    /// Takes the nodes' addresses from their registered facts.
    pub(crate) fn refresh_addresses(&self) {
        for (id, node) in self.watch.nodes().iter().filter(|(_, node)| !node.left) {
            self.peers.set_address(*id, &node.facts.grpc);
        }
    }

    /// The artifact of `key` in the local replica.
    pub(crate) fn entry(&self, key: &ArtifactKey) -> Result<Option<Entry>, ClusterError> {
        let Some(record) = table::read::<EntryRecord>(&*self.store, *key)? else {
            return Ok(None);
        };
        self.complete(*key, record).map(Some)
    }

    /// Adds to an entry what is kept apart from it because it changes more often.
    pub(crate) fn complete(
        &self,
        key: ArtifactKey,
        record: EntryRecord,
    ) -> Result<Entry, ClusterError> {
        let mut blob: BlobRecord = table::read(&*self.store, record.pack)?.unwrap_or_default();
        let nodes = self.watch.nodes();
        blob.holders.retain(|holder| nodes.get(holder).is_some_and(|node| !node.left));
        Ok(Entry {
            key,
            epoch: record.epoch,
            manifest: record.manifest,
            pack: record.pack,
            pack_size: record.pack_size,
            generation: self.generation(record.pack)?,
            compile_seconds: record.compile_seconds,
            stored: blob.stored,
            pinned: record.pinned,
            holders: blob.holders,
            hits: blob.hits,
        })
    }

    /// The live negative entry of `key` in the local replica.
    pub(crate) fn failure(&self, key: &ArtifactKey) -> Result<Option<Failure>, ClusterError> {
        Ok(table::read::<FailureRecord>(&*self.store, *key)?.map(|record| record.failure))
    }

    fn generation(&self, pack: Digest) -> Result<u64, ClusterError> {
        let object: Option<ObjectRecord> = table::read(&*self.store, pack)?;
        Ok(object.unwrap_or_default().generation)
    }

    /// What the local replica knows of a pack.
    pub(crate) fn pack(&self, pack: &Digest) -> Result<Option<PackState>, ClusterError> {
        let Some(blob) = table::read::<BlobRecord>(&*self.store, *pack)? else {
            return Ok(None);
        };
        Ok(Some(PackState {
            generation: self.generation(*pack)?,
            named: blob.entries > 0,
            referenced: blob.entries > 0 || blob.leases > 0,
            condemned: blob.condemned,
            stored: blob.stored,
        }))
    }

    /// Waits until the local replica has applied `index`, at most until `deadline`.
    pub(crate) async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        let mut progress = self.watch.progress();
        let reached = progress.wait_for(|applied| *applied >= index);
        tokio::time::timeout_at(deadline, reached).await.is_ok_and(|r| r.is_ok())
    }
}

/// The library's channel that tells who leads.
pub(crate) type Leadership =
    openraft::alias::WatchReceiverOf<Types, openraft::metrics::RaftServerMetrics<Types>>;
