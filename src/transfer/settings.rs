//! The limits of the byte paths.
//!
//! Invariant: every wait on a peer or a client has a limit here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::Patience;

/// Limits of a server: [`serve_peers`](super::serve_peers) and
/// [`serve_socket`](super::serve_socket).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Connections served at once; one more is told that the node is busy.
    /// Default: 1024.
    pub max_connections: usize,
    /// How long a connection may wait between two requests. Default: 60 s,
    /// twice what clients keep them.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// How long a request may take to arrive, and the window in which a reader
    /// must take at least 64 KiB. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub progress: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            idle: Duration::from_secs(60),
            progress: Duration::from_secs(10),
        }
    }
}

/// Limits of a client: [`PeerClient`](super::PeerClient) and
/// [`LocalClient`](super::LocalClient).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientSettings {
    /// How long connecting may take. Default: 3 s.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// How long the other end may look for what it was asked. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub answer: Duration,
    /// The window in which at least 64 KiB must come. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub progress: Duration,
    /// How long an unused connection is kept. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Unused connections kept for one address. Default: 8.
    pub idle_per_address: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(30),
            progress: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            idle_per_address: 8,
        }
    }
}

impl ClientSettings {
    pub(super) fn patience(&self) -> Patience {
        Patience { first: self.answer, rest: self.progress }
    }
}
