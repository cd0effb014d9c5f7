//! Steps of a call, for its trace.
//!
//! Invariant: a step of what no call began is no span.

use tracing::Span;

/// A span for a step of the call that is under way, or none.
pub(crate) fn step(name: &str) -> Span {
    match Span::current().is_none() {
        true => Span::none(),
        false => tracing::info_span!(target: "kiln::trace", "raft", otel.name = name),
    }
}
