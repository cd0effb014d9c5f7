//! What a leader does on its own: expiry, and keeping the membership as it should be.
//!
//! Invariant: a leader acts only after it has applied everything that earlier
//! leaders committed, and all that it does is a command or a membership change
//! in the log, so a deposed leader's decisions come to nothing.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::{ReadPolicy, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, timeout},
};

use crate::{command::Command, core::Core, error::ClusterError, watch::IndexEvent};

/// Most expiries proposed in one tick; the rest follow in the next.
const MOST_EXPIRED: usize = 1024;

impl Core {
    /// Follows leadership until the node stops.
    pub(crate) async fn keep_house(self: Arc<Self>) {
        let Ok(member) = self.member() else { return };
        let mut leadership = member.raft.server_metrics();
        loop {
            if self.leads() {
                self.lead_for_a_while().await;
                self.armed.store(false, Ordering::Release);
            }
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// One term of office.
    async fn lead_for_a_while(self: &Arc<Self>) {
        let Ok(member) = self.member() else { return };
        while self.leads() {
            // Everything committed before is applied here when this succeeds.
            let reading = member.raft.ensure_linearizable(ReadPolicy::ReadIndex);
            match timeout(self.timings.election_max, reading).await {
                Ok(Ok(_)) => break,
                Ok(Err(e)) => tracing::debug!(error = %e, "this leader is not established yet"),
                Err(_) => tracing::debug!("this leader has no quorum yet"),
            }
            if self.pause().await.is_err() {
                return;
            }
        }
        if !self.leads() {
            return;
        }
        self.watch.deadlines.arm(Instant::now());
        *self.armed_since.lock() = Some(Instant::now());
        self.armed.store(true, Ordering::Release);
        tracing::info!(node = member.owner.node, "this node leads");

        let interval = self.watch.deadlines.tick().min(self.timings.heartbeat * 2);
        let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.leads() {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.housekeeping.notified() => {}
                () = self.stop.cancelled() => return,
            }
            self.expire();
            match timeout(self.timings.patience, self.tend_membership()).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::debug!(error = %e, "the membership is not settled"),
                Err(_) => tracing::warn!("a change of the membership takes long"),
            }
        }
    }

    /// Proposes the end of what has run out. The proposals run on their own, so
    /// that a slow one never looks like a pause of this leader.
    fn expire(self: &Arc<Self>) {
        let due = self.watch.deadlines.due(Instant::now());
        let leases = due.leases.into_iter().map(|(key, token)| Command::Expire { key, token });
        let failures = due.failures.into_iter().map(|(key, token)| Command::Lift { key, token });
        for command in leases.chain(failures).take(MOST_EXPIRED) {
            let core = Arc::clone(self);
            self.tasks.spawn(async move {
                metrics::counter!("kiln_index_expiries_total").increment(1);
                tracing::info!(%command, "out of time");
                if let crate::leader::Answer::Refused(e) = core.propose(command).await {
                    tracing::debug!(error = %e, "an expiry was not committed");
                }
            });
        }
    }

    /// Brings addresses up to date whenever the nodes change.
    pub(crate) async fn follow_addresses(self: Arc<Self>) {
        let mut events = self.watch.events();
        self.refresh_addresses();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(IndexEvent::NodesChanged | IndexEvent::Reset)
                    | Err(RecvError::Lagged(_)) => self.refresh_addresses(),
                    Ok(_) => {}
                    Err(RecvError::Closed) => return,
                },
                () = self.stop.cancelled() => return,
            }
        }
    }
}

impl From<tokio::time::error::Elapsed> for ClusterError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Deadline
    }
}
