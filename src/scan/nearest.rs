//! The stored entry that is nearest to a key.
//!
//! Invariant: a key is never its own neighbour; one entry and its differences are kept of
//! each search, whatever the index holds.

use kiln_cluster::{ClusterError, Index};
use kiln_proto::{ArtifactKey, Components, Difference, value};
use tokio_util::sync::CancellationToken;

use super::{Bounds, Scanned, each};

/// A search for the neighbour of one key.
pub struct Nearest<'a> {
    components: &'a Components,
    readable: Option<&'a dyn Fn(&str) -> bool>,
    key: ArtifactKey,
    made_before: u64,
    found: Option<(ArtifactKey, Vec<Difference>)>,
}

impl<'a> Nearest<'a> {
    /// Of the key of `components`.
    pub fn new(components: &'a Components) -> Self {
        let (readable, made_before, found) = (None, u64::MAX, None);
        Self { components, readable, key: components.key(), made_before, found }
    }

    /// Only among entries that were made before, in Unix milliseconds by their makers' clocks.
    pub fn made_before(self, unix_ms: u64) -> Self {
        Self { made_before: unix_ms, ..self }
    }

    /// Only among entries of namespaces that are `readable`.
    pub fn within(self, readable: &'a dyn Fn(&str) -> bool) -> Self {
        Self { readable: Some(readable), ..self }
    }

    /// Holds a stored key against it.
    pub fn see(&mut self, theirs: &Components) {
        let best = self.found.as_ref().map_or(usize::MAX, |(_, found)| found.len());
        let differences = self.components.differences(theirs);
        if differences.len() < best {
            let key = theirs.key();
            if key != self.key {
                self.found = Some((key, differences));
            }
        }
    }

    /// The nearest key that was seen, and what differs.
    pub fn found(self) -> Option<(ArtifactKey, Vec<Difference>)> {
        self.found
    }
}

/// Shows every entry to each of the searches, within `bounds`. Blocks.
pub fn nearest(
    index: &Index,
    bounds: Bounds,
    stop: &CancellationToken,
    searches: &mut [Nearest<'_>],
) -> Result<Scanned, ClusterError> {
    each(index, bounds, stop, |entry| {
        let Ok(other) = entry.manifest.read_unverified() else { return };
        // What is kept beside artifacts is nobody's neighbour.
        if other.fingerprint.compiler == value::REQUEST_FAMILY {
            return;
        }
        for search in searches.iter_mut() {
            let readable = search.readable.is_none_or(|readable| readable(&other.namespace));
            if readable && other.created_unix_ms < search.made_before {
                search.see(&other.components);
            }
        }
    })
}
