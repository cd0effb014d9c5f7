//! What a node does behind its answers: apply what the index decided to its own
//! tiers, and keep the cluster informed of what this node holds and is.
//!
//! Invariant: no answer depends on a task here. One that falls behind costs space
//! (a pack that nothing names any more), a detour (a holder that is not registered
//! yet) or a pin that comes late; all three are made good.

use std::{sync::Arc, time::Duration};

use kiln_cluster::{Cluster, Index, IndexEvent, NodeFacts};
use kiln_proto::NodeId;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{
    pins::Pins,
    unnamed::{Pace, Unnamed},
};
use crate::{
    cache::{Change, Tiers},
    error::Error,
    manager::{Manager, Reporter},
};

/// After the cluster did not accept this node's facts.
const RETRY: Duration = Duration::from_secs(1);

/// Applies what the index decided for the fleet to this node's tiers.
pub(super) async fn index(index: Index, tiers: Arc<Tiers>, pace: Pace, stop: CancellationToken) {
    let (mut events, mut arrivals) = (index.events(), tiers.changes());
    // What a replica that goes back in time replays says nothing of what is needed now.
    while let Err(e) = index.barrier().await {
        tracing::debug!(error = %e, "events wait until this replica is up to date");
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
    // After the subscription: a change is compared, or its event comes, or both.
    let mut pins = Pins::new(index.clone(), tiers.clone(), stop.clone());
    let mut unnamed = Unnamed::new(index.clone(), tiers.clone(), pace);
    let mut swept = std::pin::pin!(tiers.disk().swept());
    let mut sweeping = true;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = pins.due() => {
                pins.reconcile().await;
                continue;
            }
            () = unnamed.due() => {
                warn("packs that nothing names", unnamed.look().await);
                continue;
            }
            arrival = arrivals.recv() => {
                match arrival {
                    Ok(Change::Gained(pack)) => {
                        warn("a pack that arrived", unnamed.arrived(&pack).await);
                    }
                    Ok(Change::Lost(_)) => {}
                    Err(RecvError::Lagged(_)) => unnamed.doubt(),
                    Err(RecvError::Closed) => return,
                }
                continue;
            }
            swept = &mut swept, if sweeping => {
                sweeping = false;
                // Files that the disk's own index did not know have lost their pins.
                match swept.adopted > 0 || swept.index_rebuilt {
                    true => pins.doubt_all(),
                    false => pins.doubt(),
                }
                continue;
            }
            () = stop.cancelled() => return,
        };
        match event {
            Ok(event) => {
                // First: of what is removed it is not known any more that it was pinned.
                let pinned = pins.apply(&event).await;
                if let Err(e) = unnamed.apply(&event).await.and(pinned) {
                    tracing::warn!(?event, error = %e, "not applied to this node's tiers");
                }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "index events were missed");
                pins.doubt();
                unnamed.doubt();
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn warn(what: &str, done: Result<(), Error>) {
    if let Err(e) = done {
        tracing::warn!(error = %e, "{what} cannot be compared with the index; again later");
    }
}

/// Reports what this node holds: all of it once, then each change.
pub(super) async fn tiers(tiers: Arc<Tiers>, reporter: Reporter, stop: CancellationToken) {
    let mut changes = tiers.changes();
    report_all(&tiers, &reporter);
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = stop.cancelled() => return,
        };
        match change {
            Ok(Change::Gained(pack)) => reporter.holds(pack, true),
            Ok(Change::Lost(pack)) => reporter.holds(pack, false),
            Err(RecvError::Lagged(_)) => report_all(&tiers, &reporter),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Keeps what is registered of this node equal to what it is: `own`, with the
/// compilers that it has by now. Never what is registered with new compilers: a node
/// that moved while it was away reads its old address there, and would register it again.
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
        // A node that left is registered for its signatures alone.
        let wrong = index.node(node).is_some_and(|node| !node.left && node.facts != own);
        let retry = match wrong {
            false => None,
            true => match cluster.set_facts(own).await {
                Ok(()) => None,
                Err(e) => {
                    tracing::debug!(error = %e, "this node's facts are not registered yet");
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

fn report_all(tiers: &Tiers, reporter: &Reporter) {
    for pack in tiers.digests() {
        reporter.holds(pack, true);
    }
}
