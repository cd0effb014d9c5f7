//! Spans on their way to a collector.
//!
//! Invariant: no call waits for it. At most [`MOST_SPANS`] wait to be sent; further ones are
//! dropped while the collector is away or slow, and what it did not take within
//! [`PATIENCE`] is lost and counted. The node's end waits for the last batch within
//! [`LAST`].

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter},
};
use tracing::Subscriber;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use super::head::{self, Head};
use crate::config::TraceConfig;

/// The target of all spans that are traced.
pub const TARGET: &str = "kiln::trace";
/// Spans that wait to be sent.
const MOST_SPANS: usize = 4096;
/// Spans in one message, and how long the first of them waits for others.
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_secs(2);
/// What a collector has for one message.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the end of the node waits for.
const LAST: Duration = Duration::from_secs(3);

/// Makes spans, and sends those that are traced.
pub struct Tracing(SdkTracerProvider);

impl Tracing {
    /// Sends to the collector that `config` names, if any. Needs a tokio runtime, which must
    /// live until [`Tracing::end`].
    pub fn start(config: &TraceConfig) -> Result<Self, opentelemetry_otlp::ExporterBuildError> {
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "kiln"),
                KeyValue::new("service.version", crate::VERSION),
            ])
            .build();
        let mut provider = SdkTracerProvider::builder().with_resource(resource);
        // Without a collector nothing is traced but what a caller wants traced, for others.
        let ratio = match &config.endpoint {
            None => 0.0,
            Some(endpoint) => {
                let exporter = Otlp::builder()
                    .with_tonic()
                    .with_endpoint(endpoint)
                    .with_timeout(PATIENCE)
                    .build()?;
                let batches = BatchConfigBuilder::default()
                    .with_max_queue_size(MOST_SPANS)
                    .with_max_export_batch_size(BATCH)
                    .with_scheduled_delay(EVERY)
                    .build();
                let counted = Counted { exporter, is_away: AtomicBool::new(false) };
                let processor =
                    BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
                provider = provider.with_span_processor(processor);
                config.ratio
            }
        };
        head::set_ratio(ratio);
        Ok(Self(provider.with_sampler(Head::new(ratio)).build()))
    }

    /// What makes spans of this crate's own ones.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("kiln"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.target() == TARGET && metadata.is_span()))
    }

    /// Sends what is left. Spans that end later are not sent.
    pub async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST));
        match ending.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(error = %e, "the last spans were not all sent"),
            Err(e) => tracing::warn!(error = %e, "the last spans were not sent"),
        }
    }
}

/// Counts what the collector took.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    /// Told once, until it is back.
    is_away: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.exporter.export(batch).await;
        let result = if sent.is_ok() { "sent" } else { "failed" };
        metrics::counter!("kiln_trace_spans_total", "result" => result).increment(spans);
        match (&sent, self.is_away.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(e), false) => tracing::warn!(error = %e, "the trace collector does not answer"),
            (Ok(()), true) => tracing::info!("the trace collector answers again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
