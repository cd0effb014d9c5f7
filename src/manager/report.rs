//! Access statistics and holder hints, batched.
//!
//! Invariant: a hit costs a counter here, never a log entry; a batch that
//! cannot be committed is dropped, because it is only a hint.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kiln_cluster::{AccessReport, Index};
use kiln_proto::{ArtifactKey, Digest};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How often a node tells the cluster what it served and holds.
const PERIOD: Duration = Duration::from_secs(2);
/// Most facts in one batch: keeps log entries small.
const BATCH: usize = 4096;

/// Collects what happened since the last batch.
#[derive(Clone, Default)]
pub struct Reporter(Arc<Mutex<Pending>>);

#[derive(Default)]
struct Pending {
    hits: HashMap<ArtifactKey, u32>,
    /// Latest word on each pack: held or not.
    held: HashMap<Digest, bool>,
}

impl Reporter {
    /// Counts one hit.
    pub fn hit(&self, key: ArtifactKey) {
        *self.0.lock().hits.entry(key).or_default() += 1;
    }

    /// This node has the pack now, or has it no more.
    pub fn holds(&self, pack: Digest, held: bool) {
        self.0.lock().held.insert(pack, held);
    }

    /// Sends batches until `stop`, and a last one then.
    pub async fn run(self, index: Index, stop: CancellationToken) {
        loop {
            let stopping = tokio::select! {
                () = tokio::time::sleep(PERIOD) => false,
                () = stop.cancelled() => true,
            };
            while let Some(batch) = self.drain() {
                if let Err(e) = index.report(batch).await {
                    tracing::debug!(error = %e, "drop a batch of access statistics");
                    break;
                }
            }
            if stopping {
                return;
            }
        }
    }

    fn drain(&self) -> Option<AccessReport> {
        let mut pending = self.0.lock();
        let hits: Vec<_> = pending.hits.iter().take(BATCH).map(|(k, n)| (*k, *n)).collect();
        let held: Vec<_> = pending.held.iter().take(BATCH).map(|(d, h)| (*d, *h)).collect();
        for (key, _) in &hits {
            pending.hits.remove(key);
        }
        for (pack, _) in &held {
            pending.held.remove(pack);
        }
        let side = |want: bool| held.iter().filter(|(_, h)| *h == want).map(|(d, _)| *d).collect();
        let (gained, lost): (Vec<_>, Vec<_>) = (side(true), side(false));
        (!hits.is_empty() || !held.is_empty()).then_some(AccessReport { hits, gained, lost })
    }
}
