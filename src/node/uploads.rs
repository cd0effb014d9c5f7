//! Uploads to L3 that nobody carried out: by a node that ended between its publication
//! and the upload, or that has the pack and is away.
//!
//! Invariant: a pack that an entry names and that is not recorded as stored is queued by
//! one of its registered holders as long as any of them runs. Holders take turns in the order in which all
//! nodes see them, so that one upload is the rule; several are the same object.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::Index;
use kiln_proto::Digest;
use tokio_util::sync::CancellationToken;

use super::object_store::Packs;
use crate::cache::Tiers;

/// When a holder looks, and when it is its turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between two looks for packs that wait.
    pub(super) look: Duration,
    /// The n-th holder after the first waits so long n times.
    pub(super) turn: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { look: Duration::from_secs(30), turn: Duration::from_secs(30) }
    }
}

/// Carries out the queued uploads until `stop`.
pub(super) async fn carry_out(tiers: Arc<Tiers>, index: Index, stop: CancellationToken) {
    tiers.run_uploads(&Packs(index), stop).await;
}

/// Queues what waits and is this node's turn, until `stop`.
pub(super) async fn resume(tiers: Arc<Tiers>, index: Index, pace: Pace, stop: CancellationToken) {
    if tiers.object().is_none() {
        return;
    }
    let mut waiting = Waiting::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(pace.look) => {}
            () = stop.cancelled() => return,
        }
        let mut ranks = Vec::new();
        for pack in tiers.digests() {
            // One that cannot be read is looked at again the next time.
            if let Ok(Some(rank)) = index.upload_rank(&pack).await {
                ranks.push((pack, rank));
            }
        }
        for pack in waiting.due(&ranks, Instant::now(), pace.turn) {
            // One that is queued already stays as it is.
            if let Err(e) = tiers.enqueue_upload(&pack).await {
                tracing::warn!(%pack, error = %e, "an upload is not queued again");
            }
        }
    }
}

/// Since when this node knows of each pack that waits: at most those that it has.
#[derive(Default)]
struct Waiting(HashMap<Digest, Instant>);

impl Waiting {
    /// Of `ranks`, all packs that wait `now`, those whose turn is this node's.
    fn due(&mut self, ranks: &[(Digest, usize)], now: Instant, turn: Duration) -> Vec<Digest> {
        let known = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for (pack, rank) in ranks {
            let since = known.get(pack).copied().unwrap_or(now);
            self.0.insert(*pack, since);
            let patience = turn.saturating_mul(u32::try_from(*rank).unwrap_or(u32::MAX));
            if now.saturating_duration_since(since) >= patience {
                due.push(*pack);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests;
