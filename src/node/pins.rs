//! Pins: what the index protects is protected in this node's tiers, and nothing else.
//!
//! Invariant: a pack is pinned here if and only if an entry that names it is pinned,
//! within [`SETTLE`] of a change that this node hears of, and within [`PERIOD`] of
//! one that it does not: while it was away, behind, or between the look-up of an entry
//! and the arrival of its bytes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kiln_cluster::{Index, IndexEvent};
use kiln_proto::Digest;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::Tiers,
    error::Error,
    scan::{self, Bounds, Scanned},
};

/// Changes are collected for so long before all entries are read because of them.
const SETTLE: Duration = Duration::from_secs(1);
/// Between two comparisons that nothing asked for.
const PERIOD: Duration = Duration::from_secs(3600);
/// After a comparison or a change that failed.
const AGAIN: Duration = Duration::from_secs(30);
/// A comparison reads all entries or changes nothing: it is bounded by the node's end.
const BOUNDS: Bounds = Bounds { page: 1024, time: Duration::MAX };

/// Keeps the tiers' pins equal to the index's.
pub(super) struct Pins {
    index: Index,
    tiers: Arc<Tiers>,
    stop: CancellationToken,
    /// When all pins are compared next.
    due: Instant,
}

/// What a comparison found to change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    pin: Vec<Digest>,
    unpin: Vec<Digest>,
}

impl Pins {
    /// The first comparison is due at once.
    pub(super) fn new(index: Index, tiers: Arc<Tiers>, stop: CancellationToken) -> Self {
        Self { index, tiers, stop, due: Instant::now() }
    }

    /// Returns when [`Pins::reconcile`] is due.
    pub(super) async fn due(&self) {
        sleep_until(self.due).await;
    }

    /// Anything may have changed: all pins are compared soon.
    pub(super) fn doubt(&mut self) {
        self.due = self.due.min(Instant::now() + SETTLE);
    }

    /// Does what `event` says about pins.
    pub(super) async fn apply(&mut self, event: &IndexEvent) -> Result<(), Error> {
        match event {
            // A new artifact of a pinned key, which its publisher inserted without a pin.
            IndexEvent::Published { key, pack } if self.tiers.holds(pack) => {
                let entry = self.index.lookup(key).await?;
                if entry.is_some_and(|entry| entry.pinned && entry.pack == *pack) {
                    self.set(*pack, true).await?;
                }
            }
            IndexEvent::Pinned { key, pinned: true } => {
                if let Some(entry) = self.index.lookup(key).await?.filter(|entry| entry.pinned) {
                    self.set(entry.pack, true).await?;
                }
            }
            // Another pinned key may have the very same bytes: only all entries show it.
            IndexEvent::Pinned { pinned: false, .. } | IndexEvent::Reset => self.doubt(),
            IndexEvent::Tombstoned { pack, .. } | IndexEvent::Replaced { pack, .. }
                if self.tiers.is_pinned(pack) =>
            {
                self.doubt();
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares all pins of the index with those of the tiers, and changes the tiers'.
    pub(super) async fn reconcile(&mut self) {
        self.due = Instant::now() + PERIOD;
        let done = match self.compare().await {
            Ok(Differences { pin, unpin }) => {
                if !(pin.is_empty() && unpin.is_empty()) {
                    tracing::info!(pin = pin.len(), unpin = unpin.len(), "pins differ");
                }
                let changes = pin.into_iter().map(|pack| (pack, true));
                self.set_all(changes.chain(unpin.into_iter().map(|pack| (pack, false)))).await
            }
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            tracing::warn!(error = %e, "make the pins of this node the index's; again later");
            self.due = Instant::now() + AGAIN;
        }
    }

    /// Changes what can be changed; the last error.
    async fn set_all(&self, changes: impl Iterator<Item = (Digest, bool)>) -> Result<(), Error> {
        let mut done = Ok(());
        for (pack, pinned) in changes {
            if let Err(e) = self.set(pack, pinned).await {
                done = Err(e);
            }
        }
        done
    }

    async fn set(&self, pack: Digest, pinned: bool) -> Result<(), Error> {
        let changes = self.tiers.is_pinned(&pack) != pinned;
        if changes && self.tiers.set_pinned(&pack, pinned).await? {
            let change = if pinned { "pinned" } else { "unpinned" };
            metrics::counter!("kiln_pins_changed_total", "change" => change).increment(1);
        }
        Ok(())
    }

    /// Reads all entries, on a blocking thread.
    async fn compare(&self) -> Result<Differences, Error> {
        let (index, tiers, stop) = (self.index.clone(), self.tiers.clone(), self.stop.clone());
        let comparing = tokio::task::spawn_blocking(move || {
            // At most what this node has: entries of other packs are not remembered.
            let mut wanted = HashSet::new();
            let Scanned { complete, .. } = scan::each(&index, BOUNDS, &stop, |entry| {
                if entry.pinned && tiers.holds(&entry.pack) {
                    wanted.insert(entry.pack);
                }
            })?;
            // Half a truth would unpin what the other half protects.
            Ok(if complete {
                differences(&wanted, &tiers.pinned())
            } else {
                Differences::default()
            })
        });
        comparing.await.map_err(|e| Error::Storage(e.to_string()))?
    }
}

fn differences(wanted: &HashSet<Digest>, pinned: &HashSet<Digest>) -> Differences {
    Differences {
        pin: wanted.difference(pinned).copied().collect(),
        unpin: pinned.difference(wanted).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_differ_in_both_directions() {
        let [kept, new, old] = [b"1", b"2", b"3"].map(|bytes| Digest::of(bytes));
        let found = differences(&HashSet::from([kept, new]), &HashSet::from([kept, old]));
        assert_eq!(found, Differences { pin: vec![new], unpin: vec![old] });
    }
}
