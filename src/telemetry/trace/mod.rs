//! One request followed through nodes: its spans, and the id that stands in logs and errors.
//!
//! A call that comes in has a span ([`incoming`]), whose parent is the caller's where it
//! says so in W3C's `traceparent`; what is asked of other nodes on its behalf carries the
//! context on ([`outgoing`]). Steps on the way are spans too ([`step!`](crate::step)).
//!
//! Invariant: every call has an id, whether or not it is traced, and the id is the same on
//! all nodes that it goes through. What no call began has no span.

mod export;
mod head;

use std::fmt;

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::{
    codegen::http::{HeaderMap, HeaderValue},
    metadata::MetadataMap,
};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use self::{
    export::{TARGET, Tracing},
    head::{chosen, set_ratio},
};

/// The header in which a caller names its span, as W3C has it.
pub const PARENT: &str = "traceparent";
/// The metadata key of the id in errors.
pub const ID: &str = "kiln-trace";

/// Opens a span for a step of a call, or none where no call is under way.
#[macro_export]
macro_rules! step {
    ($name:literal $(, $($fields:tt)*)?) => {
        match tracing::Span::current().is_none() {
            true => tracing::Span::none(),
            false => tracing::info_span!(
                target: $crate::telemetry::trace::TARGET, $name $(, $($fields)*)?
            ),
        }
    };
}

/// The id of a call, on all nodes that it goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id(String);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Id {
    /// The id of the call that `span` belongs to.
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let span = context.span();
        let context = span.span_context();
        context.is_valid().then(|| Self(context.trace_id().to_string()))
    }

    /// As a header.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

/// The span of a call of `name` that came to this node, with its caller's `parent`.
pub fn incoming(name: &str, parent: Option<&str>, node: Option<u64>) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = name,
        otel.kind = "server",
        // Unsigned numbers would become text.
        node = node.map(u64::cast_signed),
        trace = Empty
    );
    if let Some(parent) = parent {
        begin_under(&span, parent);
    }
    if let Some(id) = Id::of(&span) {
        span.record("trace", id.0.as_str());
    }
    span
}

/// The span of a call that was [`chosen`] to be traced.
pub fn root(name: &'static str) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = name,
        otel.kind = "server",
        { head::CHOSEN } = true,
        trace = Empty
    );
    if let Some(id) = Id::of(&span) {
        span.record("trace", id.0.as_str());
    }
    span
}

fn begin_under(span: &Span, parent: &str) {
    let context = TraceContextPropagator::new().extract(&Carried(parent.to_owned()));
    if context.span().span_context().is_valid() {
        // Fails where nobody listens to spans.
        drop(span.set_parent(context));
    }
}

/// The parent that a header names.
pub fn parent(headers: &HeaderMap) -> Option<&str> {
    headers.get(PARENT)?.to_str().ok()
}

/// The context of the current call, as `traceparent` has it, for another node.
pub fn outgoing() -> Option<String> {
    let span = Span::current();
    if span.is_none() {
        return None;
    }
    let context: Context = span.context();
    let mut carried = Carried(String::new());
    TraceContextPropagator::new().inject_context(&context, &mut carried);
    (!carried.0.is_empty()).then_some(carried.0)
}

/// The same of a call that is traced; others have only an id.
pub fn of_traced() -> Option<String> {
    let context: Context = Span::current().context();
    let sampled = context.span().span_context().is_sampled();
    sampled.then(outgoing).flatten()
}

/// Puts the context of the current call into the metadata of a call to another node.
pub fn put_into_metadata(metadata: &mut MetadataMap) {
    if let Some(value) = outgoing().and_then(|text| text.parse().ok()) {
        metadata.insert(PARENT, value);
    }
}

/// The one header that is carried.
struct Carried(String);

impl Extractor for Carried {
    fn get(&self, key: &str) -> Option<&str> {
        (key == PARENT).then_some(&self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT]
    }
}

impl Injector for Carried {
    fn set(&mut self, key: &str, value: String) {
        if key == PARENT {
            self.0 = value;
        }
    }
}

#[cfg(test)]
mod tests;
