//! The compile call: one answer per target, with news on the way.
//!
//! Invariant: each target's answer is sent, in request order, up to the first
//! error, which is the last message; news may be left out for a slow reader,
//! answers never.

use std::{sync::Arc, time::Instant};

use kiln_proto::{ArtifactKey, Target, pb};
use tokio::sync::mpsc;
use tonic::Status;

use super::wire;
use crate::manager::{Manager, Request, Stage};

/// Compiles `requests` one after the other and sends their events, until the client leaves.
pub(super) async fn compile(
    manager: Arc<Manager>,
    node: u64,
    requests: Vec<Request>,
    events: mpsc::Sender<Result<pb::CompileEvent, Status>>,
) {
    for request in requests {
        let (began, target) = (Instant::now(), request.input.target);
        // Stages are news, not results: a client that reads slowly misses some.
        let report = |key: ArtifactKey, stage: &Stage| {
            if let Some(event) = stage_event(key, stage, target) {
                let _ = events.try_send(Ok(event));
            }
        };
        let answered = tokio::select! {
            answered = manager.compile(request, report) => answered,
            // The client left. A compile that it began goes on for others.
            () = events.closed() => return,
        };
        let last = answered.is_err();
        let event = answered.map_err(Status::from).map(|answer| {
            let done = wire::done(&answer, node, began.elapsed());
            event(pb::compile_event::Event::Done(done))
        });
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

fn event(event: pb::compile_event::Event) -> pb::CompileEvent {
    pb::CompileEvent { event: Some(event) }
}

fn stage_event(key: ArtifactKey, stage: &Stage, target: Target) -> Option<pb::CompileEvent> {
    use pb::compile_event::Event;
    let key = wire::key(&key);
    Some(event(match stage {
        Stage::Acquiring => Event::Started(pb::Started { key, target: Some(target.into()) }),
        Stage::Waiting => Event::Waiting(pb::Waiting { key }),
        Stage::Compiling(token) => Event::Compiling(pb::Compiling { key, token: token.0 }),
        Stage::Ended(_) => return None,
    }))
}
