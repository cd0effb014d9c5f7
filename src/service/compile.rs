//! The compile call: one answer per target and compile size, with news on the way.
//!
//! The sizes of a target are compiled beside it, so that all nodes have pieces of all of
//! them to take; targets come one after the other.
//!
//! Invariant: each target's answer is sent, in request order, up to the first
//! error, which is the last message; news may be left out for a slow reader,
//! answers never, nor what became of the pieces of what failed. A size that fails ends
//! nothing but itself; one that its program does not take ends all before it begins.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream};
use kiln_proto::{ArtifactKey, Target, pb, pb::compile_event::Event};
use tokio::sync::mpsc;
use tonic::Status;

use super::wire;
use crate::{
    compiler::Prepared,
    error::Error,
    manager::{Answer, Manager, PieceReport, Request, Stage},
};

/// Is told of each key that begins to be compiled.
pub(super) type Begun = Arc<dyn Fn(&ArtifactKey) + Send + Sync>;

type Sender = mpsc::Sender<Result<pb::CompileEvent, Status>>;

/// Of one target at once, the program as it is among them: planning one takes memory.
const SIZES_AT_ONCE: usize = 8;

/// Compiles `requests`, each followed by those of its sizes, and sends their events, until
/// the client leaves.
pub(super) async fn compile(
    manager: Arc<Manager>,
    node: u64,
    requests: Vec<Request>,
    events: Sender,
    begun: Begun,
) {
    if let Err(e) = check_sizes(&manager, &requests).await {
        let _ = events.send(Err(e.into())).await;
        return;
    }
    for of_target in requests.chunk_by(|_, next| next.input.source.size().is_some()) {
        let all = of_target
            .iter()
            .map(|request| one(manager.clone(), request.clone(), events.clone(), begun.clone()));
        let mut all = stream::iter(all.collect::<Vec<_>>()).buffered(SIZES_AT_ONCE);
        let mut is_beside = false;
        loop {
            let ended = tokio::select! {
                ended = all.next() => ended,
                // The client left. What it began goes on for others.
                () = events.closed() => return,
            };
            let Some(Ended { news, answered, took }) = ended else { break };
            let last = answered.is_err() && !is_beside;
            if news.end(answered, node, took, is_beside).await.is_err() || last {
                return;
            }
            is_beside = true;
        }
    }
}

/// Refuses sizes that the program does not take, before anything is compiled.
async fn check_sizes(manager: &Manager, requests: &[Request]) -> Result<(), Error> {
    let target = requests.first().map(|request| request.input.target);
    let of_one = requests.iter().filter(|request| Some(request.input.target) == target);
    for request in of_one.filter(|request| request.input.source.size().is_some()) {
        manager.check_size(request).await?;
    }
    Ok(())
}

/// A request that was answered, or not.
struct Ended {
    news: News,
    answered: Result<Answer, Error>,
    took: Duration,
}

/// Boxed: the compiler gives up on the type of a stream of them.
fn one(
    manager: Arc<Manager>,
    request: Request,
    events: Sender,
    begun: Begun,
) -> BoxFuture<'static, Ended> {
    Box::pin(async move {
        let began = Instant::now();
        let mut news = News::new(&request, events, begun);
        let answered = manager.compile(request, |key, stage| news.tell(key, stage)).await;
        Ended { news, answered, took: began.elapsed() }
    })
}

/// What the client was told of one request.
struct News {
    target: Target,
    size: Option<u64>,
    prepared: Option<Arc<Prepared>>,
    key: Option<ArtifactKey>,
    pieces: Arc<[PieceReport]>,
    /// What the client was told of each of them.
    told: Vec<Option<PieceReport>>,
    /// What it was not told of the pieces of what was tried before.
    owed: Vec<pb::CompileEvent>,
    events: Sender,
    begun: Begun,
    /// The last key that it was told of.
    is_begun: Option<ArtifactKey>,
}

