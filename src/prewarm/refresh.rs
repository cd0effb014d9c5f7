//! What no node's toolchain makes any more, compiled again by the present one.
//!
//! Invariant: one artifact at a time and only where a compiler is free, so nobody waits for
//! it; each is tried once by a node, and under the leases of all compiles, so the cluster
//! compiles it once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kiln_cluster::{Entry, Index};
use kiln_proto::{ArtifactKey, Fingerprint, Hasher, Manifest, NodeId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::manager::Manager;

/// Artifacts that are compiled again at most, each time.
const MOST: usize = 64;
/// Keys that are remembered.
const REMEMBERED: usize = 4096;
/// Bound on one of them.
const DEADLINE: Duration = Duration::from_secs(900);

/// Toolchains that a node of the cluster has.
pub(super) struct Present {
    all: HashSet<Fingerprint>,
    ours: Vec<Fingerprint>,
}

/// What is to be compiled again, by how much it will be used.
#[derive(Default)]
pub(super) struct Stale(BTreeMap<(u64, ArtifactKey), String>);

/// What this node tried already.
#[derive(Default)]
pub(super) struct Refresher {
    tried: HashSet<ArtifactKey>,
}

impl Present {
    /// What the index says of `node` itself may be from before it started.
    pub(super) fn of(index: &Index, node: NodeId, ours: Vec<Fingerprint>) -> Self {
        let nodes = index.nodes().into_iter().filter(|(id, _)| *id != node);
        let all = nodes.flat_map(|(_, node)| node.facts.compilers).chain(ours.iter().cloned());
        Self { all: all.collect(), ours }
    }

    /// Whether this node makes such artifacts.
    pub(super) fn is_ours(&self, manifest: &Manifest) -> bool {
        self.ours.contains(&manifest.fingerprint)
    }

    /// Whether no node makes such artifacts, and this one makes their successors.
    fn is_stale(&self, manifest: &Manifest) -> bool {
        let same = |ours: &Fingerprint| ours.compiler == manifest.fingerprint.compiler;
        !self.all.contains(&manifest.fingerprint) && self.ours.iter().any(same)
    }
}

impl Stale {
    /// Takes an artifact in that will be used so much.
    pub(super) fn see(
        &mut self,
        present: &Present,
        entry: &Entry,
        manifest: &Manifest,
        expected: f64,
    ) {
        // A piece is compiled with its whole.
        if expected <= 0.0 || !present.is_stale(manifest) {
            return;
        }
        self.0.insert((expected.to_bits(), entry.key), manifest.namespace.clone());
        if self.0.len() > MOST {
            self.0.pop_first();
        }
    }
}

impl Refresher {
    /// Compiles what is stale, until `stop`.
    pub(super) async fn refresh(
        &mut self,
        manager: &Arc<Manager>,
        node: NodeId,
        stale: Stale,
        stop: &CancellationToken,
    ) {
        // Each node begins with another one.
        let mut stale: Vec<(ArtifactKey, String)> =
            stale.0.into_iter().map(|((_, key), namespace)| (key, namespace)).collect();
        stale.sort_by_cached_key(|(key, _)| {
            let mut hasher = Hasher::new();
            *hasher.update(&node.to_le_bytes()).update(key.as_bytes()).finalize().as_bytes()
        });
        for (key, namespace) in stale {
            if self.tried.len() >= REMEMBERED {
                self.tried.clear();
            }
            if stop.is_cancelled() || !self.tried.insert(key) {
                continue;
            }
            let refreshing = refresh_one(manager, key, &namespace);
            tokio::select! {
                () = stop.cancelled() => return,
                () = refreshing => {}
            }
        }
    }
}

async fn refresh_one(manager: &Arc<Manager>, key: ArtifactKey, namespace: &str) {
    match manager.keeps_request(&key, namespace).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(e) => return tracing::debug!(%key, error = %e, "not compiled again now"),
    }
    let request = match manager.kept_request(&key, namespace, Instant::now() + DEADLINE).await {
        Ok(request) => request,
        Err(e) => return tracing::info!(%key, error = %e, "not compiled again"),
    };
    let Ok(compiler) = manager.compilers().select(&request.backend, &request.input) else { return };
    compiler.until_free().await;
    match manager.compile(request, |_, _| {}).await {
        Ok(answer) => tracing::info!(
            %key, new = %answer.manifest.key, outcome = answer.outcome.name(),
            "an artifact of an old toolchain is compiled again"
        ),
        Err(e) => tracing::warn!(%key, error = %e, "an artifact of an old toolchain is not \
                                                    compiled again"),
    }
}
