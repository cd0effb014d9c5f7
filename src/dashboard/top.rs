//! The artifacts that saved most, and what all of them saved.
//!
//! Invariant: a number of entries is in memory that does not grow with the index; looking
//! takes a small part of one core, however many entries there are and however often
//! somebody asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_cluster::{Entry, Index};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::view::{TopArtifact, TopView};
use crate::{
    clock,
    scan::{self, Bounds},
};

/// Artifacts that are shown.
const SHOWN: usize = 20;
const BOUNDS: Bounds = Bounds { page: 1024, time: Duration::from_secs(5) };
/// Between two looks at least, and at least so many times what a look takes.
const REST: Duration = Duration::from_secs(5);
const REST_TIMES: u32 = 20;

/// What was seen last, while the next look is under way perhaps.
#[derive(Debug, Default)]
pub(super) struct Top(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    view: TopView,
    looking: bool,
    next: Option<Instant>,
}

impl Top {
    /// What is known; looks again behind the answer, where it is time to.
    pub(super) fn told(&self, index: &Index) -> TopView {
        let mut seen = self.0.lock();
        if !seen.looking && seen.next.is_none_or(|next| Instant::now() >= next) {
            seen.looking = true;
            let (index, seen) = (index.clone(), self.0.clone());
            tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                let looked = look(&index);
                let mut seen = seen.lock();
                seen.looking = false;
                seen.next = Some(Instant::now() + REST.max(began.elapsed() * REST_TIMES));
                match looked {
                    Ok(view) => seen.view = view,
                    Err(e) => tracing::debug!(error = %e, "look for what saved most"),
                }
            });
        }
        seen.view.clone()
    }
}

/// Blocks.
fn look(index: &Index) -> Result<TopView, kiln_cluster::ClusterError> {
    let (mut best, mut view) = (Best::default(), TopView::default());
    let scanned = scan::each(index, BOUNDS, &CancellationToken::new(), |entry| {
        view.seconds_saved += saved(&entry);
        view.compile_seconds += entry.compile_seconds;
        view.bytes = view.bytes.saturating_add(entry.pack_size);
        best.see(entry);
    })?;
    view.artifacts = best.0.iter().map(shown).collect();
    (view.looked_at, view.complete) = (scanned.entries, scanned.complete);
    view.at_unix_ms = clock::unix_ms();
    Ok(view)
}

fn saved(entry: &Entry) -> f64 {
    entry.compile_seconds * entry.hits as f64
}

/// The best first.
#[derive(Default)]
struct Best(Vec<Entry>);

impl Best {
    fn see(&mut self, entry: Entry) {
        if entry.hits == 0 {
            return;
        }
        let of = |entry: &Entry| (saved(entry), entry.hits);
        let place = self.0.partition_point(|better| of(better) >= of(&entry));
        if place < SHOWN {
            self.0.insert(place, entry);
            self.0.truncate(SHOWN);
        }
    }
}

fn shown(entry: &Entry) -> TopArtifact {
    let manifest = entry.manifest.read_unverified().ok();
    let (label, namespace, compiler) = manifest.map_or_else(Default::default, |manifest| {
        (manifest.label, manifest.namespace, manifest.fingerprint.compiler)
    });
    TopArtifact {
        key: entry.key.to_string(),
        label,
        namespace,
        compiler,
        hits: entry.hits,
        compile_seconds: entry.compile_seconds,
        seconds_saved: saved(entry),
        bytes: entry.pack_size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::Filled;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_best_are_kept_in_order_wherever_they_lie() {
        let filled = Filled::start(1).await;
        let entry = filled.index.blocking_scan(None, "", 1).unwrap().remove(0);
        let mut best = Best::default();
        for n in 0..SHOWN as u64 * 3 {
            // Rises and falls, and some that nobody used.
            let hits = n * 7 % 61;
            best.see(Entry { hits, compile_seconds: 2.0, ..entry.clone() });
        }
        let hits: Vec<u64> = best.0.iter().map(|entry| entry.hits).collect();
        assert_eq!(hits.len(), SHOWN);
        assert!(
            hits.is_sorted_by(|a, b| a >= b) && hits[0] == 60 && hits[SHOWN - 1] >= 40,
            "{hits:?}"
        );
        let view = look(&filled.index).unwrap();
        assert!(view.complete && view.looked_at == 1 && view.artifacts.is_empty(), "{view:?}");
        filled.stop().await;
    }
}
