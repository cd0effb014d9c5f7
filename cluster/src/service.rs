//! The node's side of the traffic between nodes.
//!
//! Invariant: Raft's messages are taken only by the very node that they are for.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use openraft::{Snapshot, raft::TransferLeaderRequest};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    command::{Candidate, Command, NewNode},
    core::{Core, Member},
    leader::{AcquireRequest, Answer, Outcome},
    pb::{Frame, peer_server::Peer},
    peers::{abstains, check_target, frame, say_abstains, unframe},
    raft::{SnapshotMeta, Types, Vote},
    store::{SnapshotData, Staging},
};

/// Longest wait that an acquire may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The gRPC service.
pub(crate) struct Service {
    pub core: Arc<Core>,
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
    /// The member that `request` is for.
    fn member<T>(&self, request: &Request<T>) -> Result<&Member, Status> {
        let member = self.core.member().map_err(status)?;
        check_target(request.metadata(), member.owner)?;
        Ok(member)
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type AppendStream = Frames;
    type AcquireStream = Frames;

    async fn append(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let raft = self.member(&request)?.raft.clone();
        let core = Arc::clone(&self.core);
        // A frame that cannot be read ends the stream; the leader opens another.
        let requests = request.into_inner().map(|frame| unframe(&frame?));
        let requests = requests.scan((), move |(), request| {
            core.touch();
            let request = request.inspect_err(|e: &Status| tracing::debug!(error = %e, "append"));
            std::future::ready(request.ok())
        });
        // The leader would keep both streams, and with them a graceful server, for ever.
        let stopped = || self.core.stop.clone().cancelled_owned();
        let answers = raft.stream_append(requests.take_until(stopped()));
        let answers = answers.map(|answer| frame(&answer.map_err(status)?));
        let answers = answers.take_until(stopped());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<Frame>) -> Reply {
        let vote = self.member(&request)?.raft.vote(unframe(request.get_ref())?);
        reply(&vote.await.map_err(status)?)
    }

    async fn pre_vote(&self, request: Request<Frame>) -> Reply {
        let vote = self.member(&request)?.raft.pre_vote(unframe(request.get_ref())?);
        reply(&vote.await.map_err(status)?)
    }

    async fn transfer_leader(&self, request: Request<Frame>) -> Reply {
        let member = self.member(&request)?;
        let transfer: TransferLeaderRequest<Types> = unframe(request.get_ref())?;
        reply(&member.raft.handle_transfer_leader(transfer).await.map_err(status)?)
    }

    async fn snapshot(&self, request: Request<Streaming<Frame>>) -> Reply {
        let raft = self.member(&request)?.raft.clone();
        let mut frames = request.into_inner();
        let cut = || Status::aborted("the snapshot ended too soon");
        let header = frames.message().await?.ok_or_else(cut)?;
        let (vote, meta): (Vote, SnapshotMeta) = unframe(&header)?;
        let mut staging = Staging::create(self.core.store.incoming(), &meta).map_err(status)?;
        loop {
            let chunk = frames.message().await?.ok_or_else(cut)?.body;
            self.core.touch();
            if chunk.is_empty() {
                break;
            }
            staging.push(&chunk).map_err(status)?;
        }
        let staged = tokio::task::spawn_blocking(move || staging.finish()).await.map_err(status)?;
        let snapshot = SnapshotData::Staged(staged.map_err(status)?);
        let installed = raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
        reply(&installed.map_err(status)?)
    }

    async fn hello(&self, request: Request<Frame>) -> Reply {
        let _from: Candidate = unframe(request.get_ref())?;
        let mut greeting = reply(&self.core.greeting())?;
        say_abstains(greeting.metadata_mut(), !self.core.voter);
        Ok(greeting)
    }

    async fn assign(&self, request: Request<Frame>) -> Reply {
        let assignment = unframe(request.get_ref())?;
        let accepted = self.core.accept(assignment).await;
        accepted.map_err(|e| Status::failed_precondition(e.to_string()))?;
        reply(&())
    }

    async fn join(&self, request: Request<Frame>) -> Reply {
        let node: NewNode = unframe(request.get_ref())?;
        reply(&Answer::from(self.core.admit(node, abstains(request.metadata())).await))
    }

    async fn ask(&self, request: Request<Frame>) -> Reply {
        self.member(&request)?;
        reply(&self.core.lead(unframe(request.get_ref())?).await)
    }

    async fn acquire(&self, request: Request<Frame>) -> Result<Response<Frames>, Status> {
        self.member(&request)?;
        let asked: AcquireRequest = unframe(request.get_ref())?;
        let (events, stream) = mpsc::channel(4);
        let core = Arc::clone(&self.core);
        self.core.tasks.spawn(async move { serve_acquire(core, asked, events).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Holds one acquire open: `None` says "waiting", an answer ends it.
async fn serve_acquire(
    core: Arc<Core>,
    asked: AcquireRequest,
    events: mpsc::Sender<Result<Frame, Status>>,
) {
    let deadline = Instant::now() + Duration::from_millis(asked.wait_ms).min(LONGEST_WAIT);
    let mut told = false;
    let waiting = || {
        if !told {
            told = true;
            // Full means that the caller has this news already.
            drop(events.try_send(frame(&None::<Answer<Outcome>>)));
        }
    };
    let answer = tokio::select! {
        answer = core.lead_acquire(&asked, deadline, waiting) => answer,
        () = events.closed() => return,
    };
    let granted = match &answer {
        Answer::Done(Outcome::Granted(token)) => Some(*token),
        _ => None,
    };
    if events.send(frame(&Some(answer))).await.is_err()
        && let Some(token) = granted
        && let Answer::Refused(e) = core.propose(Command::Expire { key: asked.key, token }).await
    {
        tracing::debug!(error = %e, "a lease that nobody waited for is left to run out");
    }
}
