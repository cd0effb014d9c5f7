//! Pins: what the index protects is protected in this node's tiers, and nothing else.
//!
//! A whole is protected with its pieces. Which artifacts are wholes, the tiers learn here
//! too, of what this node publishes and of what its disk had forgotten.
//!
//! Invariant: a pack is pinned here if and only if a pinned entry names it, as its own or
//! as that of a piece, within [`SETTLE`] of a change that this node hears of, and within [`PERIOD`] of
//! one that it does not: while it was away, behind, or between the look-up of an entry
//! and the arrival of its bytes.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kiln_cluster::{Entry, Index, IndexEvent};
use kiln_proto::{Digest, PieceRef};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{Piece, Tiers},
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
    /// The next comparison looks at which packs belong together too.
    wholes: bool,
}

/// What a comparison found to change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    pin: Vec<Digest>,
    unpin: Vec<Digest>,
    /// Wholes here, with their pieces.
    wholes: Vec<(Digest, Vec<Piece>)>,
}

impl Pins {
    /// The first comparison is due at once.
    pub(super) fn new(index: Index, tiers: Arc<Tiers>, stop: CancellationToken) -> Self {
        Self { index, tiers, stop, due: Instant::now(), wholes: false }
    }

    /// Returns when [`Pins::reconcile`] is due.
    pub(super) async fn due(&self) {
        sleep_until(self.due).await;
    }

    /// Anything may have changed: all pins are compared soon.
    pub(super) fn doubt(&mut self) {
        self.due = self.due.min(Instant::now() + SETTLE);
    }

    /// The disk has files that its index did not know: neither their pins, nor which of
    /// them belong together.
    pub(super) fn doubt_all(&mut self) {
        self.wholes = true;
        self.doubt();
    }

    /// Does what `event` says about pins.
    pub(super) async fn apply(&mut self, event: &IndexEvent) -> Result<(), Error> {
        match event {
            // A new artifact of a pinned key, which its publisher inserted without a pin.
            IndexEvent::Published { key, pack } if self.tiers.holds(pack) => {
                let entry = self.index.lookup(key).await?;
                if let Some(entry) = entry.filter(|entry| entry.pack == *pack) {
                    let pieces = pieces_of(&entry);
                    if !pieces.is_empty() {
                        self.tiers.keep_together(pack, &pieces).await?;
                    }
                    if entry.pinned {
                        self.pin(&entry, &pieces).await?;
                    }
                }
            }
            IndexEvent::Pinned { key, pinned: true } => {
                if let Some(entry) = self.index.lookup(key).await?.filter(|entry| entry.pinned) {
                    self.pin(&entry, &pieces_of(&entry)).await?;
                }
            }
            // Another pinned key may have the very same bytes, or pieces: only all entries
            // show it.
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
            Ok(Differences { pin, unpin, wholes }) => {
                if !(pin.is_empty() && unpin.is_empty()) {
                    tracing::info!(pin = pin.len(), unpin = unpin.len(), "pins differ");
                }
                let changes = pin.into_iter().map(|pack| (pack, true));
                let changes = changes.chain(unpin.into_iter().map(|pack| (pack, false)));
                let set = self.set_all(changes).await;
                set.and(self.keep_all_together(wholes).await)
            }
            Err(e) => Err(e),
        };
        match done {
            Ok(()) => self.wholes = false,
            Err(e) => {
                tracing::warn!(error = %e, "make the pins of this node the index's; again later");
                self.due = Instant::now() + AGAIN;
            }
        }
    }

    /// Does what can be done; the last error.
    async fn keep_all_together(&self, wholes: Vec<(Digest, Vec<Piece>)>) -> Result<(), Error> {
        let mut done = Ok(());
        for (whole, pieces) in wholes {
            if let Err(e) = self.tiers.keep_together(&whole, &pieces).await {
                done = Err(e.into());
            }
        }
        done
    }

    /// Pins what is here of a pinned entry.
    async fn pin(&self, entry: &Entry, pieces: &[Piece]) -> Result<(), Error> {
        let packs = pieces.iter().map(|piece| piece.pack).chain([entry.pack]);
        self.set_all(packs.map(|pack| (pack, true))).await
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
        let all = self.wholes;
        let comparing = tokio::task::spawn_blocking(move || {
            // At most what this node has: other packs are not remembered.
            let (mut wanted, mut wholes) = (HashSet::new(), Vec::new());
            let Scanned { complete, .. } = scan::each(&index, BOUNDS, &stop, |entry| {
                let here = tiers.holds(&entry.pack);
                // Few entries are worth a look into their manifests.
                let pieces = match entry.pinned || (all && here) {
                    true => pieces_of(&entry),
                    false => Vec::new(),
                };
                if entry.pinned {
                    let packs = pieces.iter().map(|piece| piece.pack).chain([entry.pack]);
                    wanted.extend(packs.filter(|pack| tiers.holds(pack)));
                }
                if all && here && !pieces.is_empty() {
                    wholes.push((entry.pack, pieces));
                }
            })?;
            // Half a truth would unpin what the other half protects.
            Ok(match complete {
                true => Differences { wholes, ..differences(&wanted, &tiers.pinned()) },
                false => Differences::default(),
            })
        });
        comparing.await.map_err(|e| Error::Storage(e.to_string()))?
    }
}

/// What the artifact of `entry` is made of. Whoever signed a manifest that cannot be read
/// has pinned nothing by it.
fn pieces_of(entry: &Entry) -> Vec<Piece> {
    let manifest = entry.manifest.read_unverified();
    let pieces: &[PieceRef] = manifest.as_ref().map_or(&[], |manifest| &manifest.pieces);
    pieces.iter().map(Piece::from).collect()
}

fn differences(wanted: &HashSet<Digest>, pinned: &HashSet<Digest>) -> Differences {
    Differences {
        pin: wanted.difference(pinned).copied().collect(),
        unpin: pinned.difference(wanted).copied().collect(),
        wholes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_differ_in_both_directions() {
        let [kept, new, old] = [b"1", b"2", b"3"].map(|bytes| Digest::of(bytes));
        let found = differences(&HashSet::from([kept, new]), &HashSet::from([kept, old]));
        assert_eq!((found.pin, found.unpin), (vec![new], vec![old]));
    }
}
