//! The node's part in keeping L3: tell what is stored, collect what nothing needs.
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

/// Between two looks for uploads that nobody carried out.
const RESUME: Duration = Duration::from_secs(30);
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

/// Uploads until `stop`.
pub(super) async fn upload(tiers: Arc<Tiers>, index: Index, stop: CancellationToken) {
    tiers.run_uploads(&Packs(index), stop).await;
}

/// Queues what was committed and not uploaded, until `stop`: a node that ended between
/// the two knows of the one by its replica alone.
pub(super) async fn resume_uploads(tiers: Arc<Tiers>, index: Index, stop: CancellationToken) {
    if tiers.object().is_none() {
        return;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(RESUME) => {}
            () = stop.cancelled() => return,
        }
        let (held, asked) = (tiers.digests(), index.clone());
        let owed = tokio::task::spawn_blocking(move || {
            held.into_iter().filter(|pack| asked.owes_upload(pack).unwrap_or(false)).collect()
        });
        let owed: Vec<Digest> = owed.await.unwrap_or_default();
        for pack in owed {
            // One that waits already stays as it is.
            if let Err(e) = tiers.enqueue_upload(&pack).await {
                tracing::warn!(%pack, error = %e, "an upload is not queued again");
            }
        }
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
