//! A snapshot on its way, as the metrics see it.
//!
//! Invariant: one that is under way is counted as active until it is dropped, however it
//! ends.

/// Which way a snapshot goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    Sent,
    Received,
}

impl Direction {
    const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// A snapshot that is under way.
pub(crate) struct Moving {
    active: metrics::Gauge,
    bytes: metrics::Counter,
}

impl Moving {
    pub(crate) fn begin(direction: Direction) -> Self {
        let direction = direction.name();
        metrics::counter!("kiln_raft_snapshots_total", "direction" => direction).increment(1);
        let active = metrics::gauge!("kiln_raft_snapshots_active", "direction" => direction);
        active.increment(1.0);
        let bytes = metrics::counter!("kiln_raft_snapshot_bytes_total", "direction" => direction);
        Self { active, bytes }
    }

    /// So many bytes more are through.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.increment(bytes as u64);
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.active.decrement(1.0);
    }
}
