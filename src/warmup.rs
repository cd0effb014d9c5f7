//! Warm-up at start: fetch what this node's toolchain uses most.
//!
//! Invariant: never more than a share of L1, one artifact at a time, its pieces with it,
//! and never in the way of a request. Of all entries only the [`MOST_FETCHED`] most used are kept
//! in memory.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use kiln_cluster::{Entry, Index};
use kiln_proto::{ArtifactKey, Digest, Fingerprint};
use tokio_util::sync::CancellationToken;

use crate::{
    manager::Manager,
    scan::{self, Bounds},
};

/// Packs that are fetched at most.
const MOST_FETCHED: usize = 256;
/// Nobody waits for it, so it may take longer than an answer.
const BOUNDS: Bounds = Bounds { page: 1024, time: Duration::from_secs(60) };

/// Fetches the most used artifacts of this node's compilers, up to `budget` bytes.
pub async fn warm_up(manager: &Manager, index: Index, budget: u64, stop: CancellationToken) {
    tokio::select! {
        () = manager.compilers().settled() => {}
        () = stop.cancelled() => return,
    }
    let ours = manager.compilers().fingerprints();
    let stopped = stop.clone();
    let wanted = tokio::task::spawn_blocking(move || most_used(&index, &ours, &stopped)).await;
    let (mut fetched, mut bytes, mut counted) = (0, 0u64, HashSet::new());
    for entry in wanted.unwrap_or_default() {
        bytes = bytes.saturating_add(new_bytes(&entry, &mut counted));
        if bytes > budget || stop.is_cancelled() {
            break;
        }
        match manager.warm(&entry).await {
            Ok(true) => fetched += 1,
            Ok(false) => {}
            Err(e) => tracing::debug!(key = %entry.key, error = %e, "not warmed"),
        }
    }
    if fetched > 0 {
        tracing::info!(fetched, bytes, "warmed up");
    }
}

/// Bytes of an artifact and its pieces that no artifact before it has.
pub(crate) fn new_bytes(entry: &Entry, counted: &mut HashSet<Digest>) -> u64 {
    let manifest = entry.manifest.read_unverified();
    let pieces = manifest.map(|manifest| manifest.pieces).unwrap_or_default();
    let packs = pieces.iter().map(|piece| (piece.pack, piece.pack_size));
    let new =
        packs.chain([(entry.pack, entry.pack_size)]).filter(|(pack, _)| counted.insert(*pack));
    new.fold(0, |sum, (_, size)| sum.saturating_add(size))
}

/// Blocks while it reads all entries.
fn most_used(index: &Index, ours: &[Fingerprint], stop: &CancellationToken) -> Vec<Entry> {
    let mut most = MostUsed::new(MOST_FETCHED);
    let scanned = scan::each(index, BOUNDS, stop, |entry| {
        // The cheap question first: few entries are used enough to be decoded.
        if most.wants(&entry)
            && entry.manifest.read_unverified().is_ok_and(|m| ours.contains(&m.fingerprint))
        {
            most.add(entry);
        }
    });
    match scanned {
        Ok(scanned) if !scanned.complete && !stop.is_cancelled() => {
            tracing::warn!(
                entries = scanned.entries,
                "warm-up did not look at all entries in time"
            );
        }
        Ok(_) => {}
        Err(e) => tracing::warn!(error = %e, "warm-up did not look at all entries"),
    }
    most.into_entries()
}

/// The entries with most hits, so many at most.
struct MostUsed {
    most: usize,
    by_hits: BTreeMap<(u64, ArtifactKey), Entry>,
}

impl MostUsed {
    fn new(most: usize) -> Self {
        Self { most, by_hits: BTreeMap::new() }
    }

    fn wants(&self, entry: &Entry) -> bool {
        let least = self.by_hits.first_key_value().map_or(0, |((hits, _), _)| *hits);
        entry.hits > 0 && (self.by_hits.len() < self.most || entry.hits > least)
    }

    fn add(&mut self, entry: Entry) {
        self.by_hits.insert((entry.hits, entry.key), entry);
        if self.by_hits.len() > self.most {
            self.by_hits.pop_first();
        }
    }

    /// The most used first.
    fn into_entries(self) -> Vec<Entry> {
        self.by_hits.into_values().rev().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scan::tests::Filled;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_most_used_are_kept_wherever_they_lie() {
        let filled = Filled::start(9).await;
        let mut most = MostUsed::new(3);
        // Hits rise and fall in key order.
        let mut hits = [1, 0, 7, 2, 9, 4, 0, 8, 3].into_iter();
        let bounds = Bounds { page: 2, time: Duration::MAX };
        scan::each(&filled.index, bounds, &CancellationToken::new(), |mut entry| {
            entry.hits = hits.next().unwrap();
            if most.wants(&entry) {
                most.add(entry);
            }
        })
        .unwrap();
        let kept: Vec<u64> = most.into_entries().iter().map(|entry| entry.hits).collect();
        assert_eq!(kept, [9, 8, 7]);
        filled.stop().await;
    }
}
