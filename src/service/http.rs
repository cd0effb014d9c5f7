//! The plain HTTP port: `/metrics`, `/healthz`, `/readyz`.
//!
//! Invariant: answers without quorum. Live: the process serves. Ready: it is a
//! member and can read its index; a node that lost quorum still serves hits.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use kiln_cluster::Cluster;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the port reports on.
pub struct Http {
    /// This member.
    pub cluster: Arc<Cluster>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    http: Http,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(http));
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics_page(State(http): State<Arc<Http>>) -> String {
    http.metrics.run_upkeep();
    http.metrics.render()
}

async fn ready(State(http): State<Arc<Http>>) -> (StatusCode, Json<Value>) {
    let status = http.cluster.status();
    let body = json!({
        "node": status.node, "role": super::wire::role(status.role), "leader": status.leader,
        "quorum": status.quorum, "applied": status.applied,
    });
    // Without quorum the node still answers from what it has: ready for reads.
    let code = if status.node.is_none() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(body))
}
