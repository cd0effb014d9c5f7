//! A request for a compile, followed to its end.
//!
//! Invariant: what a node answered is kept, whatever it fails of afterwards.

use kiln_proto::pb;
use pb::compile_event::Event;

use super::{CliError, client::Client, pieces::FailedView, progress::Progress};

/// What came of a request: the targets answered, and why not all of them were.
pub(crate) struct Answered {
    pub(crate) done: Vec<pb::Done>,
    pub(crate) failed: Option<(FailedView, CliError)>,
}

/// Asks one node. `Unreachable` moves on to the next: all of this may be repeated.
pub(crate) async fn ask(
    client: &mut Client,
    request: pb::CompileRequest,
    progress: &mut Progress,
) -> Result<Answered, CliError> {
    let targets = request.targets.len();
    let answer = client.compile(request).await.map_err(|e| CliError::from_status(&e))?;
    let mut events = answer.into_inner();
    let mut done = Vec::new();
    let mut told = FailedView::default();
    loop {
        let event = match events.message().await {
            Ok(event) => event,
            Err(status) => match CliError::from_status(&status) {
                lost @ CliError::Unreachable(_) => return Err(lost),
                error => return Ok(Answered { done, failed: Some((told, error)) }),
            },
        };
        match event.map(|event| event.event) {
            None if done.len() == targets => return Ok(Answered { done, failed: None }),
            None => return Err(CliError::Unreachable("the node ended its answer early".into())),
            Some(Some(Event::Done(answer))) => {
                told = FailedView::default();
                done.push(answer);
            }
            Some(Some(event)) => {
                told.hear(&event);
                progress.show(&event);
            }
            Some(None) => {}
        }
    }
}
