//! The compile call: one answer per target, with news on the way.
//!
//! Invariant: each target's answer is sent, in request order, up to the first
//! error, which is the last message; news may be left out for a slow reader,
//! answers never, nor what became of the pieces of what failed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_proto::{ArtifactKey, Target, pb, pb::compile_event::Event};
use tokio::sync::mpsc;
use tonic::Status;

use super::wire;
use crate::{
    compiler::Prepared,
    error::Error,
    manager::{Answer, Manager, PieceReport, Request, Stage},
};

type Sender = mpsc::Sender<Result<pb::CompileEvent, Status>>;

/// Compiles `requests` one after the other and sends their events, until the client leaves.
pub(super) async fn compile(
    manager: Arc<Manager>,
    node: u64,
    requests: Vec<Request>,
    events: Sender,
) {
    for request in requests {
        let began = Instant::now();
        let mut news = News::new(request.input.target, events.clone());
        let answered = tokio::select! {
            answered = manager.compile(request, |key, stage| news.tell(key, stage)) => answered,
            // The client left. A compile that it began goes on for others.
            () = events.closed() => return,
        };
        let last = answered.is_err();
        if news.end(answered, node, began.elapsed()).await.is_err() || last {
            return;
        }
    }
}

/// What the client of one target was told.
struct News {
    target: Target,
    prepared: Option<Arc<Prepared>>,
    key: Option<ArtifactKey>,
    pieces: Arc<[PieceReport]>,
    /// What the client was told of each of them.
    told: Vec<Option<PieceReport>>,
    events: Sender,
}

impl News {
    fn new(target: Target, events: Sender) -> Self {
        Self { target, prepared: None, key: None, pieces: Arc::default(), told: Vec::new(), events }
    }

    /// Tells of a stage. A client that reads slowly misses some.
    fn tell(&mut self, key: ArtifactKey, stage: &Stage) {
        self.key = Some(key);
        let wire = wire::key(&key);
        let event = match stage {
            Stage::Acquiring if self.prepared.is_some() => return,
            Stage::Acquiring => {
                Event::Started(pb::Started { key: wire, target: Some(self.target.into()) })
            }
            Stage::Planned(prepared) => {
                self.prepared = Some(prepared.clone());
                let strategy = Some(wire::strategy(prepared));
                Event::Planned(pb::Planned { key: wire, strategy })
            }
            Stage::Waiting => Event::Waiting(pb::Waiting { key: wire }),
            Stage::Compiling(token) => {
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

    fn try_send(&self, event: Event) {
        let _ = self.events.try_send(Ok(pb::CompileEvent { event: Some(event) }));
    }

    /// Sends the answer, or why there is none, and before it what the client was not told
    /// of the pieces. An error: nobody reads.
    async fn end(
        self,
        answered: Result<Answer, Error>,
        node: u64,
        elapsed: Duration,
    ) -> Result<(), ()> {
        let send = async |event| self.events.send(event).await.map_err(drop);
        if let Some(key) = self.key {
            for (piece, told) in self.pieces.iter().zip(&self.told) {
                if told.as_ref() != Some(piece) {
                    send(Ok(of_piece(key, piece))).await?;
                }
            }
        }
        let end = answered.map_err(Status::from).map(|answer| {
            let done = wire::done(&answer, self.prepared.as_deref(), node, elapsed);
            pb::CompileEvent { event: Some(Event::Done(done)) }
        });
        send(end).await
    }
}

fn of_piece(whole: ArtifactKey, piece: &PieceReport) -> pb::CompileEvent {
    let news = pb::PieceNews { key: wire::key(&whole), piece: Some(piece.into()) };
    pb::CompileEvent { event: Some(Event::Piece(news)) }
}
