//! An OpenTelemetry collector: takes OTLP over gRPC, and keeps what comes.

use std::{net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// A running collector; it ends with its runtime.
#[derive(Clone, Default)]
pub(crate) struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Listens on a free port of this machine.
    pub(crate) async fn start() -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(serving);
        (collector, address)
    }

    /// The spans of a trace that came so far.
    #[allow(dead_code, reason = "not for benches")]
    pub(crate) fn of_trace(&self, trace: &[u8]) -> Vec<Span> {
        self.spans.lock().iter().filter(|span| span.trace_id == trace).cloned().collect()
    }

    /// All spans that came so far.
    #[allow(dead_code, reason = "not for benches")]
    pub(crate) fn count(&self) -> usize {
        self.spans.lock().len()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|r| r.scope_spans);
        self.spans.lock().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// An attribute of a span that is a number.
#[allow(dead_code, reason = "not for benches")]
pub(crate) fn number(span: &Span, name: &str) -> Option<i64> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}
