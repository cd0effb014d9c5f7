//! One running member: its parts, put together, and what can be asked of it.
//!
//! Invariant: a `Cluster` is the only owner of its data folder; after `shutdown`
//! nothing of it runs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::SigningKey;
use kiln_proto::{Digest, NodeId, NodeIdentity};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    announce,
    bootstrap::Bootstrap,
    command::{Command, NodeFacts, Response},
    deadlines::Deadlines,
    endorser::Endorser,
    environment::{Environment, system_clock},
    error::ClusterError,
    figures::{self, Figures},
    housekeeping,
    identity::Identity,
    index::Index,
    leader::Leader,
    leases::Leases,
    member::Member,
    membership,
    pb::peer_server::PeerServer,
    peers::{MOST_MESSAGE, Peers},
    raft::Metrics,
    replica::Replica,
    router::Router,
    rpc::{Add, Remove},
    service::Service,
    settings::{Settings, Start, Timings},
    status::{self, ClusterStatus},
    store::{self, Owner, RealDisk, Store},
    transport::Tcp,
    versions,
    watch::Watch,
    writer::Writer,
};

/// One member of a cluster.
pub struct Cluster {
    signing: SigningKey,
    start: Start,
    timings: Timings,
    pub(crate) store: Arc<Store>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) member: Arc<Member>,
    leader: Arc<Leader>,
    router: Arc<Router>,
    leases: Arc<Leases>,
    writer: Arc<Writer>,
    pub(crate) bootstrap: Arc<Bootstrap>,
    tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Cluster {
    /// Opens the data folder. The routes are to be served at `facts.members()` before
    /// [`Cluster::start`] is called; local reads work at once.
    pub fn open(settings: Settings, signing: SigningKey) -> Result<(Self, Routes), ClusterError> {
        let network = Arc::new(Tcp { context: settings.context, dial: settings.dial.clone() });
        let here = Environment { network, disk: Arc::new(RealDisk), clock: system_clock() };
        Self::open_on(here, settings, signing)
    }

    /// The same on a machine that may be another one than this.
    pub(crate) fn open_on(
        machine: Environment,
        settings: Settings,
        signing: SigningKey,
    ) -> Result<(Self, Routes), ClusterError> {
        let Environment { network, disk, clock } = machine;
        let Settings { data_dir, start, facts, timings, voter, log_entries, joining, .. } =
            settings;
        std::fs::create_dir_all(&data_dir)
            .map_err(|e| ClusterError::storage(format!("create {}: {e}", data_dir.display())))?;
        let store = store::open(&data_dir, &*disk, &facts.version)?;
        let identity = Identity::open(&data_dir, &store)?;
        let applied = store.applied()?.last.map_or(0, |id| id.index);
        let deadlines = Deadlines::new(timings.lifetimes(), clock);
        let (grants, granted) = mpsc::unbounded_channel();
        let watch = Arc::new(Watch::new(&*store, applied, deadlines, grants)?);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());

        let peers = Arc::new(Peers::new(network));
        let endorser = Endorser::open(Arc::clone(&store), Arc::clone(&peers), signing.clone())?;
        let endorser = Arc::new(endorser);
        let replica = Arc::new(Replica::new(Arc::clone(&store), Arc::clone(&watch)));
        let member = Arc::new(Member::new(timings.clone(), log_entries, Arc::clone(&peers)));
        let leader = Arc::new(Leader::new(
            Arc::clone(&member),
            Arc::clone(&replica),
            Arc::clone(&peers),
            Arc::clone(&endorser),
            timings.clone(),
            joining.needs_token,
            stop.clone(),
        ));
        let (witness, refusals) = (joining.witness.clone(), joining.refusals.clone());
        let router =
            Router::new(Arc::clone(&leader), Arc::clone(&peers), timings.clone(), stop.clone());
        let router = Arc::new(router);
        let leases = Leases::new(
            Arc::clone(&replica),
            granted,
            Arc::clone(&router),
            timings.lease_ttl,
            tasks.clone(),
            stop.clone(),
        );
        let bootstrap = Arc::new(Bootstrap {
            data_dir,
            store: Arc::clone(&store),
            watch,
            member: Arc::clone(&member),
            router: Arc::clone(&router),
            peers: Arc::clone(&peers),
            facts,
            key: signing.verifying_key(),
            endorser,
            voter,
            joining,
            patience: timings.patience,
            identity: Mutex::new(identity),
            shares_a_port: AtomicBool::new(false),
            seen: Mutex::default(),
            accepting: tokio::sync::Mutex::new(()),
            stop: stop.clone(),
        });
        let service = PeerServer::new(Service {
            member: Arc::clone(&member),
            leader: Arc::clone(&leader),
            router: Arc::clone(&router),
            bootstrap: Arc::clone(&bootstrap),
            witness,
            refusals,
            store: Arc::clone(&store),
            tasks: tasks.clone(),
            stop: stop.clone(),
        })
        .max_decoding_message_size(MOST_MESSAGE)
        .max_encoding_message_size(MOST_MESSAGE);
        let leases = Arc::new(leases);
        let writer = Writer::new(Arc::clone(&router), timings.patience, stop.clone())?;
        let writer = Arc::new(writer);
        let cluster = Self {
            signing,
            start,
            timings,
            store,
            replica,
            peers,
            member,
            leader,
            router,
            leases,
            writer,
            bootstrap,
            tasks,
            stop,
        };
        Ok((cluster, Routes::new(service)))
    }

    /// Whether a member is of a version before 0.2, which knows one port of each node:
    /// until the last one is upgraded the peers' calls are taken on the clients' port too.
    pub fn shares_a_port(&self) -> bool {
        let nodes = self.replica.nodes();
        match nodes.is_empty() {
            true => self.bootstrap.shares_a_port.load(Ordering::Relaxed),
            false => versions::share_a_port(&nodes),
        }
    }

    /// Founds, joins or resumes. Returns when this node is registered and knows a
    /// leader; a node that resumes returns at once, since it can read without one.
    pub async fn start(&self) -> Result<NodeIdentity, ClusterError> {
        let bootstrap = &self.bootstrap;
        let owner = bootstrap.identity.lock().owner;
        let resumed = owner.is_some();
        match owner {
            Some(owner) => {
                housekeeping::refresh_addresses(&self.replica, &self.peers);
                bootstrap.start_member(owner).await?;
                let founding = Arc::clone(bootstrap);
                self.tasks.spawn(async move {
                    if let Err(e) = founding.finish_founding().await {
                        tracing::error!(error = %e, "the founding of this cluster failed");
                    }
                });
            }
            None => bootstrap.find_place(&self.start).await?,
        }
        let me = self.router.owner()?.node;
        let replica = || Arc::clone(&self.replica);
        self.tasks.spawn(housekeeping::follow_addresses(
            replica(),
            Arc::clone(&self.peers),
            self.stop.clone(),
        ));
        let leader = Arc::clone(&self.leader);
        self.tasks.spawn(housekeeping::run(leader, self.tasks.clone(), self.stop.clone()));
        self.tasks.spawn(Arc::clone(&self.leases).send_heartbeats());
        self.tasks.spawn(Arc::clone(&self.leases).give_unawaited_back());
        self.tasks.spawn(Arc::clone(&self.writer).fence_writes());
        let standing =
            announce::announce_standing(Arc::clone(bootstrap), replica(), self.start.clone());
        let standing = self.tasks.spawn(standing);
        self.tasks.spawn(announce::keep_endorsed(Arc::clone(bootstrap), replica()));
        let needs = announce::announce_need(Arc::clone(bootstrap), replica());
        let needs = self.tasks.spawn(needs);
        if resumed {
            let peers = self.start.peers().to_vec();
            let address = announce::announce_address(Arc::clone(bootstrap), replica(), peers);
            self.tasks.spawn(address);
            self.elect_sole_voter().await;
        } else {
            self.wait_until_registered(me).await?;
            // What an operator sets after this call is not undone by this node's settings.
            // Without a leader the settings are told later.
            let told = futures::future::join(standing, needs);
            drop(tokio::time::timeout(self.timings.patience, told).await);
        }
        Ok(NodeIdentity::new(me, self.signing.clone()))
    }

    /// The only voter of a cluster needs nobody's leave to lead.
    async fn elect_sole_voter(&self) {
        let (Ok(running), Some(metrics)) = (self.member.running(), self.member.metrics()) else {
            return;
        };
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        if voters == BTreeSet::from([running.owner.node])
            && let Err(e) = running.raft.trigger().elect(false).await
        {
            tracing::warn!(error = %e, "no election could be held");
        }
    }

    async fn wait_until_registered(&self, me: NodeId) -> Result<(), ClusterError> {
        let mut progress = self.replica.progress();
        while !self.replica.nodes().contains_key(&me) || self.member.leader().is_none() {
            tokio::select! {
                changed = progress.changed() => changed.map_err(ClusterError::unavailable)?,
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
                failed = self.failed() => return Err(failed),
                () = self.stop.cancelled() => {
                    return Err(ClusterError::unavailable("this node stops"));
                }
            }
        }
        Ok(())
    }

    /// The handle on the index; it may be used before [`Cluster::start`] for reads.
    pub fn index(&self) -> Index {
        let (replica, router) = (Arc::clone(&self.replica), Arc::clone(&self.router));
        Index::new(replica, router, Arc::clone(&self.leases), Arc::clone(&self.writer))
    }

    /// From now on this node signs with `key`: also its word for those that it lets in.
    pub fn sign_with(&self, key: SigningKey) {
        self.bootstrap.endorser.sign_with(key);
    }

    /// Whether a node that this one has not heard of is refused where it cannot prove that it was
    /// let in.
    pub fn needs_proof(&self) -> bool {
        self.bootstrap.joining.needs_proof
    }

    /// Whether Raft counts on `node` still, which may have left: as a voter or one that follows.
    pub fn counts_on(&self, node: NodeId) -> bool {
        self.member
            .metrics()
            .is_some_and(|metrics| metrics.membership_config.membership().get_node(&node).is_some())
    }

    /// Admits the candidate that waits at `address`, and tells its id.
    pub async fn add(&self, address: &str) -> Result<NodeId, ClusterError> {
        Ok(self.router.ask(Add(address.to_owned())).await?.node)
    }

    /// Replaces what the cluster knows of this node's addresses and compilers.
    pub async fn set_facts(&self, facts: NodeFacts) -> Result<(), ClusterError> {
        let node = self.router.owner()?.node;
        self.router.write(Command::Facts { node, facts }).await.map(drop)
    }

    /// Removes a node for good, dead or alive.
    pub async fn remove(&self, node: NodeId) -> Result<(), ClusterError> {
        self.router.ask(Remove(node)).await
    }

    /// Sets how many voters the leader strives for: 1, 3, 5 or 7. Fewer than there are
    /// become learners again, the dead and the newest first.
    pub async fn set_voters(&self, voters: u64) -> Result<bool, ClusterError> {
        if !matches!(voters, 1 | 3 | 5 | 7) {
            return Err(ClusterError::invalid("a cluster strives for 1, 3, 5 or 7 voters"));
        }
        match self.router.write(Command::SetVoters { voters, raise: false }).await?.1 {
            Response::Changed(changed) => Ok(changed),
            other => Err(ClusterError::unexpected(&other)),
        }
    }

    /// Leaves for good. The node hands the leadership over if it has it, and is
    /// out of the membership when this returns: shut it down then.
    pub async fn leave(&self) -> Result<(), ClusterError> {
        let me = self.router.owner()?.node;
        if self.member.leads() {
            membership::hand_over(&self.leader).await;
        }
        self.router.ask(Remove(me)).await?;
        self.member.set_removed();
        Ok(())
    }

    /// Whether this node is a member no more, as far as it knows: it left by itself, or
    /// its replica or a member says that it was removed. What it has is never up to date again.
    pub fn has_left(&self) -> bool {
        let removed = |owner: Owner| self.replica.nodes().get(&owner.node).is_some_and(|n| n.left);
        self.member.is_removed() || self.router.owner().is_ok_and(removed)
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> ClusterStatus {
        status::status(&self.member, &self.replica, &self.timings)
    }

    /// Its Raft and its leases in figures.
    pub fn figures(&self) -> Figures {
        figures::figures(&self.member, &self.replica, &self.leases, &self.store)
    }

    /// Shortens the log to what was applied by now; a node that lacks more than
    /// that gets a snapshot. The log is shortened now and then in any case.
    pub async fn compact(&self) -> Result<(), ClusterError> {
        let raft = &self.member.running()?.raft;
        let applied = self.replica.applied();
        let wait = raft.wait(Some(self.timings.patience));
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
        self.store.digest()
    }

    /// Returns when this node can no longer work, with the reason: its disk
    /// failed, or Raft stopped. Stop the process then.
    pub async fn failed(&self) -> ClusterError {
        let running = loop {
            // Registered before the look: no start is missed.
            let started = self.member.started();
            match self.member.running() {
                Ok(running) => break running,
                Err(_) => started.await,
            }
        };
        let wait = running.raft.wait(None);
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
        if self.member.leads() {
            membership::hand_over(&self.leader).await;
        }
        self.stop.cancel();
        if let Ok(running) = self.member.running()
            && let Err(e) = running.raft.shutdown().await
        {
            tracing::warn!(error = %e, "Raft did not stop cleanly");
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
