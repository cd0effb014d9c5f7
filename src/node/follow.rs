//! What a node does behind its answers: follow the index, tell what it holds.
//!
//! Invariant: hints and clean-up only; a task here that falls behind costs time
//! or space, never a wrong answer.

use std::{sync::Arc, time::Duration};

use kiln_cluster::{Cluster, Index, IndexEvent, NodeFacts};
use kiln_proto::NodeId;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{Change, Tiers},
    error::Error,
    manager::{Manager, Reporter},
};

/// After the cluster could not be told something.
const RETRY: Duration = Duration::from_secs(1);

/// Does locally what the index decided for the fleet.
pub(super) async fn index(index: Index, tiers: Arc<Tiers>, stop: CancellationToken) {
    let mut events = index.events();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            Ok(event) => {
                if let Err(e) = follow(&event, &index, &tiers).await {
                    tracing::warn!(?event, error = %e, "not done on this node's tiers");
                }
            }
            // What was missed is only clean-up: lookups never see a tombstoned entry.
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "index events were missed");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

async fn follow(event: &IndexEvent, index: &Index, tiers: &Tiers) -> Result<(), Error> {
    match event {
        // Another key may have the very same bytes, and they are right for it.
        IndexEvent::Tombstoned { pack, .. } | IndexEvent::Replaced { pack, .. }
            if !index.pack(pack)?.is_some_and(|state| state.named) =>
        {
            tiers.remove(pack).await?;
        }
        IndexEvent::Pinned { key, pinned } => {
            if let Some(entry) = index.lookup(key)? {
                tiers.set_pinned(&entry.pack, *pinned).await?;
            }
        }
        _ => {}
    }
    Ok(())
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

/// Keeps what the cluster knows of this node equal to what it is: `own`, with the
/// compilers that it has by now. Never what is registered with new compilers: a node
/// that moved while it was away reads its old address there, and would tell it again.
pub(super) async fn facts(
    cluster: Arc<Cluster>,
    node: NodeId,
    own: NodeFacts,
    manager: Arc<Manager>,
    stop: CancellationToken,
) {
    let index = cluster.index();
    let mut events = index.events();
    loop {
        // Before the look: what changes after it wakes.
        let changed = manager.compilers().changes();
        let compilers = manager.compilers().fingerprints();
        let own = NodeFacts { compilers, ..own.clone() };
        let wrong = index.node(node).is_some_and(|node| node.facts != own);
        let retry = match wrong {
            false => None,
            true => match cluster.set_facts(own).await {
                Ok(()) => None,
                Err(e) => {
                    tracing::debug!(error = %e, "the cluster does not know this node's facts yet");
                    Some(RETRY)
                }
            },
        };
        tokio::select! {
            () = changed => {}
            () = nodes_changed(&mut events) => {}
            () = tokio::time::sleep(retry.unwrap_or(Duration::MAX)), if retry.is_some() => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn nodes_changed(events: &mut Receiver<IndexEvent>) {
    loop {
        match events.recv().await {
            Ok(IndexEvent::NodesChanged | IndexEvent::Reset) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn tell_all(tiers: &Tiers, reporter: &Reporter) {
    for pack in tiers.digests() {
        reporter.holds(pack, true);
    }
}
