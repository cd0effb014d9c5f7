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
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};
use tower::Layer;

use crate::{
    access::{Access, Denied, Identity},
    error::Error,
};

/// Paths of what peers ask each other.
const PEERS: &str = "/kiln.cluster.v1.";

/// Keeps clients to what is theirs.
#[derive(Clone)]
pub struct Audience {
    access: Arc<Access>,
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
    /// Refusals are told to `access`.
    pub fn new(access: Arc<Access>) -> Self {
        Self { access, older: Arc::default() }
    }

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
            let what = request.uri().path().strip_prefix(PEERS).unwrap_or_default();
            self.audience.access.refused(Denied::NotClients, "grpc", what, &Identity::Anyone);
            // A member of an earlier version takes this code for a port that is not its own.
            let told = Status::from(Error::from(Denied::NotClients));
            let status = Status::with_metadata(
                Code::Unimplemented,
                "this is the clients' port, and that a call between members: they reach each other \
                 on the members' port (transfer_listen, 7402)",
                told.metadata().clone(),
            );
            return Box::pin(async move { Ok(status.into_http()) });
        }
        Box::pin(self.inner.call(request))
    }
}
