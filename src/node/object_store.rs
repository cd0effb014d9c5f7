//! The node's part in keeping L3: record what is stored, collect what nothing needs.
//!
//! Invariant: what the collector asks about a pack is answered linearizably, so
//! that a manifest committed a moment ago keeps its bytes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::{Cluster, Index, Role};
use kiln_proto::Digest;
use tokio_util::sync::CancellationToken;

use crate::cache::{
    CollectSettings, Collector, IndexError, PackIndex, Standing, StoredSink, SystemClock, Tiers,
};

/// Between two passes of the collector.
const PASS: Duration = Duration::from_secs(600);

/// The index as L3's keepers see it.
#[derive(Clone)]
pub(super) struct Packs(pub(super) Index);

impl Packs {
    fn generation(&self, pack: &Digest) -> Result<u64, IndexError> {
        Ok(self.0.pack(pack)?.map_or(0, |state| state.generation))
    }
}

#[tonic::async_trait]
impl StoredSink for Packs {
    async fn stored(&self, pack: &Digest) -> Result<(), IndexError> {
        let generation = self.generation(pack)?;
        self.0.mark_stored(pack, generation).await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl PackIndex for Packs {
    async fn standing(&self, pack: &Digest) -> Result<Standing, IndexError> {
        self.0.barrier().await?;
        Ok(match self.0.pack(pack)? {
            Some(state) if state.referenced => Standing::Referenced,
            Some(state) if state.condemned => Standing::Condemned,
            _ => Standing::Unknown,
        })
    }

    async fn condemn(&self, pack: &Digest) -> Result<bool, IndexError> {
        Ok(self.0.condemn(pack, self.generation(pack)?).await?)
    }

    async fn forget(&self, pack: &Digest) -> Result<(), IndexError> {
        Ok(self.0.forget(pack, self.generation(pack)?).await?)
    }

    async fn condemned(&self, limit: usize) -> Result<Vec<Digest>, IndexError> {
        let index = self.0.clone();
        Ok(tokio::task::spawn_blocking(move || index.condemned(limit)).await??)
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
    let mut collector = Collector::new(settings);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PASS) => {}
            () = stop.cancelled() => return,
        }
        if cluster.status().role != Role::Leader {
            continue;
        }
        match collector.pass(object, &index, &SystemClock, Instant::now()).await {
            Ok(done) => tracing::info!(?done, "collected the object store"),
            Err(e) => tracing::warn!(error = %e, "collect the object store; again later"),
        }
    }
}
