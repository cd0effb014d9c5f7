//! Access statistics and holder hints, batched.
//!
//! Invariant: a hit costs a counter here, never a log entry; a batch that
//! cannot be committed is dropped, because it is only a hint.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::{AccessReport, Index};
use kiln_proto::{ArtifactKey, Digest};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How often a node tells the cluster what it served and holds.
const PERIOD: Duration = Duration::from_secs(2);
/// Most facts in one batch: keeps log entries small.
const BATCH: usize = 4096;

/// Keys are remembered as hit for once to twice as long.
const LATELY: Duration = Duration::from_secs(300);
/// And at most twice so many.
const REMEMBERED: usize = 32_768;

/// Collects what happened since the last batch.
#[derive(Clone, Default)]
pub struct Reporter(Arc<Mutex<Pending>>);

#[derive(Default)]
struct Pending {
    hits: HashMap<ArtifactKey, u32>,
    lately: Lately,
    /// Latest word on each pack: held or not.
    held: HashMap<Digest, bool>,
}

/// Keys that were hit, of this span of time and of the one before.
#[derive(Default)]
struct Lately {
    keys: [HashSet<ArtifactKey>; 2],
    since: Option<Instant>,
}

impl Lately {
    fn add(&mut self, key: ArtifactKey) {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        if now - since >= LATELY || self.keys[0].len() >= REMEMBERED {
            self.keys.swap(0, 1);
            self.keys[0].clear();
            self.since = Some(now);
        }
        self.keys[0].insert(key);
    }

    fn has(&self, key: &ArtifactKey) -> bool {
        self.keys.iter().any(|keys| keys.contains(key))
    }
}

impl Reporter {
    /// Counts one hit.
    pub fn hit(&self, key: ArtifactKey) {
        *self.0.lock().hits.entry(key).or_default() += 1;
    }

    /// Whether the key was given out in the last minutes, as far as that is remembered.
    pub fn was_hit_lately(&self, key: &ArtifactKey) -> bool {
        let pending = self.0.lock();
        pending.hits.contains_key(key) || pending.lately.has(key)
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
            pending.lately.add(*key);
        }
        for (pack, _) in &held {
            pending.held.remove(pack);
        }
        let side = |want: bool| held.iter().filter(|(_, h)| *h == want).map(|(d, _)| *d).collect();
        let (gained, lost): (Vec<_>, Vec<_>) = (side(true), side(false));
        (!hits.is_empty() || !held.is_empty()).then_some(AccessReport { hits, gained, lost })
    }
}
