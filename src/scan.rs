//! Reading every entry of the local replica, in pages.
//!
//! Invariant: one page of entries is in memory at a time, whatever the index holds;
//! a scan that ends before the last entry says so.

pub mod nearest;
pub mod order;

use std::time::{Duration, Instant};

use kiln_cluster::{ClusterError, Entry, Index};
use tokio_util::sync::CancellationToken;

/// Bounds on one scan.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Entries that are read at once.
    pub page: usize,
    /// The scan ends at the first page that begins later than this.
    pub time: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { page: 1024, time: Duration::from_secs(10) }
    }
}

/// How far a scan came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Entries that were read.
    pub entries: u64,
    /// Whether that is all of them.
    pub complete: bool,
}

/// Calls `see` for each entry in key order, until the last one, the bound on time, or
/// `stop`. Blocks: run it on a blocking thread. Entries that change meanwhile are seen
/// as they are when their page is read.
pub fn each(
    index: &Index,
    bounds: Bounds,
    stop: &CancellationToken,
    mut see: impl FnMut(Entry),
) -> Result<Scanned, ClusterError> {
    let began = Instant::now();
    let (mut after, mut scanned) = (None, Scanned::default());
    while began.elapsed() < bounds.time && !stop.is_cancelled() {
        let page = index.blocking_scan(after.as_ref(), "", bounds.page)?;
        let Some(last) = page.last() else {
            return Ok(Scanned { complete: true, ..scanned });
        };
        after = Some(last.key);
        scanned.entries += page.len() as u64;
        page.into_iter().for_each(&mut see);
    }
    Ok(scanned)
}

#[cfg(test)]
pub(crate) mod tests;
