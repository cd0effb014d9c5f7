//! What clients may ask for: never what peers ask each other.
//!
//! Invariant: a method of the peers' service is answered on the clients' port only while a
//! member is of a version that knows no other port, and then only where members may speak
//! plain text; otherwise no part of it runs.

use std::{
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use kiln_cluster::Cluster;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};
use tower::Layer;

/// Paths of what peers ask each other.
const PEERS: &str = "/kiln.cluster.v1.";

/// Keeps clients to what is theirs.
#[derive(Clone, Default)]
pub struct Audience {
    /// The cluster whose members of an earlier version may come this way; unset: nobody may.
    pub older: Arc<OnceLock<Arc<Cluster>>>,
}

impl<S> Layer<S> for Audience {
    type Service = ForClients<S>;

    fn layer(&self, inner: S) -> ForClients<S> {
        ForClients { inner, audience: self.clone() }
    }
}

/// A service of which clients see their part.
#[derive(Clone)]
pub struct ForClients<S> {
    inner: S,
    audience: Audience,
}

impl Audience {
    fn refuses(&self, path: &str) -> bool {
        path.starts_with(PEERS) && !self.older.get().is_some_and(|cluster| cluster.shares_a_port())
    }
}

impl<S> Service<http::Request<Body>> for ForClients<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if self.audience.refuses(request.uri().path()) {
            metrics::counter!("kiln_refused_peers_total", "why" => "clients_port").increment(1);
            tracing::warn!(
                path = request.uri().path(),
                "a peer's call on the clients' port: refused"
            );
            let status = Status::unimplemented(
                "this is the clients' port, and that a call between members: they reach each other \
                 on the members' port (transfer_listen, 7402)",
            );
            return Box::pin(async move { Ok(status.into_http()) });
        }
        Box::pin(self.inner.call(request))
    }
}
