//! The stored entry that is nearest to a key, and the fields that keep them apart.
//!
//! Invariant: looks at all entries, or says at how many; one page and the nearest
//! entry are in memory, whatever the index holds.

use kiln_cluster::{ClusterError, Index};
use kiln_proto::{ArtifactKey, Components, Difference};
use tokio_util::sync::CancellationToken;

use crate::scan::{self, Bounds, Scanned};

/// What was found for a key.
#[derive(Debug)]
pub struct Nearest {
    /// The nearest other entry, and in what it differs.
    pub entry: Option<(ArtifactKey, Vec<Difference>)>,
    /// How many entries were looked at.
    pub scanned: Scanned,
}

/// Looks for the entry nearest to `components` within `bounds`; ends early when `stop`
/// says so. Blocks: not for runtime threads.
pub fn find(
    index: &Index,
    components: &Components,
    bounds: Bounds,
    stop: &CancellationToken,
) -> Result<Nearest, ClusterError> {
    let key = components.key();
    let mut nearest: Option<(ArtifactKey, Vec<Difference>)> = None;
    let scanned = scan::each(index, bounds, stop, |entry| {
        let Ok(other) = entry.manifest.read_unverified() else { return };
        if entry.key == key {
            return;
        }
        let differences = components.differences(&other.components);
        let best = nearest.as_ref().map_or(usize::MAX, |(_, found)| found.len());
        if differences.len() < best {
            nearest = Some((entry.key, differences));
        }
    })?;
    Ok(Nearest { entry: nearest, scanned })
}
