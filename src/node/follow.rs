//! What a node does behind its answers: follow the index, tell what it holds.
//!
//! Invariant: hints and clean-up only; a task here that falls behind costs time
//! or space, never a wrong answer.

use std::sync::Arc;

use kiln_cluster::IndexEvent;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{Change, Tiers},
    manager::Reporter,
};

/// Does locally what the index decided for the fleet.
pub(super) async fn index(
    mut events: Receiver<IndexEvent>,
    tiers: Arc<Tiers>,
    stop: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            Ok(IndexEvent::Tombstoned { pack, .. }) => {
                if let Err(e) = tiers.remove(&pack).await {
                    tracing::warn!(%pack, error = %e, "a tombstoned pack stays on this disk");
                }
            }
            Ok(_) => {}
            // What was missed is only clean-up: lookups never see a tombstoned entry.
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "index events were missed");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells the cluster what this node holds: all of it once, then each change.
pub(super) async fn tiers(tiers: Arc<Tiers>, reporter: Reporter, stop: CancellationToken) {
    let mut changes = tiers.changes();
    tell_all(&tiers, &reporter);
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = stop.cancelled() => return,
        };
        match change {
            Ok(Change::Gained(pack)) => reporter.holds(pack, true),
            Ok(Change::Lost(pack)) => reporter.holds(pack, false),
            Err(RecvError::Lagged(_)) => tell_all(&tiers, &reporter),
            Err(RecvError::Closed) => return,
        }
    }
}

fn tell_all(tiers: &Tiers, reporter: &Reporter) {
    for pack in tiers.digests() {
        reporter.holds(pack, true);
    }
}
