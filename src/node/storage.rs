//! The second step of a start: what lies in the data folder, and the toolchains.
//!
//! Invariant: nothing here needs another node; what is open when this step ends
//! can be read without a cluster.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use kiln_cluster::{Cluster, NodeFacts, Settings as ClusterSettings};
use tonic::service::Routes;

use super::{NodeError, joined, parts};
use crate::{access::Access, cache::Tiers, compiler::Compilers, config::Config, net::tls::Dialer};

/// How long a starting node waits to know its toolchain: usually that is enough to
/// register it once, and right. Else the node goes on, and registers it when it is known.
const TOOLCHAIN_WAIT: Duration = Duration::from_secs(5);

/// Open, and not running yet.
pub(super) struct Storage {
    pub(super) tiers: Arc<Tiers>,
    pub(super) compilers: Compilers,
    pub(super) cluster: Arc<Cluster>,
    /// Peers' calls, to be served at `facts.members()` before the cluster is started.
    pub(super) routes: Routes,
    /// As they are registered first.
    pub(super) facts: NodeFacts,
}

impl Storage {
    /// Opens the tiers and the index while the toolchains are looked for.
    pub(super) async fn open(
        config: &Config,
        blobs: usize,
        signing: SigningKey,
        facts: NodeFacts,
        dialer: Dialer,
        access: &Arc<Access>,
    ) -> Result<Self, NodeError> {
        let compilers = parts::compilers(config)?;
        let known = tokio::time::timeout(TOOLCHAIN_WAIT, compilers.settled());
        let (tiers, known) = tokio::join!(parts::tiers(config, blobs), known);
        let tiers = tiers?;
        if known.is_err() {
            tracing::warn!("NVRTC is still being looked at: this node goes on without it");
        }
        let facts = NodeFacts { compilers: compilers.fingerprints(), ..facts };
        let mut settings = ClusterSettings {
            dial: Some(Arc::new(dialer)),
            ..parts::cluster(config, facts.clone())
        };
        settings.joining.witness = Some(joined::witness(access.clone()));
        settings.joining.refusals = Some(joined::refusals(access.clone()));
        let opening = tokio::task::spawn_blocking(move || Cluster::open(settings, signing));
        let panicked = |e: tokio::task::JoinError| NodeError::Io {
            doing: "open the index".into(),
            source: e.into(),
        };
        let (cluster, routes) = opening.await.map_err(panicked)??;
        Ok(Self { tiers, compilers, cluster: Arc::new(cluster), routes, facts })
    }
}
