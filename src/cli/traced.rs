//! The trace of a command: one for all its calls.
//!
//! Invariant: the nodes are told of a trace where the user asks for one, or a caller of the
//! command names one; else each node decides, and the error of a call names its id.

use std::sync::OnceLock;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use kiln::telemetry::trace::PARENT;

/// Whether the nodes trace what the command asks.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TraceArgs {
    /// Have the nodes trace this command, and print the trace's id on stderr.
    #[arg(long, global = true)]
    trace: bool,
    /// The span that runs this command, as W3C's traceparent.
    #[arg(long, env = "TRACEPARENT", hide = true, global = true)]
    traceparent: Option<String>,
    #[arg(skip)]
    minted: OnceLock<Option<String>>,
}

impl TraceArgs {
    /// What goes along with each call.
    pub(super) fn carried(&self) -> Carried {
        let parent = match self.trace {
            true => self.minted.get_or_init(mint).clone(),
            false => self.traceparent.clone(),
        };
        Carried(parent.and_then(|text| text.parse().ok()))
    }
}

/// A new trace, told to the user; none where the system has no randomness.
fn mint() -> Option<String> {
    let (mut trace, mut span) = ([0; 16], [0; 8]);
    getrandom::fill(&mut trace).ok()?;
    getrandom::fill(&mut span).ok()?;
    let id = hex::encode(trace);
    eprintln!("trace: {id}");
    Some(format!("00-{id}-{}-01", hex::encode(span)))
}

/// Puts the trace into each call.
#[derive(Debug, Clone)]
pub(crate) struct Carried(Option<MetadataValue<Ascii>>);

impl Interceptor for Carried {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(parent) = &self.0 {
            request.metadata_mut().insert(PARENT, parent.clone());
        }
        Ok(request)
    }
}
