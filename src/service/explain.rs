//! Why a key was not answered: its nearest stored neighbour, and the fields
//! that keep them apart.
//!
//! Invariant: reads at most [`MOST_ENTRIES`] entries, off the runtime threads.

use kiln_cluster::Index;
use kiln_proto::{ArtifactKey, Components, Difference, Manifest};

use crate::error::Error;

/// Bound on one explanation's scan.
const MOST_ENTRIES: usize = 100_000;
const PAGE: usize = 1024;

/// A key held against the entry that is nearest to it.
pub(super) struct Explanation {
    pub(super) stored: bool,
    pub(super) components: Components,
    pub(super) nearest: Option<(ArtifactKey, Vec<Difference>)>,
}

/// Explains the key of `components`.
pub(super) fn explain(index: &Index, components: &Components) -> Result<Explanation, Error> {
    let key = components.key();
    let mut nearest: Option<(ArtifactKey, Vec<Difference>)> = None;
    let (mut after, mut seen) = (None, 0);
    while seen < MOST_ENTRIES {
        let page = index.scan(after.as_ref(), "", PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.key);
        seen += page.len();
        for entry in page.iter().filter(|entry| entry.key != key) {
            let Ok(other) = entry.manifest.read_unverified() else { continue };
            let differences = components.differences(&other.components);
            let best = nearest.as_ref().map_or(usize::MAX, |(_, found)| found.len());
            if differences.len() < best {
                nearest = Some((entry.key, differences));
            }
        }
    }
    let stored = index.lookup(&key)?.is_some();
    Ok(Explanation { stored, components: components.clone(), nearest })
}

/// The components of a stored key.
pub(super) fn components_of(index: &Index, key: &ArtifactKey) -> Result<Components, Error> {
    let entry = index.lookup(key)?.ok_or(Error::NotFound(*key))?;
    let manifest: Manifest = entry.manifest.read_unverified()?;
    Ok(manifest.components)
}
