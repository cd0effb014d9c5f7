//! What only the leader does: propose commands, and hold acquires open.
//!
//! Invariant: nothing is answered from the leader's state that a later leader
//! could contradict, other than through the log: grants, commits and expiries are
//! log entries, and what is read here only saves the proposal.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use kiln_proto::ArtifactKey;
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    command::{Command, Response},
    error::ClusterError,
    finish::finish,
    member::Member,
    peers::Peers,
    raft::Leadership,
    replica::Replica,
    rpc::{Acquire, Answer, Outcome, Unanswered, Written},
    settings::Timings,
    table::LeaseRecord,
};

/// The leader's part of a member. It is there on every node, and answers
/// [`Unanswered::NotLeader`] on those that do not lead.
pub(crate) struct Leader {
    pub member: Arc<Member>,
    pub replica: Arc<Replica>,
    pub peers: Arc<Peers>,
    pub timings: Timings,
    /// Keys with an acquire proposed by this leader and not yet applied: one is enough.
    proposing: Mutex<HashSet<ArtifactKey>>,
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
        timings: Timings,
        stop: CancellationToken,
    ) -> Self {
        Self {
            member,
            replica,
            peers,
            timings,
            proposing: Mutex::default(),
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
        let give_up = self.member.give_up_at(Instant::now());
        let written = match tokio::time::timeout_at(give_up, writing).await {
            Ok(written) => written,
            Err(_) => return Err(no_quorum()),
        };
        match written {
            Ok(written) => Ok(Written { index: written.log_id.index, response: written.data }),
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
        let key = asked.key;
        let waiter = self.replica.waiter(key);
        let mut leadership = self.member.leadership()?;
        loop {
            // Registered before the state is read: no wake-up is missed.
            let mut woken = pin!(waiter.notified());
            woken.as_mut().enable();
            if !self.member.leads() {
                return Err(Unanswered::NotLeader);
            }
            let entry = self.replica.entry(&key).await?;
            if let Some(entry) = entry.filter(|entry| Some(entry.epoch) != asked.instead_of) {
                return Ok(Outcome::Ready(Box::new(entry)));
            }
            if let Some(failure) = self.replica.failure(&key).await? {
                return Ok(Outcome::Failed(failure));
            }
            let lease: Option<LeaseRecord> = self.replica.read(key).await?;
            let ours = |l: &LeaseRecord| l.node == asked.node && l.request == asked.request;
            match lease {
                Some(lease) if ours(&lease) => return Ok(Outcome::Granted(lease.token)),
                None if self.proposing.lock().insert(key) => {
                    let _proposing = Proposing { leader: self, key };
                    let Acquire { node, request, instead_of, .. } = *asked;
                    let command = match instead_of {
                        None => Command::Acquire { key, node, request },
                        Some(epoch) => Command::AcquireAgain { key, node, request, epoch },
                    };
                    let written = self.propose(command).await?;
                    if let Response::Granted(token) = written.response {
                        return Ok(Outcome::Granted(token));
                    }
                    continue;
                }
                _ => {}
            }
            on_waiting();
            tokio::select! {
                () = woken => {}
                () = leads_no_longer(&mut leadership) => return Err(Unanswered::NotLeader),
                () = tokio::time::sleep_until(deadline) => {
                    return Err(ClusterError::Deadline.into());
                }
                () = self.stop.cancelled() => return Err(Unanswered::NotLeader),
            }
        }
    }
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
