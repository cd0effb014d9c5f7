//! What goes along with each call: the trace of the command, one for all its calls, and
//! the deadline of the call.
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

use super::deadline;

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
    pub(super) fn carried(&self, token: Option<MetadataValue<Ascii>>) -> Carried {
        let parent = match self.trace {
            true => self.minted.get_or_init(mint).clone(),
            false => self.traceparent.clone(),
        };
        Carried { trace: parent.and_then(|text| text.parse().ok()), token }
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

/// Puts the trace, the token and the deadline into each call.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    trace: Option<MetadataValue<Ascii>>,
    token: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Carried {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(parent) = &self.trace {
            request.metadata_mut().insert(PARENT, parent.clone());
        }
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        deadline::set(&mut request);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(args: &TraceArgs) -> Option<String> {
        let request = args.carried(None).call(Request::new(())).unwrap();
        let parent = request.metadata().get(PARENT)?;
        Some(parent.to_str().unwrap().to_owned())
    }

    #[test]
    fn all_calls_of_a_command_are_in_one_trace_where_it_has_one() {
        assert_eq!(sent(&TraceArgs::default()), None);
        let named = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".to_owned());
        let args = TraceArgs { traceparent: named.clone(), ..TraceArgs::default() };
        assert_eq!(sent(&args), named);
        let args = TraceArgs { trace: true, traceparent: named.clone(), ..TraceArgs::default() };
        let minted = sent(&args);
        assert_eq!(minted, sent(&args));
        assert_ne!(minted, named);
        let parts: Vec<usize> = minted.as_deref().unwrap().split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2]);
    }
}
