//! A request for a compile, followed to its end.
//!
//! Invariant: what a node answered is kept, whatever it fails of afterwards. Where a root is
//! pinned, an artifact that is not believed is no answer, also where nobody fetches its bytes.

use std::collections::BTreeSet;

use bytes::Bytes;
use kiln_proto::{Manifest, pb};
use pb::compile_event::Event;

use super::{
    CliError,
    client::{Client, Endpoints},
    error::FailureView,
    fetch,
    pieces::{self, FailedView},
    progress::Progress,
};

/// What came of a request: the targets answered, and why not all of them were.
pub(crate) struct Answered {
    pub(crate) done: Vec<Answer>,
    pub(crate) failed: Option<(FailedView, CliError)>,
}

/// A target that was answered, and how each of its compile sizes ended.
pub(crate) struct Answer {
    pub(crate) done: pb::Done,
    pub(crate) sizes: Vec<SizeEnd>,
}

/// The end of a compile size.
pub(crate) struct SizeEnd {
    pub(crate) size: u64,
    pub(crate) end: Result<(pb::Done, Manifest), SizeFailed>,
}

/// Why a compile size has no artifact.
pub(crate) struct SizeFailed {
    pub(crate) key: Option<String>,
    pub(crate) error: FailureView,
}

/// Asks one node, one of `endpoints`. `Unreachable` moves on to the next: all of this may be repeated.
pub(crate) async fn ask(
    client: &mut Client,
    request: pb::CompileRequest,
    progress: &mut Progress,
    endpoints: &Endpoints,
) -> Result<Answered, CliError> {
    let targets = request.targets.len();
    let sizes = request.compile_sizes.as_ref().map_or(0, |all| all.sizes.len());
    let answer = client.compile(request).await.map_err(|e| CliError::from_status(&e))?;
    let mut events = answer.into_inner();
    let mut done: Vec<Answer> = Vec::new();
    let mut told = FailedView::default();
    // Keys of sizes: what is told of these is not the target's.
    let mut beside: BTreeSet<Bytes> = BTreeSet::new();
    loop {
        let event = match events.message().await {
            Ok(event) => event,
            Err(status) => match CliError::from_status(&status) {
                lost @ CliError::Unreachable(_) => return Err(lost),
                error => return Ok(Answered { done, failed: Some((told, error)) }),
            },
        };
        let early = || CliError::Unreachable("the node ended its answer early".into());
        match event.map(|event| event.event) {
            None if done.len() == targets && done.iter().all(|of| of.sizes.len() == sizes) => {
                return Ok(Answered { done, failed: None });
            }
            None => return Err(early()),
            Some(Some(Event::Done(answer))) => {
                let wire = answer.manifest.clone().unwrap_or_default();
                let key = fetch::manifest(wire.clone())?.key;
                // As it is now: a compile may take longer than a change of a key.
                let manifest = endpoints.belief().await?.read(&wire.into(), &key, "")?;
                match answer.size {
                    None => {
                        told = FailedView::default();
                        done.push(Answer { done: answer, sizes: Vec::new() });
                    }
                    Some(size) => {
                        let of = done.last_mut().ok_or_else(early)?;
                        of.sizes.push(SizeEnd { size, end: Ok((answer, manifest)) });
                    }
                }
            }
            Some(Some(Event::SizeFailed(failed))) => {
                let of = done.last_mut().ok_or_else(early)?;
                let pb::SizeFailed { size, key, failure } = failed;
                let error = pieces::failure(failure.unwrap_or_default());
                of.sizes
                    .push(SizeEnd { size, end: Err(SizeFailed { key: pieces::key(&key), error }) });
            }
            Some(Some(event)) => {
                if let Event::Started(pb::Started { key, size: Some(_), .. }) = &event {
                    beside.insert(key.clone());
                }
                if !key_of(&event).is_some_and(|key| beside.contains(key)) {
                    told.hear(&event);
                }
                progress.show(&event);
            }
            Some(None) => {}
        }
    }
}

/// What news are about.
fn key_of(event: &Event) -> Option<&Bytes> {
    match event {
        Event::Started(pb::Started { key, .. })
        | Event::Waiting(pb::Waiting { key })
        | Event::Compiling(pb::Compiling { key, .. })
        | Event::Planned(pb::Planned { key, .. })
        | Event::Piece(pb::PieceNews { key, .. }) => Some(key),
        Event::Done(_) | Event::SizeFailed(_) => None,
    }
}
