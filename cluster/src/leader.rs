//! What only the leader does: judge requests, propose commands, hold acquires open.
//!
//! Invariant: nothing is answered from the leader's state that a later leader
//! could contradict, other than through the log: grants, commits and expiries are
//! log entries, and what is read here only saves the proposal.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use kiln_proto::{ArtifactKey, Failure, Manifest, NodeId, Token};
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    command::{Change, Command, NewNode, OrderedWrite, Publication, Response},
    core::{Core, Leadership},
    entry::Entry,
    error::ClusterError,
    membership,
    store::Owner,
    table::{self, Counters, LeaseRecord},
    writes,
};

/// Largest encoded manifest, in bytes: it is in every replica and its log.
const MOST_MANIFEST: usize = 4 << 20;
/// Most keys and packs in one report.
const MOST_REPORTED: usize = 100_000;
/// Most other nodes that a publication is copied to.
const MOST_COPIES: usize = 16;
const LONGEST_MESSAGE: usize = 64 << 10;

/// Something that only the leader can answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Propose a command, once it is found valid.
    Write(Command),
    /// End a lease with a failure, remembered for as long as its kind deserves.
    Fail { key: ArtifactKey, token: Token, failure: Failure },
    /// Heartbeats of one node's leases.
    Renew(Vec<(ArtifactKey, Token)>),
    /// An index that covers everything acknowledged before this call.
    ReadIndex,
    /// Register a new node.
    Join(NewNode),
    /// Admit the candidate at an address.
    Add(String),
    /// Remove a node for good, and answer when it is out of the membership.
    Remove(NodeId),
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Written { index: u64, response: Response },
    Renewed(Vec<bool>),
    ReadIndex(u64),
    Joined(Owner),
    Removed,
}

/// What came of asking a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Answer<T> {
    Done(T),
    /// Ask the leader instead, when there is one.
    NotLeader,
    Refused(ClusterError),
}

impl<T> From<Result<T, ClusterError>> for Answer<T> {
    fn from(result: Result<T, ClusterError>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(e) => Self::Refused(e),
        }
    }
}

/// A call that waits at the leader for a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AcquireRequest {
    pub key: ArtifactKey,
    pub node: NodeId,
    /// Names this call, so that a retry finds the lease that it was granted.
    pub request: u64,
    /// The epoch whose artifact the caller cannot reach: that one is no answer.
    pub instead_of: Option<u64>,
    /// Milliseconds that the caller waits.
    pub wait_ms: u64,
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Ready(Box<Entry>),
    Granted(Token),
    Failed(Failure),
}

/// The keys for which this leader has a proposal under way: one is enough.
#[derive(Default)]
pub(crate) struct Gates(Mutex<HashSet<ArtifactKey>>);

struct Gate<'a> {
    core: &'a Core,
    key: ArtifactKey,
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        self.core.gates.0.lock().remove(&self.key);
        // Whoever waited for this proposal looks at what came of it.
        self.core.watch.wake(&self.key);
    }
}

macro_rules! done {
    ($answer:expr) => {
        match $answer {
            Answer::Done(value) => value,
            Answer::NotLeader => return Answer::NotLeader,
            Answer::Refused(e) => return Answer::Refused(e),
        }
    };
}

macro_rules! ok {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(e) => return Answer::Refused(e.into()),
        }
    };
}

impl Core {
    /// Whether this node believes to be the leader.
    pub(crate) fn leads(&self) -> bool {
        self.member.get().is_some_and(|m| self.leader() == Some(m.owner.node))
    }

    /// Answers `request` as the leader.
    pub(crate) async fn lead(self: &Arc<Self>, request: Request) -> Answer<Reply> {
        if !self.leads() {
            return Answer::NotLeader;
        }
        match request {
            Request::Write(command) => {
                ok!(self.check(&command));
                self.propose(command).await
            }
            Request::Fail { key, token, failure } => {
                let command = self.failed(key, token, failure);
                self.propose(command).await
            }
            Request::Renew(leases) => {
                if !self.armed.load(Ordering::Acquire) {
                    return Answer::NotLeader;
                }
                let now = Instant::now();
                let renew = |(key, token)| self.watch.deadlines.renew(&key, token, now);
                Answer::Done(Reply::Renewed(leases.into_iter().map(renew).collect()))
            }
            Request::ReadIndex => self.read_index().await,
            Request::Join(node) => {
                ok!(check_node(&node));
                let member = ok!(self.member());
                let counters: Option<Counters> = ok!(table::read(&*self.store, ()));
                if counters.is_none() {
                    let founding = ClusterError::unavailable("the cluster is being founded");
                    return Answer::Refused(founding);
                }
                match done!(self.propose(Command::Join(node)).await) {
                    Reply::Written { response: Response::Node(node), .. } => {
                        self.housekeeping.notify_one();
                        Answer::Done(Reply::Joined(Owner { node, ..member.owner }))
                    }
                    Reply::Written { response: Response::NotFounded, .. } => {
                        Answer::Refused(ClusterError::unavailable("the cluster is not founded yet"))
                    }
                    Reply::Written { response: Response::Refused(why), .. } => {
                        Answer::Refused(ClusterError::Invalid(why))
                    }
                    other => unexpected(&other),
                }
            }
            Request::Add(address) => membership::add(self, &address).await,
            Request::Remove(node) => membership::remove(self, node).await,
        }
    }

