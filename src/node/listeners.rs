//! The first step of a start: every TCP port that this node listens on.
//!
//! Invariant: all ports are bound before anything else is opened, so that a port
//! that is taken ends the start at once.

use std::net::SocketAddr;

use kiln_cluster::NodeFacts;
use tokio::net::TcpListener;

use super::NodeError;
use crate::config::Config;

/// Bound, and not served yet: clients that connect wait.
pub(super) struct Listeners {
    pub(super) grpc: TcpListener,
    pub(super) transfer: TcpListener,
    /// `None` where the port for Redis clients is off.
    pub(super) resp: Option<TcpListener>,
    /// What this node registers in the cluster; its compilers are not known yet.
    pub(super) facts: NodeFacts,
    /// `host:port` for Redis clients: the listener's own address, or this node's
    /// where that is a wildcard.
    pub(super) resp_address: Option<String>,
}

impl Listeners {
    /// Binds them all; the HTTP port comes apart, since it is served first.
    pub(super) async fn bind(config: &Config) -> Result<(Self, TcpListener), NodeError> {
        let (grpc, grpc_at) = bind(config.grpc_listen).await?;
        let (http, http_at) = bind(config.http_listen).await?;
        let (transfer, transfer_at) = bind(config.transfer_listen).await?;
        let (resp, resp_at) = match config.resp_listen {
            Some(address) => Some(bind(address).await?).unzip(),
            None => (None, None),
        };
        let facts = NodeFacts {
            grpc: config.advertised(grpc_at),
            transfer: config.advertised(transfer_at),
            http: config.advertised(http_at),
            version: crate::VERSION.into(),
            compilers: Vec::new(),
        };
        let resp_address = resp_at.map(|bound: SocketAddr| match bound.ip().is_unspecified() {
            true => config.advertised(bound),
            false => bound.to_string(),
        });
        Ok((Self { grpc, transfer, resp, facts, resp_address }, http))
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), NodeError> {
    let failed = |source| NodeError::Io { doing: format!("listen on {address}"), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
