//! What the configuration says of who may do what.
//!
//! Invariant: without a word of it nobody is asked who it is, and nothing but failures has a
//! bound.

use std::time::Duration;

use kiln_cluster::tokens::Role;

use super::oidc;

/// What one client may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Calls in a second; 0: any number.
    pub calls_per_second: u32,
    /// Bad tokens and passwords in a minute, from one address; 0: any number.
    pub failures_per_minute: u32,
    /// Bytes that are published and fetched at once; 0: any number.
    pub bytes_in_flight: u64,
}

/// When the user that runs the node, and root, are admins at its unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketAdmin {
    /// While the cluster never had a token of an admin, and no row makes one: to make the first
    /// token.
    First,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A certificate's rights, by a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// A DNS name or a URI, or the beginning of some with `*` behind.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// In which namespaces.
    pub namespaces: Vec<String>,
}

/// What the configuration says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether callers need a grant.
    pub required: bool,
    /// Namespaces that all callers with a grant may read, as patterns.
    pub shared: Vec<String>,
    /// Rights of certificates; the first row that matches counts.
    pub certificates: Vec<Row>,
    /// Issuers of tokens other than Kiln's own.
    pub oidc: Vec<oidc::Settings>,
    /// When the node's own user is an admin at its socket.
    pub socket_admin: SocketAdmin,
    /// For how long tokens are judged by what this node knew when it last heard of its cluster.
    pub offline: Duration,
    /// What each client may have.
    pub limits: Limits,
}

impl Settings {
    /// Whether a row makes somebody an admin.
    pub(super) fn name_an_admin(&self) -> bool {
        let mut by_token = self.oidc.iter().flat_map(|issuer| &issuer.rows);
        self.certificates.iter().any(|row| row.role == Role::Admin)
            || by_token.any(|row| row.role == Role::Admin)
    }
}
