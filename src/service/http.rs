//! The plain HTTP port: `/metrics`, `/healthz`, `/readyz`, and the dashboard.
//!
//! Invariant: answers without quorum. Live: the process listens, whatever else it is
//! still about. Ready: it is a member and can read its index; a node that lost quorum
//! still serves hits, a node that left serves nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{MatchedPath, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::get,
    serve::IncomingStream,
};
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Meters, Readiness, dashboard};
use crate::{
    access::Access,
    net::{self, tls::Acceptor},
};

/// How long a peer may read nothing of what it asked for.
const UNREAD: Duration = Duration::from_secs(10);

/// What the port reports on.
#[derive(Clone)]
pub struct Http {
    /// Whether this node serves clients.
    pub readiness: Readiness,
    /// Renders the metrics.
    pub metrics: Meters,
    /// For people.
    pub page: dashboard::Page,
    /// Who may ask for what.
    pub access: Arc<Access>,
}

/// Serves at most `connections` at once, until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    connections: usize,
    acceptor: Acceptor,
    http: Http,
    stop: CancellationToken,
) -> io::Result<()> {
    let dashboard = dashboard::routes(http.page.clone(), http.access.clone(), stop.clone());
    let routes = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(http))
        .merge(dashboard)
        .route_layer(middleware::from_fn(timed));
    let routes = routes.into_make_service_with_connect_info::<PeerIp>();
    axum::serve(Bounded::new(listener, connections, acceptor)?, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerIp(pub(super) Option<IpAddr>);

impl Connected<IncomingStream<'_, Bounded>> for PeerIp {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(stream.io().from())
    }
}

/// A listener that has so many connections at most.
struct Bounded {
    incoming: Pin<Box<dyn Stream<Item = io::Result<net::Placed>> + Send>>,
    address: SocketAddr,
}

impl Bounded {
    fn new(listener: TcpListener, connections: usize, acceptor: Acceptor) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self {
            incoming: Box::pin(net::incoming(
                listener,
                // A probe of the node's health finds a place in any case.
                (connections, net::Full::EndIdlest),
                "http",
                acceptor,
                net::Patience::http,
            )),
            address,
        })
    }
}

impl axum::serve::Listener for Bounded {
    type Io = net::Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (net::Placed, SocketAddr) {
        loop {
            if let Some(Ok(stream)) = self.incoming.next().await {
                stream.let_go_after(UNREAD);
                return (stream, self.address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Records how long an answer took to begin, by its route.
async fn timed(route: MatchedPath, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let response = next.run(request).await;
    let route = route.as_str().to_owned();
    metrics::histogram!("kiln_http_request_seconds", "route" => route).record(began.elapsed());
    response
}

async fn metrics_page(State(http): State<Arc<Http>>) -> String {
    http.metrics.page(http.readiness.cluster())
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
    // So does one without its compilers or its cache.
    let mode = http.readiness.emergency().mode();
    if !mode.is_normal() {
        body["emergency"] = json!(mode);
    }
    // Without quorum the node still answers from what it has: ready for reads.
    let Some(reason) = http.readiness.why_not() else { return (StatusCode::OK, Json(body)) };
    body["reason"] = json!(reason);
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}