    /// Proposes `command` and waits until it is applied here.
    pub(crate) async fn propose(&self, command: Command) -> Answer<Reply> {
        let member = ok!(self.member());
        let give_up = self.give_up_at(Instant::now());
        match tokio::time::timeout_at(give_up, member.raft.client_write(command)).await {
            Ok(Ok(written)) => {
                Answer::Done(Reply::Written { index: written.log_id.index, response: written.data })
            }
            Ok(Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
            ))) => Answer::NotLeader,
            Ok(Err(RaftError::APIError(e))) => Answer::Refused(ClusterError::invalid(e)),
            Ok(Err(RaftError::Fatal(e))) => Answer::Refused(ClusterError::storage(e)),
            Err(_) => Answer::Refused(ClusterError::unavailable("the leader has no quorum")),
        }
    }

    async fn read_index(&self) -> Answer<Reply> {
        let member = ok!(self.member());
        let reading = member.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout_at(self.give_up_at(Instant::now()), reading).await {
            Ok(Ok(read)) => Answer::Done(Reply::ReadIndex(read.index())),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
                Answer::NotLeader
            }
            Ok(Err(RaftError::APIError(e))) => Answer::Refused(ClusterError::unavailable(e)),
            Ok(Err(RaftError::Fatal(e))) => Answer::Refused(ClusterError::storage(e)),
            Err(_) => Answer::Refused(ClusterError::unavailable("the leader has no quorum")),
        }
    }

    /// A failure that any node would have is remembered; another one only ends
    /// the lease, so that the next waiter tries.
    fn failed(&self, key: ArtifactKey, token: Token, failure: Failure) -> Command {
        if !failure.kind.follows_from_request() {
            return Command::Expire { key, token };
        }
        let until_unix_ms = self.watch.deadlines.lifetimes.until_unix_ms(failure.kind);
        let mut failure = failure;
        if failure.message.len() > LONGEST_MESSAGE {
            let cut = failure.message.floor_char_boundary(LONGEST_MESSAGE);
            failure.message.truncate(cut);
        }
        Command::Fail { key, token, failure, until_unix_ms }
    }

    fn check(&self, command: &Command) -> Result<(), ClusterError> {
        match command {
            Command::Commit { publication, also } => {
                check_holders(also)?;
                self.check_publication(publication).map(drop)
            }
            Command::Write(write) => self.check_write(write),
            Command::RetireAbsent { asked, .. } if asked.nodes.len() > MOST_REPORTED => {
                Err(ClusterError::invalid("more nodes than there are"))
            }
            Command::Report { report, .. } => {
                let size = report.hits.len() + report.gained.len() + report.lost.len();
                match size > MOST_REPORTED {
                    true => Err(ClusterError::invalid(format!("a report of {size} items"))),
                    false => Ok(()),
                }
            }
            Command::Tombstone { reason, .. } if reason.len() > LONGEST_MESSAGE => {
                Err(ClusterError::invalid("the reason is too long"))
            }
            _ => Ok(()),
        }
    }

    fn check_write(&self, write: &OrderedWrite) -> Result<(), ClusterError> {
        if write.supersedes.len() > writes::MOST_OPEN {
            return Err(ClusterError::invalid("more writes than a node may have under way"));
        }
        match &write.change {
            Change::Put { publication, also, .. } => {
                check_holders(also)?;
                match self.check_publication(publication)?.replaceable() {
                    true => Ok(()),
                    false => Err(ClusterError::invalid("this key needs a lease")),
                }
            }
            Change::Remove { reason, .. } if reason.len() > LONGEST_MESSAGE => {
                Err(ClusterError::invalid("the reason is too long"))
            }
            Change::Remove { .. } | Change::Withdraw { .. } | Change::Nothing => Ok(()),
        }
    }

    /// A manifest is signed by the registered key of a present node, and is for
    /// the key and the pack that it is published for.
    fn check_publication(&self, publication: &Publication) -> Result<Manifest, ClusterError> {
        let manifest = &publication.manifest;
        if manifest.bytes.len() > MOST_MANIFEST {
            let size = manifest.bytes.len();
            return Err(ClusterError::invalid(format!("a manifest of {size} bytes")));
        }
        let nodes = self.watch.nodes();
        let signer = nodes.get(&manifest.signer).filter(|node| !node.left).ok_or_else(|| {
            ClusterError::invalid(format!("node {} is not registered", manifest.signer))
        })?;
        let signed =
            manifest.verify(&signer.key, &publication.key).map_err(ClusterError::invalid)?;
        let same = signed.pack_digest == publication.pack
            && signed.pack_size == publication.pack_size
            && signed.compile_seconds.to_bits() == publication.compile_seconds.to_bits();
        if same { Ok(signed) } else { Err(ClusterError::invalid("it differs from its manifest")) }
    }

    /// Waits for the artifact, the lease or the failure of a key.
    pub(crate) async fn lead_acquire(
        &self,
        asked: &AcquireRequest,
        deadline: Instant,
        mut on_waiting: impl FnMut() + Send,
    ) -> Answer<Outcome> {
        let key = asked.key;
        let waiter = self.watch.waiter(key);
        let mut leading = match self.member() {
            Ok(member) => member.raft.server_metrics(),
            Err(e) => return Answer::Refused(e),
        };
        loop {
            // Registered before the state is read: no wake-up is missed.
            let mut woken = pin!(waiter.notified());
            woken.as_mut().enable();
            if !self.leads() {
                return Answer::NotLeader;
            }
            let entry = ok!(self.entry(&key));
            if let Some(entry) = entry.filter(|entry| Some(entry.epoch) != asked.instead_of) {
                return Answer::Done(Outcome::Ready(Box::new(entry)));
            }
            if let Some(failure) = ok!(self.failure(&key)) {
                return Answer::Done(Outcome::Failed(failure));
            }
            let lease: Option<LeaseRecord> = ok!(table::read(&*self.store, key));
            let ours = |l: &LeaseRecord| l.node == asked.node && l.request == asked.request;
            match lease {
                Some(lease) if ours(&lease) => {
                    return Answer::Done(Outcome::Granted(lease.token));
                }
                None if self.gates.0.lock().insert(key) => {
                    let _gate = Gate { core: self, key };
                    let AcquireRequest { node, request, instead_of, .. } = *asked;
                    let acquire = match instead_of {
                        None => Command::Acquire { key, node, request },
                        Some(epoch) => Command::AcquireAgain { key, node, request, epoch },
                    };
                    if let Reply::Written { response: Response::Granted(token), .. } =
                        done!(self.propose(acquire).await)
                    {
                        return Answer::Done(Outcome::Granted(token));
                    }
                    continue;
                }
                _ => {}
            }
            on_waiting();
            tokio::select! {
                () = woken => {}
                () = no_longer_leading(&mut leading) => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Answer::Refused(ClusterError::Deadline);
                }
                () = self.stop.cancelled() => return Answer::NotLeader,
            }
        }
    }
}

async fn no_longer_leading(metrics: &mut Leadership) {
    loop {
        let led = metrics.borrow_watched().current_leader;
        let id = metrics.borrow_watched().id;
        if led != Some(id) || metrics.changed().await.is_err() {
            return;
        }
    }
}

fn check_holders(nodes: &[NodeId]) -> Result<(), ClusterError> {
    match nodes.len() <= MOST_COPIES {
        true => Ok(()),
        false => Err(ClusterError::invalid("more copies than a publication makes")),
    }
}

fn check_node(node: &NewNode) -> Result<(), ClusterError> {
    ed25519_dalek::VerifyingKey::from_bytes(&node.key).map_err(ClusterError::invalid)?;
    if node.facts.grpc.is_empty() {
        return Err(ClusterError::invalid("a node needs an address"));
    }
    Ok(())
}

/// An answer of another kind than its request's: a bug, told as an error.
pub(crate) fn unexpected<T>(reply: &Reply) -> Answer<T> {
    Answer::Refused(ClusterError::invalid(format!("an answer out of place: {reply:?}")))
}
