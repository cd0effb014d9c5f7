//! What only the leader does: propose commands, and hold acquires open.
//!
//! Invariant: nothing is answered from the leader's state that a later leader
//! could contradict, other than through the log: grants, commits and expiries are
//! log entries, and what is read here only saves the proposal.

use std::{collections::HashSet, future::Future, pin::pin, sync::Arc, time::Duration};

use kiln_proto::ArtifactKey;
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    authorize,
    command::{Command, Response},
    endorser::Endorser,
    error::ClusterError,
    finish::finish,
    member::Member,
    peers::Peers,
    raft::Leadership,
    replica::Replica,
    rpc::{Acquire, Answer, Outcome, TryAcquire, Unanswered, Written},
    settings::Timings,
    step::step,
    table::LeaseRecord,
};

/// The leader's part of a member. It is there on every node, and answers
/// [`Unanswered::NotLeader`] on those that do not lead.
pub(crate) struct Leader {
    pub member: Arc<Member>,
    pub replica: Arc<Replica>,
    pub peers: Arc<Peers>,
    pub endorser: Arc<Endorser>,
    pub timings: Timings,
    /// Whether joining needs a token while nobody has told the cluster.
    pub join_needs_token: bool,
    /// Keys with an acquire proposed by this leader and not yet applied: one is enough.
    proposing: Mutex<HashSet<ArtifactKey>>,
    /// Held while it is judged whether a node may leave, and until it did.
    pub removing: tokio::sync::Mutex<()>,
    /// Since when this node leads and counts the time of leases.
    counting_since: Mutex<Option<Instant>>,
    /// Wakes the housekeeping.
    pub housekeeping: Notify,
    stop: CancellationToken,
}

/// A key whose acquire is being proposed.
struct Proposing<'a> {
    leader: &'a Leader,
    key: ArtifactKey,
}

impl Drop for Proposing<'_> {
    fn drop(&mut self) {
        self.leader.proposing.lock().remove(&self.key);
        // Whoever waited for this proposal looks at what came of it.
        self.leader.replica.wake(&self.key);
    }
}

impl Leader {
    pub(crate) fn new(
        member: Arc<Member>,
        replica: Arc<Replica>,
        peers: Arc<Peers>,
        endorser: Arc<Endorser>,
        timings: Timings,
        join_needs_token: bool,
        stop: CancellationToken,
    ) -> Self {
        Self {
            member,
            replica,
            peers,
            endorser,
            timings,
            join_needs_token,
            proposing: Mutex::default(),
            removing: tokio::sync::Mutex::default(),
            counting_since: Mutex::new(None),
            housekeeping: Notify::new(),
            stop,
        }
    }

    /// Starts or stops counting the time of leases.
    pub(crate) fn set_counting(&self, counts: bool) {
        let now = Instant::now();
        if counts {
            self.replica.deadlines().start(now);
        }
        *self.counting_since.lock() = counts.then_some(now);
    }

    /// For how long this node has led and counted the time of leases.
    pub(crate) fn counting_for(&self) -> Option<Duration> {
        self.counting_since.lock().map(|since| since.elapsed())
    }

