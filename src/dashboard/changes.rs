//! What became of keys lately, for the page of one artifact.
//!
//! Invariant: at most [`KEPT`] changes are in memory; one that was not seen is not made up.

use std::collections::VecDeque;

use kiln_cluster::{Index, IndexEvent};
use kiln_proto::ArtifactKey;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::clock;

/// Changes that are kept.
const KEPT: usize = 4096;

/// A change of one key, as this node's replica applied it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When, by this node's clock.
    pub at_unix_ms: u64,
    /// `published`, `replaced`, `failed`, `tombstoned`, `pinned`, `unpinned`.
    pub what: &'static str,
}

/// The last changes.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<VecDeque<(ArtifactKey, Change)>>);

impl Changes {
    fn push(&self, key: ArtifactKey, what: &'static str) {
        let mut kept = self.0.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((key, Change { at_unix_ms: clock::unix_ms(), what }));
    }

    /// Those of `key`, the oldest first.
    pub(super) fn of(&self, key: &ArtifactKey) -> Vec<Change> {
        let kept = self.0.lock();
        kept.iter().filter(|(of, _)| of == key).map(|(_, change)| change.clone()).collect()
    }

    fn follow(&self, event: &IndexEvent) {
        match event {
            IndexEvent::Published { key, .. } => self.push(*key, "published"),
            IndexEvent::Replaced { key, .. } => self.push(*key, "replaced"),
            IndexEvent::Failed { key } => self.push(*key, "failed"),
            IndexEvent::Tombstoned { key, .. } => self.push(*key, "tombstoned"),
            IndexEvent::Pinned { key, pinned: true } => self.push(*key, "pinned"),
            IndexEvent::Pinned { key, pinned: false } => self.push(*key, "unpinned"),
            _ => {}
        }
    }

    /// Follows the index until `stop`.
    pub(super) async fn run(&self, index: Index, stop: CancellationToken) {
        let mut events = index.events();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = stop.cancelled() => return,
            };
            match event {
                Ok(event) => self.follow(&event),
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "changes were not seen"),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_of_one_key_are_told_in_order_and_the_oldest_of_all_go_first() {
        let changes = Changes::default();
        let key = |n: u8| ArtifactKey::from_bytes([n; 32]);
        changes.follow(&IndexEvent::Failed { key: key(1) });
        changes.follow(&IndexEvent::Pinned { key: key(1), pinned: true });
        let told = |n| changes.of(&key(n)).iter().map(|change| change.what).collect::<Vec<_>>();
        assert_eq!(told(1), ["failed", "pinned"]);
        for _ in 0..KEPT - 1 {
            changes.follow(&IndexEvent::Failed { key: key(2) });
        }
        assert_eq!(told(1), ["pinned"]);
        assert_eq!(told(2).len(), KEPT - 1);
    }
}
