//! What a leader does on its own: expiry, and keeping the membership as it should be.
//!
//! Invariant: a leader acts only after it has applied everything that earlier
//! leaders committed, and all that it does is a command or a membership change
//! in the log, so a deposed leader's decisions come to nothing.

use std::{sync::Arc, time::Duration};

use openraft::{ReadPolicy, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    command::Command, finish::finish, leader::Leader, membership, peers::Peers, replica::Replica,
    rpc::Unanswered, watch::IndexEvent,
};

/// Most expiries proposed in one tick; the rest follow in the next.
const MOST_EXPIRED: usize = 1024;
/// Between two tries to establish a new leader.
const RETRY: Duration = Duration::from_millis(50);

/// Does a leader's duties whenever this node leads, until `stop`.
pub(crate) async fn run(leader: Arc<Leader>, tasks: TaskTracker, stop: CancellationToken) {
    let Ok(mut leadership) = leader.member.leadership() else { return };
    loop {
        if leader.member.leads() {
            one_term(&leader, &tasks, &stop).await;
            leader.set_counting(false);
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// From this node's election to another's.
async fn one_term(leader: &Arc<Leader>, tasks: &TaskTracker, stop: &CancellationToken) {
    let Ok(running) = leader.member.running() else { return };
    let timings = &leader.timings;
    while leader.member.leads() {
        // Everything committed before is applied here when this succeeds.
        let raft = running.raft.clone();
        let reading = async move { raft.ensure_linearizable(ReadPolicy::ReadIndex).await };
        match timeout(timings.election_max, finish(running, reading)).await {
            Ok(Ok(_)) => break,
            Ok(Err(e)) => tracing::debug!(error = %e, "this leader is not established yet"),
            Err(_) => tracing::debug!("this leader has no quorum yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
    if !leader.member.leads() {
        return;
    }
    leader.set_counting(true);
    metrics::counter!("kiln_raft_elections_won_total").increment(1);
    tracing::info!(node = running.owner.node, "this node leads");

    let interval = leader.replica.deadlines().tick().min(timings.heartbeat * 2);
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while leader.member.leads() {
        tokio::select! {
            _ = ticks.tick() => {}
            () = leader.housekeeping.notified() => {}
            () = stop.cancelled() => return,
        }
        expire(leader, tasks);
        match timeout(timings.patience, membership::adjust(leader)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(error = %e, "the membership is not settled"),
            Err(_) => tracing::warn!("a change of the membership takes long"),
        }
    }
}

/// Proposes the end of what has run out. The proposals run on their own, so
/// that a slow one never looks like a pause of this leader.
fn expire(leader: &Arc<Leader>, tasks: &TaskTracker) {
    let due = leader.replica.deadlines().due(Instant::now());
    let leases = due.leases.into_iter().map(|(key, token)| Command::Expire { key, token });
    let failures = due.failures.into_iter().map(|(key, token)| Command::Lift { key, token });
    for command in leases.chain(failures).take(MOST_EXPIRED) {
        let leader = Arc::clone(leader);
        tasks.spawn(async move {
            match command {
                Command::Expire { .. } => metrics::counter!("kiln_lease_expiries_total"),
                _ => metrics::counter!("kiln_index_failures_lifted_total"),
            }
            .increment(1);
            tracing::info!(%command, "out of time");
            if let Err(Unanswered::Refused(e)) = leader.propose(command).await {
                tracing::debug!(error = %e, "an expiry was not committed");
            }
        });
    }
}

/// Keeps the peers' addresses as registered, until `stop`.
pub(crate) async fn follow_addresses(
    replica: Arc<Replica>,
    peers: Arc<Peers>,
    stop: CancellationToken,
) {
    let mut events = replica.events();
    refresh_addresses(&replica, &peers);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(IndexEvent::NodesChanged | IndexEvent::Reset)
                | Err(RecvError::Lagged(_)) => refresh_addresses(&replica, &peers),
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Takes the nodes' addresses from their registered facts.
pub(crate) fn refresh_addresses(replica: &Replica, peers: &Peers) {
    for (id, node) in replica.nodes().iter().filter(|(_, node)| !node.left) {
        peers.set_address(*id, node.facts.members());
    }
}
