//! The node's side of the traffic between nodes.
//!
//! Invariant: Raft's messages are taken only by the very node that they are for, and, where
//! certificates name nodes, from those alone that joined, as far as this one can know.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kiln_proto::NodeId;
use openraft::{Snapshot, raft::TransferLeaderRequest};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::{
    admission::{Candidacy, NotAdmitted, Witness, Word},
    append::is_gapless,
    bootstrap::Bootstrap,
    caller::{self, Caller, Refusal, RefusalWitness, RefusedPeer},
    codec::Malformed,
    command::{Candidate, Command, NewNode},
    endorsement::{Admitted, Known},
    error::{ClusterError, io_error},
    finish::finish,
    leader::Leader,
    member::{Member, Running},
    pb::{Frame, peer_server::Peer},
    peers::{
        abstains, check_target, frame, join_token, proof, sender, set_abstains, set_of_you, unframe,
    },
    raft::{SnapshotMeta, Types, Vote},
    requests,
    router::Router,
    rpc::{Acquire, Admit, Answer, Join, Outcome, Progress, Unanswered},
    store::{Owner, SnapshotData, Staging, Store},
    unproved::tell_of_unproved,
    versions,
};

/// Longest wait that an acquire may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The gRPC service.
pub(crate) struct Service {
    pub member: Arc<Member>,
    pub leader: Arc<Leader>,
    pub router: Arc<Router>,
    pub bootstrap: Arc<Bootstrap>,
    /// Is told of candidates.
    pub witness: Option<Witness>,
    /// Is told of peers that are refused for their certificates.
    pub refusals: Option<RefusalWitness>,
    pub store: Arc<Store>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

type Reply = Result<Response<Frame>, Status>;
type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

fn reply<T: serde::Serialize>(value: &T) -> Reply {
    frame(value).map(Response::new)
}

fn status(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

impl Service {
    /// Raft, if `request` is for this very node.
    fn running<T>(&self, request: &Request<T>) -> Result<&Running, Status> {
        let running = self.member.running().map_err(status)?;
        let nodes = self.leader.replica.nodes();
        let leader = || self.member.heard_leader();
        // Before it has read the log a replica knows those who let it in.
        let own = self.leader.endorser.own();
        let roster = &Known { index: &nodes, roll: own.as_ref().map(|own| &own.roll) };
        let (cluster, metadata) = (running.owner.cluster, request.metadata());
        let proves = |node, name| {
            // Whom a member of an earlier version let in has no proof, as this node may have none.
            !versions::all_endorse(&nodes)
                || own.is_none()
                || proof(metadata).proves(cluster, roster, node, name)
        };
        let (extensions, from) = (request.extensions(), sender(metadata));
        let judged = match caller::check(extensions, from, roster, leader, proves) {
            // Then only the index judges, as before there were proofs.
            Err(Refusal { said, .. }) if !self.bootstrap.joining.needs_proof => {
                caller::check(extensions, from, &*nodes, leader, |_, _| true)
                    .map(|()| tell_of_unproved("messages", &said))
            }
            judged => judged,
        };
        judged.map_err(|refusal| self.refuse(request.extensions(), refusal))?;
        check_target(request.metadata(), running.owner)?;
        Ok(running)
    }

    /// What `node` is given, which was let in by this one's word as `owner`.
    fn admitted(&self, owner: Owner, node: &NewNode) -> Result<Bytes, Status> {
        let me = self.member.running().map_err(status)?.owner;
        let nodes = self.leader.replica.nodes();
        let admitted = self.leader.endorser.endorse(me, &nodes, owner, node).map_err(status)?;
        admitted.encode().map_err(status)
    }

    /// Counts and tells that a peer is refused, and how it is answered.
    fn refuse(&self, extensions: &Extensions, refusal: Refusal) -> Status {
        let Refusal { why, said, text } = refusal;
        metrics::counter!("kiln_refused_peers_total", "why" => why).increment(1);
        let caller = extensions.get::<Caller>().cloned().unwrap_or_default();
        tracing::debug!(from = ?caller.from, why, said, "a peer is refused");
        if let Some(RefusalWitness(witness)) = &self.refusals {
            witness(&RefusedPeer { caller, why, said });
        }
        Status::permission_denied(text)
    }

    /// The node that sent `request`, if it is a member, or one that was away.
    fn member_that_asks<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let nodes = self.leader.replica.nodes();
        let from = sender(request.metadata());
        // Nobody is registered before the first command.
        let known = |id: &NodeId| nodes.is_empty() || nodes.get(id).is_some_and(|n| !n.left);
        from.filter(known).ok_or_else(|| Status::permission_denied("not from a member"))
    }
}

impl Service {
    /// Tells of a candidate that was judged.
    fn tell(&self, candidacy: &Candidacy) {
        if let Err(why) = candidacy.outcome {
            metrics::counter!("kiln_refused_peers_total", "why" => NotAdmitted::why(why))
                .increment(1);
        }
        if let Some(Witness(witness)) = &self.witness {
            witness(candidacy);
        }
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type AppendStream = Frames;
    type AcquireStream = Frames;

    async fn append(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let raft = self.running(&request)?.raft.clone();
        let member = Arc::clone(&self.member);
        // A frame that cannot be read ends the stream; the leader opens another.
        let requests = request.into_inner().map(move |frame| {
            let frame = frame?;
            member.note_contact(Duration::from_millis(frame.quorum_age_ms));
            let request = unframe(&frame)?;
            match is_gapless(&request) {
                true => Ok(request),
                false => Err(Status::invalid_argument("entries that do not follow each other")),
            }
        });
        let connection = LeaderConnection {
            member: Arc::clone(&self.member),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
        };
        let requests = requests.scan(connection, move |_, request| {
            let request = request.inspect_err(|e: &Status| tracing::debug!(error = %e, "append"));
            std::future::ready(request.ok())
        });
        // The leader would keep both streams, and with them a graceful server, for ever.
        let stopped = || self.stop.clone().cancelled_owned();
        let answers = raft.stream_append(requests.take_until(stopped()));
        let answers = answers.map(|answer| frame(&answer.map_err(status)?));
        let answers = answers.take_until(stopped());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<Frame>) -> Reply {
        let (running, vote) = (self.running(&request)?, unframe(request.get_ref())?);
        let raft = running.raft.clone();
        let voted = finish(running, async move { raft.vote(vote).await });
        reply(&voted.await.map_err(status)?)
    }

    async fn pre_vote(&self, request: Request<Frame>) -> Reply {
        let (running, vote) = (self.running(&request)?, unframe(request.get_ref())?);
        let raft = running.raft.clone();
        let voted = finish(running, async move { raft.pre_vote(vote).await });
        reply(&voted.await.map_err(status)?)
    }

    async fn transfer_leader(&self, request: Request<Frame>) -> Reply {
        let running = self.running(&request)?;
        let transfer: TransferLeaderRequest<Types> = unframe(request.get_ref())?;
        let raft = running.raft.clone();
        let moved = finish(running, async move { raft.handle_transfer_leader(transfer).await });
        reply(&moved.await.map_err(status)?)
    }

    async fn snapshot(&self, request: Request<Streaming<Frame>>) -> Reply {
        let raft = self.running(&request)?.raft.clone();
        let mut frames = request.into_inner();
        let cut = || Status::aborted("the snapshot ended too soon");
        let header = frames.message().await?.ok_or_else(cut)?;
        let (vote, meta): (Vote, SnapshotMeta) = unframe(&header)?;
        let member = Arc::clone(&self.member);
        // An empty frame marks the end: a stream that ends without it was cut.
        let chunks = futures::stream::try_unfold(frames, move |mut frames| {
            let member = Arc::clone(&member);
            async move {
                let frame = frames.message().await.transpose().unwrap_or_else(|| Err(cut()));
                let Frame { body, quorum_age_ms, .. } = frame.map_err(io_error)?;
                member.note_contact(Duration::from_millis(quorum_age_ms));
                Ok((!body.is_empty()).then_some((body, frames)))
            }
        });
        let incoming = self.store.incoming().to_owned();
        let staged = Staging::receive(incoming, meta.clone(), chunks).await;
        let snapshot = SnapshotData::Staged(staged.map_err(status)?);
        tracing::info!(last = meta.last_log_id.map(|id| id.index), "a snapshot of the index came");
        let installed = raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
        reply(&installed.map_err(status)?)
    }

    async fn hello(&self, request: Request<Frame>) -> Reply {
        let from: Candidate = unframe(request.get_ref())?;
        let mut greeting = reply(&self.bootstrap.greeting())?;
        set_of_you(greeting.metadata_mut(), self.bootstrap.known_of(&from));
        set_abstains(greeting.metadata_mut(), !self.bootstrap.voter);
        Ok(greeting)
    }

    async fn assign(&self, request: Request<Frame>) -> Reply {
        let assignment = unframe(request.get_ref())?;
        let invalid = |e: Malformed| Status::invalid_argument(e.to_string());
        let admitted = Admitted::decode(&request.get_ref().admitted).map_err(invalid)?;
        let accepted = self.bootstrap.accept(assignment, admitted).await;
        accepted.map_err(|e| Status::failed_precondition(e.to_string()))?;
        reply(&())
    }

    async fn join(&self, request: Request<Frame>) -> Reply {
        let node: NewNode = unframe(request.get_ref())?;
        let nodes = self.leader.replica.nodes();
        let judged = caller::check_candidate(request.extensions(), &node, &nodes);
        judged.map_err(|refusal| self.refuse(request.extensions(), refusal))?;
        let known = nodes.values().any(|known| known.candidate == node.candidate);
        // Who is a node already gives its vote up by its own certificate, or once it runs: the
        // number of a disk is no secret.
        let abstains = abstains(request.metadata())
            && (!known || caller::is_of(request.extensions(), &node, &nodes));
        let join = Join { node, abstains };
        let from = request.extensions().get::<Caller>().and_then(|caller| caller.from);
        let (address, node) = (join.node.facts.members().to_owned(), join.node.clone());
        let (token, joined) = match join_token(request.metadata()) {
            Err(why) => (None, Err(ClusterError::NotAdmitted(why))),
            Ok(None) => (None, self.router.ask(join).await),
            Ok(Some((id, secret))) => {
                // A leader of an earlier version knows no tokens, and asks for none.
                let joined = match versions::admit_by_token(&self.leader.replica.nodes()) {
                    true => {
                        let by = Word::Token { id, digest: secret.digest() };
                        self.router.ask(Admit { join, by }).await
                    }
                    false => self.router.ask(join).await,
                };
                (Some(id), joined)
            }
        };
        let outcome = match &joined {
            Ok(owner) => (!known).then_some(Ok(owner.node)),
            Err(ClusterError::NotAdmitted(why)) => Some(Err(*why)),
            Err(_) => None,
        };
        if let Some(outcome) = outcome {
            self.tell(&Candidacy { from, address, token, outcome });
        }
        let admitted = match &joined {
            Ok(owner) => self.admitted(*owner, &node)?,
            Err(_) => Bytes::new(),
        };
        let joined: Answer<Owner> = joined.map_err(Unanswered::Refused);
        Ok(Response::new(Frame { admitted, ..frame(&joined)? }))
    }

    async fn ask(&self, request: Request<Frame>) -> Reply {
        self.running(&request)?;
        let from = self.member_that_asks(&request)?;
        let answer = requests::serve(&self.leader, from, unframe(request.get_ref())?).await;
        answer.map(Response::new)
    }

    async fn acquire(&self, request: Request<Frame>) -> Result<Response<Frames>, Status> {
        self.running(&request)?;
        let asked: Acquire = unframe(request.get_ref())?;
        if asked.node != self.member_that_asks(&request)? {
            return Err(Status::permission_denied("a lease is for the node that asks for it"));
        }
        let (events, stream) = mpsc::channel(4);
        let leader = Arc::clone(&self.leader);
        let serving = async move { serve_acquire(&leader, asked, events).await };
        self.tasks.spawn(serving.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// What ends with the stream on which a leader appends.
struct LeaderConnection {
    member: Arc<Member>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for LeaderConnection {
    fn drop(&mut self) {
        let (member, stop) = (Arc::clone(&self.member), self.stop.clone());
        // It may end with the runtime itself, or because this node stops.
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !stop.is_cancelled()
        {
            let replacing = async move {
                tokio::select! {
                    () = member.replace_lost_leader() => {}
                    () = stop.cancelled() => {}
                }
            };
            self.tasks.spawn_on(replacing, &runtime);
        }
    }
}

/// Holds one acquire open until it is answered.
async fn serve_acquire(
    leader: &Leader,
    asked: Acquire,
    events: mpsc::Sender<Result<Frame, Status>>,
) {
    let deadline = Instant::now() + Duration::from_millis(asked.wait_ms).min(LONGEST_WAIT);
    let mut told = false;
    let waiting = || {
        if !told {
            told = true;
            // Full means that the caller has this news already.
            drop(events.try_send(frame(&Progress::Waiting)));
        }
    };
    let answer: Answer<Outcome> = tokio::select! {
        answer = leader.acquire(&asked, deadline, waiting) => answer,
        () = events.closed() => return,
    };
    let granted = match &answer {
        Ok(Outcome::Granted(token)) => Some(*token),
        _ => None,
    };
    if events.send(frame(&Progress::Ended(answer))).await.is_err()
        && let Some(token) = granted
        && let Err(Unanswered::Refused(e)) =
            leader.propose(Command::Expire { key: asked.key, token }).await
    {
        tracing::debug!(error = %e, "a lease that nobody waited for is left to run out");
    }
}
