//! How long ago a quorum acknowledged this node as its leader.
//!
//! Invariant: a leader that lost its quorum tells its followers an age that grows, so
//! that none of them takes its heartbeats for the word of a leader that can commit.

use std::{sync::OnceLock, time::Duration};

use openraft::{Instant as _, async_runtime::watch::WatchReceiver};

use crate::raft::{Metrics, MetricsReceiver};

/// What is told where no quorum acknowledged anything yet.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Raft's own view of it, once Raft runs.
#[derive(Default)]
pub(crate) struct QuorumAge(OnceLock<MetricsReceiver>);

impl QuorumAge {
    /// Follows `metrics` from now on.
    pub(crate) fn follow(&self, metrics: MetricsReceiver) {
        // A second call would be a second Raft of this node: the first one counts.
        drop(self.0.set(metrics));
    }

    /// Milliseconds since a quorum acknowledged this node, as it is told to followers.
    pub(crate) fn millis(&self) -> u64 {
        let age = self.0.get().map_or(NEVER, |metrics| age(&metrics.borrow_watched()));
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The same from one view of Raft.
pub(crate) fn age(metrics: &Metrics) -> Duration {
    if metrics.membership_config.membership().voter_ids().eq([metrics.id]) {
        return Duration::ZERO; // a quorum of its own
    }
    metrics.last_quorum_acked.map_or(NEVER, |acked| acked.into_inner().elapsed()).min(NEVER)
}
