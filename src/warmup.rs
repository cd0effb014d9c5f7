//! Warm-up at start: bring what this node's toolchain uses most.
//!
//! Invariant: never more than a share of L1, one pack at a time, and never in
//! the way of a request.

use kiln_cluster::{Entry, Index};
use tokio_util::sync::CancellationToken;

use crate::manager::Manager;

/// Entries looked at, and packs brought at most.
const MOST_SCANNED: usize = 50_000;
const MOST_BROUGHT: usize = 256;
const PAGE: usize = 1024;

/// Brings the most used artifacts of this node's compilers, up to `budget` bytes.
pub async fn warm_up(manager: &Manager, index: Index, budget: u64, stop: CancellationToken) {
    tokio::select! {
        () = manager.compilers().settled() => {}
        () = stop.cancelled() => return,
    }
    let ours = manager.compilers().fingerprints();
    let wanted = tokio::task::spawn_blocking(move || most_used(&index, &ours)).await;
    let (mut bytes, mut brought) = (0, 0);
    for entry in wanted.unwrap_or_default().into_iter().take(MOST_BROUGHT) {
        bytes += entry.pack_size;
        if bytes > budget || stop.is_cancelled() {
            break;
        }
        match manager.warm(&entry).await {
            Ok(true) => brought += 1,
            Ok(false) => {}
            Err(e) => tracing::debug!(key = %entry.key, error = %e, "not warmed"),
        }
    }
    if brought > 0 {
        tracing::info!(brought, bytes, "warmed up");
    }
}

fn most_used(index: &Index, ours: &[kiln_proto::Fingerprint]) -> Vec<Entry> {
    let mut used = Vec::new();
    let (mut after, mut seen) = (None, 0);
    while seen < MOST_SCANNED {
        let Ok(page) = index.scan(after.as_ref(), "", PAGE) else { break };
        let Some(last) = page.last() else { break };
        after = Some(last.key);
        seen += page.len();
        used.extend(page.into_iter().filter(|entry| {
            entry.hits > 0
                && entry.manifest.read_unverified().is_ok_and(|m| ours.contains(&m.fingerprint))
        }));
    }
    used.sort_by_key(|entry| std::cmp::Reverse(entry.hits));
    used
}
