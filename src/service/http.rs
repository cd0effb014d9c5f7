//! The plain HTTP port: `/metrics`, `/healthz`, `/readyz`.
//!
//! Invariant: answers without quorum. Live: the process listens, whatever else it is
//! still about. Ready: it is a member and can read its index; a node that lost quorum
//! still serves hits, a node that left serves nothing.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use futures::{Stream, StreamExt};
use kiln_cluster::{Cluster, Role};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Readiness;
use crate::net;

/// What the port reports on.
#[derive(Clone)]
pub struct Http {
    /// Whether this node serves clients.
    pub readiness: Readiness,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// Serves at most `connections` at once, until `stop`.
pub async fn serve(
    listener: TcpListener,
    connections: usize,
    http: Http,
    stop: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(http));
    axum::serve(Bounded::new(listener, connections)?, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// A listener that has so many connections at most.
struct Bounded {
    incoming: Pin<Box<dyn Stream<Item = io::Result<net::Placed>> + Send>>,
    address: SocketAddr,
}

impl Bounded {
    fn new(listener: TcpListener, connections: usize) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { incoming: Box::pin(net::incoming(listener, connections, "http")), address })
    }
}

impl axum::serve::Listener for Bounded {
    type Io = net::Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (net::Placed, SocketAddr) {
        loop {
            if let Some(Ok(stream)) = self.incoming.next().await {
                return (stream, self.address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// What alerts ask about the cluster, as of now and as this node sees it.
fn gauge(cluster: &Cluster) {
    let status = cluster.status();
    let voters = status.nodes.iter().filter(|node| node.voter);
    let reachable = voters.clone().filter(|node| node.reachable == Some(true)).count();
    let flag = |flag: bool| if flag { 1.0 } else { 0.0 };
    metrics::gauge!("kiln_cluster_quorum").set(flag(status.quorum));
    metrics::gauge!("kiln_cluster_leader").set(flag(status.role == Role::Leader));
    metrics::gauge!("kiln_cluster_voters").set(voters.count() as f64);
    // Known to the leader alone; others see themselves and, with a quorum, the leader.
    metrics::gauge!("kiln_cluster_voters_reachable").set(reachable as f64);
    metrics::gauge!("kiln_cluster_applied_index").set(status.applied as f64);
    metrics::gauge!("kiln_cluster_log_index").set(status.logged as f64);
    metrics::gauge!("kiln_cluster_term").set(status.term as f64);
    metrics::gauge!("kiln_index_entries").set(status.entries as f64);
}

async fn metrics_page(State(http): State<Arc<Http>>) -> String {
    if let Some(cluster) = http.readiness.cluster() {
        gauge(cluster);
    }
    http.metrics.run_upkeep();
    http.metrics.render()
}

async fn ready(State(http): State<Arc<Http>>) -> (StatusCode, Json<Value>) {
    let Some(cluster) = http.readiness.cluster() else {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "node": null, "role": "waiting" })));
    };
    let status = cluster.status();
    let mut body = json!({
        "node": status.node, "role": super::wire::role(cluster, status.role),
        "leader": status.leader, "quorum": status.quorum, "applied": status.applied,
    });
    // Without quorum the node still answers from what it has: ready for reads.
    let Some(reason) = http.readiness.why_not() else { return (StatusCode::OK, Json(body)) };
    body["reason"] = json!(reason);
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}