impl News {
    fn new(request: &Request, events: Sender, begun: Begun) -> Self {
        Self {
            target: request.input.target,
            size: request.input.source.size().map(|fixed| fixed.size),
            prepared: None,
            key: None,
            pieces: Arc::default(),
            told: Vec::new(),
            owed: Vec::new(),
            events,
            begun,
            is_begun: None,
        }
    }

    /// Tells of a stage. A client that reads slowly misses some.
    fn tell(&mut self, key: ArtifactKey, stage: &Stage) {
        if self.key.is_some_and(|known| known != key) {
            self.turn();
        }
        self.key = Some(key);
        let wire = wire::key(&key);
        let event = match stage {
            Stage::Acquiring if self.prepared.is_some() => return,
            Stage::Acquiring => {
                let (target, size) = (Some(self.target.into()), self.size);
                Event::Started(pb::Started { key: wire, target, size })
            }
            Stage::Planned(prepared) => {
                self.prepared = Some(prepared.clone());
                let strategy = Some(wire::strategy(prepared));
                Event::Planned(pb::Planned { key: wire, strategy })
            }
            Stage::Waiting => Event::Waiting(pb::Waiting { key: wire }),
            Stage::Compiling(token) => {
                if self.is_begun.replace(key) != Some(key) {
                    (self.begun)(&key);
                }
                Event::Compiling(pb::Compiling { key: wire, token: token.0 })
            }
            Stage::Pieces(pieces) => {
                self.pieces = pieces.clone();
                self.told.resize(pieces.len(), None);
                for (piece, told) in pieces.iter().zip(&mut self.told) {
                    let is_news = told.as_ref() != Some(piece);
                    if is_news && self.events.try_send(Ok(of_piece(key, piece))).is_ok() {
                        *told = Some(piece.clone());
                    }
                }
                return;
            }
            Stage::Ended(..) => return,
        };
        self.try_send(event);
    }

    /// Another key is tried for the request.
    fn turn(&mut self) {
        let untold = self.untold();
        self.owed.extend(untold);
        (self.prepared, self.pieces, self.told) = Default::default();
    }

    /// The pieces whose present state the client was not told.
    fn untold(&self) -> Vec<pb::CompileEvent> {
        let Some(key) = self.key else { return Vec::new() };
        let pieces = self.pieces.iter().zip(&self.told);
        let untold = pieces.filter(|(piece, told)| told.as_ref() != Some(*piece));
        untold.map(|(piece, _)| of_piece(key, piece)).collect()
    }

    fn try_send(&self, event: Event) {
        let _ = self.events.try_send(Ok(pb::CompileEvent { event: Some(event) }));
    }

    /// Sends the answer, or why there is none, and before it what the client was not told
    /// of the pieces. An error ends the call, but that of a size beside others. An error
    /// here: nobody reads.
    async fn end(
        self,
        answered: Result<Answer, Error>,
        node: u64,
        elapsed: Duration,
        is_beside: bool,
    ) -> Result<(), ()> {
        let send = async |event| self.events.send(event).await.map_err(drop);
        for event in self.owed.iter().chain(&self.untold()) {
            send(Ok(event.clone())).await?;
        }
        let end = match (answered, self.size) {
            (Ok(answer), size) => {
                let done = wire::done(&answer, self.prepared.as_deref(), node, elapsed);
                Event::Done(pb::Done { size, ..done })
            }
            (Err(e), Some(size)) if is_beside => Event::SizeFailed(pb::SizeFailed {
                size,
                key: self.key.as_ref().map(wire::key).unwrap_or_default(),
                failure: Some((&e.into_failure()).into()),
            }),
            (Err(e), _) => return send(Err(e.into())).await,
        };
        send(Ok(pb::CompileEvent { event: Some(end) })).await
    }
}

fn of_piece(whole: ArtifactKey, piece: &PieceReport) -> pb::CompileEvent {
    let news = pb::PieceNews { key: wire::key(&whole), piece: Some(piece.into()) };
    pb::CompileEvent { event: Some(Event::Piece(news)) }
}
