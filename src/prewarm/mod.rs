//! What is fetched, and compiled again, before anybody asks for it.
//!
//! At start and then each hour a node reads how often the cluster used each artifact, and
//! fetches those of its own toolchains that will be used most: at start in this hour of
//! the day, later in the next one.
//!
//! Invariant: never more than the bytes that it may take, one artifact at a time, its pieces with
//! it, and never in the way of a request. Of all entries only the [`MOST_FETCHED`] most
//! expected are kept in memory.

mod forecast;
mod memory;
mod profile;
mod refresh;

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kiln_cluster::{Entry, Index};
use kiln_proto::{ArtifactKey, Digest, NodeId};
use tokio_util::sync::CancellationToken;

use self::refresh::{Present, Refresher, Stale};
pub use self::{
    forecast::{Forecast, History, Range},
    profile::Profile,
};
use crate::{
    clock,
    manager::Manager,
    scan::{self, Bounds},
};

/// Packs that are fetched at most.
const MOST_FETCHED: usize = 256;
/// Nobody waits for it, so it may take longer than an answer.
const BOUNDS: Bounds = Bounds { page: 1024, time: Duration::from_secs(60) };
/// How long a node that starts waits for what the cluster did without it.
const CATCHING_UP: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What a node does before anybody asks.
pub struct Prewarm {
    /// Fetches and compiles.
    pub manager: Arc<Manager>,
    /// How often each artifact was used.
    pub index: Index,
    /// This node.
    pub node: NodeId,
    /// Most bytes that are fetched at once.
    pub bytes: u64,
    /// Whether what no toolchain makes any more is compiled again.
    pub refresh: bool,
    /// Where the habits are remembered.
    pub file: PathBuf,
}

/// What a look at all entries found.
struct Looked {
    profile: Profile,
    wanted: Vec<Entry>,
    stale: Stale,
}

impl Prewarm {
    /// Looks at start and then each hour, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let ready = async {
            self.manager.compilers().settled().await;
            self.caught_up().await;
        };
        tokio::select! {
            () = ready => {}
            () = stop.cancelled() => return,
        }
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || memory::read(&file)).await;
        let (mut profile, mut refresher) = (read.unwrap_or_default(), Refresher::default());
        let mut ahead = 0;
        loop {
            let Some(looked) = self.look(profile, ahead, &stop).await else { return };
            profile = looked.profile;
            self.fetch(looked.wanted, &stop).await;
            if self.refresh {
                refresher.refresh(&self.manager, self.node, looked.stale, &stop).await;
            }
            ahead = 1;
            tokio::select! {
                () = tokio::time::sleep(HOUR) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// A replica that was just opened may lack what the cluster did since. Without a quorum
    /// it is looked at as it is, after a while.
    async fn caught_up(&self) {
        for _ in 0..CATCHING_UP.as_secs() {
            match self.index.barrier().await {
                Ok(()) => return,
                Err(e) => tracing::debug!(error = %e, "not caught up yet"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Reads all entries, and remembers what it learned. `ahead`: hours from now that count.
    async fn look(
        &self,
        mut profile: Profile,
        ahead: u64,
        stop: &CancellationToken,
    ) -> Option<Looked> {
        let present = Present::of(&self.index, self.node, self.manager.compilers().fingerprints());
        let (index, file, stopped) = (self.index.clone(), self.file.clone(), stop.clone());
        let looking = move || {
            let hour = hour_now();
            let (mut most, mut stale) = (MostExpected::new(MOST_FETCHED), Stale::default());
            let mut look = profile.look(hour);
            let scanned = scan::each(&index, BOUNDS, &stopped, |entry| {
                // What was never used is not decoded.
                if entry.hits == 0 {
                    return;
                }
                let expected = look.count(&entry.key, entry.hits, hour + ahead);
                let Ok(manifest) = entry.manifest.read_unverified() else { return };
                stale.see(&present, &entry, &manifest, expected);
                if most.wants(expected) && present.is_ours(&manifest) {
                    most.add(expected, entry);
                }
            });
            drop(look);
            match scanned {
                Ok(scanned) if !scanned.complete && !stopped.is_cancelled() => {
                    let entries = scanned.entries;
                    tracing::warn!(entries, "prewarming did not look at all entries in time");
                }
                Ok(_) => {}
                Err(e) => tracing::warn!(error = %e, "prewarming did not look at all entries"),
            }
            if let Err(e) = memory::write(&file, &profile) {
                tracing::warn!(file = %file.display(), error = %e, "the profile of use is not kept");
            }
            Looked { profile, wanted: most.into_entries(), stale }
        };
        tokio::task::spawn_blocking(looking).await.ok()
    }

    /// Fetches the most expected artifacts of this node's compilers, within the bytes.
    async fn fetch(&self, wanted: Vec<Entry>, stop: &CancellationToken) {
        let (mut fetched, mut bytes, mut counted) = (0, 0u64, HashSet::new());
        for entry in wanted {
            bytes = bytes.saturating_add(new_bytes(&entry, &mut counted));
            if bytes > self.bytes || stop.is_cancelled() {
                break;
            }
            match self.manager.warm(&entry).await {
                Ok(true) => fetched += 1,
                Ok(false) => {}
                Err(e) => tracing::debug!(key = %entry.key, error = %e, "not fetched ahead"),
            }
        }
        if fetched > 0 {
            tracing::info!(fetched, bytes, "fetched what will be asked for");
        }
    }
}

/// Hours since the Unix epoch by this node's clock; only habits rest on it.
fn hour_now() -> u64 {
    clock::since_epoch().as_secs() / HOUR.as_secs()
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

/// The entries that will be used most, so many at most.
struct MostExpected {
    most: usize,
    /// By the bits of what is expected: numbers above zero sort as these do.
    by_use: BTreeMap<(u64, ArtifactKey), Entry>,
}

impl MostExpected {
    fn new(most: usize) -> Self {
        Self { most, by_use: BTreeMap::new() }
    }

    fn wants(&self, expected: f64) -> bool {
        let least = self.by_use.first_key_value().map_or(0, |((least, _), _)| *least);
        expected > 0.0 && (self.by_use.len() < self.most || expected.to_bits() > least)
    }

    fn add(&mut self, expected: f64, entry: Entry) {
        self.by_use.insert((expected.to_bits(), entry.key), entry);
        if self.by_use.len() > self.most {
            self.by_use.pop_first();
        }
    }

    /// The most expected first.
    fn into_entries(self) -> Vec<Entry> {
        self.by_use.into_values().rev().collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scan::tests::Filled;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_most_expected_are_kept_wherever_they_lie() {
        let filled = Filled::start(9).await;
        let mut most = MostExpected::new(3);
        // Use rises and falls in key order.
        let mut uses = [1.0, 0.0, 7.5, 0.25, 9.0, 4.0, 0.0, 8.0, 3.0].into_iter();
        let bounds = Bounds { page: 2, time: Duration::MAX };
        let mut by_key = BTreeMap::new();
        scan::each(&filled.index, bounds, &CancellationToken::new(), |entry| {
            let expected = uses.next().unwrap();
            by_key.insert(entry.key, expected);
            if most.wants(expected) {
                most.add(expected, entry);
            }
        })
        .unwrap();
        let kept: Vec<f64> = most.into_entries().iter().map(|entry| by_key[&entry.key]).collect();
        assert_eq!(kept, [9.0, 8.0, 7.5]);
        filled.stop().await;
    }
}
