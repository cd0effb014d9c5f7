//! Why a node does not start.

use std::{io, path::PathBuf};

use kiln_cluster::ClusterError;

use crate::{cache::TierError, config::ConfigError, identity::IdentityError, net::tls::TlsError};

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A port or folder is not to be had.
    #[error("{doing}: {source}")]
    Io {
        /// The action.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another process uses the data folder: stop it, or choose another folder.
    #[error("the data folder {0} is in use by another process")]
    Locked(PathBuf),
    /// A later version of Kiln wrote the folder: start the node with that one.
    #[error(
        "the folder {folder} has format {found}, which Kiln {version} wrote, and this is Kiln \
         {program}, which reads {known}: nothing was changed; start the node with {version} or later"
    )]
    LaterFormat {
        /// The data folder, or the disk tier's.
        folder: PathBuf,
        /// Its format.
        found: u32,
        /// The version that wrote it.
        version: String,
        /// This one.
        program: &'static str,
        /// The latest format that this one reads.
        known: u32,
    },
    /// The file that says what format the data folder has says nothing: restore it.
    #[error(
        "{0} does not say which format its folder has: nothing was changed; restore it, or \
         delete it if no later version of Kiln ever ran here"
    )]
    NoFormat(PathBuf),
    /// No usable signing key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// L1, L2 or L3 cannot be opened.
    #[error("open the cache tiers: {0}")]
    Tier(#[from] TierError),
    /// The index cannot be opened or joined.
    #[error("open the index: {0}")]
    Cluster(#[from] ClusterError),
    /// A receiver of alerts cannot be told: mend `alerts` in the configuration.
    #[error("alerts.{0}: {1}")]
    Alerts(&'static str, String),
    /// The index's storage failed while the node ran: look at its disk, then start
    /// the node again; it replays its log.
    #[error("the node stopped: {0}")]
    Broken(ClusterError),
    /// Two nodes in one process share one metrics recorder, which cannot be.
    #[error("install the metrics recorder: {0}")]
    Metrics(String),
    /// A certificate cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The configuration cannot be.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The API's own description cannot be served: a defect of this build.
    #[error("serve the API's description: {0}")]
    Reflection(String),
}
