//! The node's part in keeping L3: record what is stored, collect what nothing needs.
//!
//! Invariant: what the collector asks is read from a replica that has all that was
//! committed before it listed, so that a manifest committed a moment ago keeps its
//! bytes.

use std::{sync::Arc, time::Instant};

use kiln_cluster::{Cluster, Index, Role};
use kiln_proto::Digest;
use tokio_util::sync::CancellationToken;

use crate::cache::{
    CollectSettings, Collector, IndexError, PackIndex, PackState, SystemClock, Tiers, UploadIndex,
};

/// The index as L3's keepers see it.
#[derive(Clone)]
pub(super) struct Packs(pub(super) Index);

#[tonic::async_trait]
impl UploadIndex for Packs {
    async fn generation(&self, pack: &Digest) -> Result<Option<u64>, IndexError> {
        let referenced = async || {
            let state = self.0.pack(pack).await?;
            Ok(state.filter(|state| state.referenced).map(|state| state.generation))
        };
        match referenced().await? {
            // This replica may be behind, as after a restart: an acknowledged entry would
            // lose its only copy.
            None => {
                self.0.barrier().await?;
                referenced().await
            }
            known => Ok(known),
        }
    }

    async fn stored(&self, pack: &Digest, generation: u64) -> Result<(), IndexError> {
        self.0.mark_stored(pack, generation).await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl PackIndex for Packs {
    async fn barrier(&self) -> Result<(), IndexError> {
        Ok(self.0.barrier().await?)
    }

    async fn packs(&self, packs: Vec<Digest>) -> Result<Vec<Option<PackState>>, IndexError> {
        let mut states = Vec::with_capacity(packs.len());
        for pack in &packs {
            let state = self.0.pack(pack).await?;
            states.push(state.map(|state| PackState {
                generation: state.generation,
                referenced: state.referenced,
                condemned: state.condemned,
            }));
        }
        Ok(states)
    }

    async fn condemn(&self, pack: &Digest, generation: u64) -> Result<bool, IndexError> {
        Ok(self.0.condemn(pack, generation).await?)
    }

    async fn forget(&self, pack: &Digest, generation: u64) -> Result<(), IndexError> {
        Ok(self.0.forget(pack, generation).await?)
    }

    async fn condemned(&self, limit: usize) -> Result<Vec<(Digest, u64)>, IndexError> {
        let index = self.0.clone();
        Ok(tokio::task::spawn_blocking(move || index.blocking_condemned(limit)).await??)
    }
}

/// Collects garbage while this node leads, until `stop`.
pub(super) async fn collect(
    tiers: Arc<Tiers>,
    cluster: Arc<Cluster>,
    settings: CollectSettings,
    stop: CancellationToken,
) {
    let Some(object) = tiers.object() else { return };
    let index = Packs(cluster.index());
    let mut collector = Collector::new(settings.clone());
    loop {
        tokio::select! {
            () = tokio::time::sleep(settings.every) => {}
            () = stop.cancelled() => return,
        }
        if cluster.status().role != Role::Leader {
            continue;
        }
        match collector.pass(object, &index, &SystemClock, Instant::now()).await {
            Ok(done) => tracing::info!(?done, "collected the object store"),
            Err(e) => tracing::warn!(error = %e, "collect the object store; again later"),
        }
        match object.sweep_unfinished(settings.orphan_after).await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "removed what uploads left unfinished"),
            Err(e) => tracing::warn!(error = %e, "look for unfinished uploads; again later"),
        }
    }
}