    /// Proposes `command` and waits until it is applied here.
    pub(crate) async fn propose(&self, command: Command) -> Answer<Written> {
        let running = self.member.running()?;
        let raft = running.raft.clone();
        let writing = finish(running, async move { raft.client_write(command).await });
        let writing = writing.instrument(step("commit"));
        let began = Instant::now();
        let give_up = self.member.give_up_at(began);
        let written = match tokio::time::timeout_at(give_up, writing).await {
            Ok(written) => written,
            Err(_) => return Err(no_quorum()),
        };
        match written {
            Ok(written) => {
                metrics::histogram!("kiln_raft_commit_seconds").record(began.elapsed());
                Ok(Written { index: written.log_id.index, response: written.data })
            }
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
            )) => Err(Unanswered::NotLeader),
            Err(RaftError::APIError(e)) => Err(ClusterError::invalid(e).into()),
            Err(RaftError::Fatal(e)) => Err(ClusterError::storage(e).into()),
        }
    }

    /// An index that covers everything acknowledged before this call.
    pub(crate) async fn read_index(&self) -> Answer<u64> {
        let running = self.member.running()?;
        let raft = running.raft.clone();
        let reading = async move { raft.ensure_linearizable(ReadPolicy::ReadIndex).await };
        let reading = finish(running, reading);
        let give_up = self.member.give_up_at(Instant::now());
        match tokio::time::timeout_at(give_up, reading).await {
            Ok(Ok(read)) => Ok(read.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
                Err(Unanswered::NotLeader)
            }
            Ok(Err(RaftError::APIError(e))) => Err(ClusterError::unavailable(e).into()),
            Ok(Err(RaftError::Fatal(e))) => Err(ClusterError::storage(e).into()),
            Err(_) => Err(no_quorum()),
        }
    }

    /// Waits for the artifact, the lease or the failure of a key.
    pub(crate) async fn acquire(
        &self,
        asked: &Acquire,
        deadline: Instant,
        mut on_waiting: impl FnMut() + Send,
    ) -> Answer<Outcome> {
        let waiter = self.replica.waiter(asked.key);
        let mut leadership = self.member.leadership()?;
        let mut waiting = None;
        loop {
            // Registered before the state is read: no wake-up is missed.
            let mut woken = pin!(waiter.notified());
            woken.as_mut().enable();
            match self.try_to_grant(asked).await? {
                Grant::Ended(outcome) => return Ok(outcome),
                Grant::Overtaken => {}
                Grant::Held | Grant::Proposing => {
                    waiting.get_or_insert_with(Waiting::begin);
                    on_waiting();
                    self.wait(woken, &mut leadership, deadline).await?;
                }
            }
        }
    }

    /// The artifact, the lease or the failure of a key, or `None`: another's lease is live.
    /// Only another's proposal is waited for, which ends as this one would.
    pub(crate) async fn try_acquire(&self, asked: TryAcquire) -> Answer<Option<Outcome>> {
        let TryAcquire { key, node, request } = asked;
        let asked = Acquire { key, node, request, instead_of: None, wait_ms: 0 };
        let waiter = self.replica.waiter(key);
        let mut leadership = self.member.leadership()?;
        let give_up = self.member.give_up_at(Instant::now());
        let granting = async {
            loop {
                let mut woken = pin!(waiter.notified());
                woken.as_mut().enable();
                match self.try_to_grant(&asked).await? {
                    Grant::Ended(outcome) => return Ok(Some(outcome)),
                    Grant::Held => return Ok(None),
                    Grant::Overtaken => {}
                    Grant::Proposing => self.wait(woken, &mut leadership, give_up).await?,
                }
            }
        };
        match tokio::time::timeout_at(give_up, granting).await {
            Ok(Err(Unanswered::Refused(ClusterError::Deadline))) | Err(_) => Err(no_quorum()),
            Ok(answer) => answer,
        }
    }

    /// Answers from the state, or proposes the lease where the key is free.
    async fn try_to_grant(&self, asked: &Acquire) -> Answer<Grant> {
        let Acquire { key, node, request, instead_of, .. } = *asked;
        if !self.member.leads() {
            return Err(Unanswered::NotLeader);
        }
        let entry = self.replica.entry(&key).await?;
        if let Some(entry) = entry.filter(|entry| Some(entry.epoch) != instead_of) {
            return Ok(Grant::Ended(Outcome::Ready(Box::new(entry))));
        }
        if let Some(failure) = self.replica.failure(&key).await? {
            return Ok(Grant::Ended(Outcome::Failed(failure)));
        }
        if let Some(lease) = self.replica.read::<LeaseRecord>(key).await? {
            let ours = lease.node == node && lease.request == request;
            return Ok(if ours {
                Grant::Ended(Outcome::Granted(lease.token))
            } else {
                Grant::Held
            });
        }
        let nodes = self.replica.nodes();
        authorize::check_signer(&nodes, node)?;
        let now = self.replica.deadlines().now_unix_ms();
        if let Some(info) = nodes.get(&node) {
            info.may_publish(&info.signing(), node, now)?;
        }
        self.replica.trust().check_signer(&nodes, node, now)?;
        if !self.proposing.lock().insert(key) {
            return Ok(Grant::Proposing);
        }
        let _proposing = Proposing { leader: self, key };
        let command = match instead_of {
            None => Command::Acquire { key, node, request },
            Some(epoch) => Command::AcquireAgain { key, node, request, epoch },
        };
        match self.propose(command).await?.response {
            Response::Granted(token) => Ok(Grant::Ended(Outcome::Granted(token))),
            _ => Ok(Grant::Overtaken),
        }
    }

    /// Waits until `woken`, while this node leads.
    async fn wait(
        &self,
        woken: impl Future<Output = ()>,
        leadership: &mut Leadership,
        deadline: Instant,
    ) -> Answer<()> {
        tokio::select! {
            () = woken => Ok(()),
            () = leads_no_longer(leadership) => Err(Unanswered::NotLeader),
            () = tokio::time::sleep_until(deadline) => Err(ClusterError::Deadline.into()),
            () = self.stop.cancelled() => Err(Unanswered::NotLeader),
        }
    }
}

/// A call that waits for another's lease.
struct Waiting(metrics::Gauge);

impl Waiting {
    fn begin() -> Self {
        let waiters = metrics::gauge!("kiln_lease_waiters");
        waiters.increment(1.0);
        Self(waiters)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// What came of a try to grant a lease.
enum Grant {
    Ended(Outcome),
    /// Another's lease is live.
    Held,
    /// Another call's lease is being proposed.
    Proposing,
    /// Something else was committed first: look again.
    Overtaken,
}

fn no_quorum() -> Unanswered {
    ClusterError::unavailable("the leader has no quorum").into()
}

/// Returns when this node does not lead any more, or Raft ended.
async fn leads_no_longer(leadership: &mut Leadership) {
    loop {
        let leader = leadership.borrow_watched().current_leader;
        let id = leadership.borrow_watched().id;
        if leader != Some(id) || leadership.changed().await.is_err() {
            return;
        }
    }
}
