//! Every gRPC call, as metrics and traces see it.
//!
//! A call that fails names the id of its trace in the metadata `kiln-trace`, and so does
//! every line that the node logs on its behalf.
//!
//! Invariant: a call of the public API is counted once, by its method and the code that its
//! caller got: when its answer ended, or when nobody waits for that any more. Methods that
//! the API does not have are `other`: no caller makes up a series.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Instant,
};

use http_body::{Frame, SizeHint};
use kiln_proto::NodeId;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Bytes, StdError, http},
};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::telemetry::trace;

/// Paths of the public API begin with it.
const API: &str = "/kiln.v1.Kiln/";
/// Its methods.
const METHODS: [&str; 34] = [
    "AddNode",
    "Attest",
    "AuditHead",
    "Compile",
    "CreateToken",
    "Emergency",
    "Explain",
    "Fetch",
    "Leave",
    "Lease",
    "List",
    "Loaded",
    "Lookup",
    "Metrics",
    "Monitor",
    "Overview",
    "Pin",
    "Plan",
    "Publish",
    "Recheck",
    "Recompile",
    "RemoveNode",
    "Restore",
    "RevokeSigner",
    "RevokeToken",
    "RootSays",
    "RotateSigner",
    "SetJoining",
    "SetVoters",
    "Signers",
    "Status",
    "Tokens",
    "Tombstone",
    "Undo",
];

/// Paths of what peers ask; of these only what belongs to a call is traced.
const PEERS: &str = "/kiln.cluster.v1.Peer/";

/// Observes what it is laid over.
#[derive(Debug, Clone, Default)]
pub struct Observe {
    /// This node, once it has an id.
    pub node: Arc<OnceLock<NodeId>>,
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, node: self.node.clone() }
    }
}

/// A service whose calls are observed.
#[derive(Debug, Clone)]
pub struct Observed<S> {
    inner: S,
    node: Arc<OnceLock<NodeId>>,
}

impl<S> Service<http::Request<Body>> for Observed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Into<StdError>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (path, parent) = (request.uri().path(), trace::parent(request.headers()));
        let call = Call::begin(path);
        let name = match &call {
            Some(call) => Some(call.method),
            None => path.strip_prefix(PEERS).filter(|_| parent.is_some()),
        };
        let node = self.node.get().copied();
        let span = name.map_or(Span::none(), |name| trace::incoming(name, parent, node));
        let answering = span.in_scope(|| self.inner.call(request)).instrument(span.clone());
        Box::pin(async move {
            let mut answer = answering.await?;
            let Some(mut call) = call else { return Ok(answer) };
            let id = trace::Id::of(&span).and_then(|id| id.header());
            // An error without a body has its status in the headers.
            if let Some(status) = Status::from_header_map(answer.headers()) {
                span.in_scope(|| call.ended_with(&status));
            }
            if let Some(id) = &id {
                answer.headers_mut().insert(trace::ID, id.clone());
            }
            Ok(answer.map(|body| Body::new(Answer { body, call, span, id })))
        })
    }
}

/// A call of the public API that is under way.
struct Call {
    method: &'static str,
    began: Instant,
    open: metrics::Gauge,
    /// What its caller got; none yet, or ever.
    code: Option<Code>,
}

impl Call {
    fn begin(path: &str) -> Option<Self> {
        let method = path.strip_prefix(API)?;
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        let open = metrics::gauge!("kiln_grpc_open_requests");
        open.increment(1.0);
        Some(Self { method, began: Instant::now(), open, code: None })
    }

    fn ended(&mut self, code: Code) {
        self.code.get_or_insert(code);
    }

    /// The log has the failure under the id that the caller is told.
    fn ended_with(&mut self, status: &Status) {
        self.ended(status.code());
        let (method, code) = (self.method, code_name(status.code()));
        match status.code() {
            Code::Ok => {}
            // The node's own; the rest is the caller's, or passes.
            Code::Internal | Code::DataLoss | Code::Unknown => {
                tracing::warn!(method, code, why = status.message(), "a call failed");
            }
            _ => tracing::debug!(method, code, why = status.message(), "a call failed"),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.open.decrement(1.0);
        let code = code_name(self.code.unwrap_or(Code::Cancelled));
        let method = self.method;
        metrics::counter!("kiln_grpc_requests_total", "method" => method, "code" => code)
            .increment(1);
        metrics::histogram!("kiln_grpc_request_seconds", "method" => method)
            .record(self.began.elapsed());
    }
}

/// The body of an answer, watched to its end.
struct Answer {
    body: Body,
    call: Call,
    span: Span,
    id: Option<http::HeaderValue>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let polled = this.span.in_scope(|| Pin::new(&mut this.body).poll_frame(context));
        let mut frame = ready!(polled);
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    match Status::from_header_map(trailers) {
                        Some(status) if status.code() != Code::Ok => {
                            this.span.in_scope(|| this.call.ended_with(&status));
                            if let Some(id) = &this.id {
                                trailers.insert(trace::ID, id.clone());
                            }
                        }
                        _ => this.call.ended(Code::Ok),
                    }
                }
            }
            Some(Err(status)) => this.span.in_scope(|| this.call.ended_with(status)),
            None => this.call.ended(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The name of a status code in metrics.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_method_of_the_api_has_a_series_of_its_own() {
        let proto = include_str!("../../proto/proto/kiln/v1/kiln.proto");
        let service = proto.split_once("service Kiln {").unwrap().1.split_once("\n}").unwrap().0;
        let methods = service.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        let mut methods: Vec<_> = methods.map(|rest| rest.split_once('(').unwrap().0).collect();
        let mut known = METHODS.to_vec();
        methods.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, methods);
    }
}
