//! What failed on this node a moment ago, of what the cluster does not remember.
//!
//! A compiler that died says nothing of the request, so no other node is told. But who asks
//! here again while a fallback is to be used has that, and not five compiles that die.
//!
//! Invariant: nothing is remembered beyond the time that its fallback was told to be used,
//! nor more than [`MOST`] keys; and who wants the error has a compile.

use kiln_proto::{ArtifactKey, Failure, FailureKind};
use tokio::time::Instant;

use super::Tried;

/// Keys.
const MOST: usize = 4096;

/// Failures by key, and until when each counts.
pub(in crate::manager) struct Remembered(quick_cache::sync::Cache<ArtifactKey, (Instant, Failure)>);

impl Default for Remembered {
    fn default() -> Self {
        Self(quick_cache::sync::Cache::new(MOST))
    }
}

impl Remembered {
    /// A rung failed, and another one answered for so long.
    pub(super) fn note(&self, tried: &Tried, until: Instant) {
        let Tried { key: Some(key), failure, .. } = tried else { return };
        if matches!(failure.kind, FailureKind::Crashed | FailureKind::WrongOutput) {
            self.0.insert(*key, (until, failure.clone()));
        }
    }

    /// What `key` failed of, while that counts.
    pub(in crate::manager) fn failure(&self, key: &ArtifactKey) -> Option<Failure> {
        let (until, failure) = self.0.get(key)?;
        if Instant::now() < until {
            return Some(failure);
        }
        self.0.remove(key);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::manager::Rung;

    #[test]
    fn a_death_counts_for_a_while_and_other_failures_not_at_all() {
        let remembered = Remembered::default();
        let tried = |kind| Tried {
            piece: None,
            rung: Rung::Wanted,
            key: Some(ArtifactKey::from_bytes([1; 32])),
            failure: Failure::new(kind, "x"),
            took: Duration::ZERO,
        };
        let (key, now) = (ArtifactKey::from_bytes([1; 32]), Instant::now());
        let later = now + Duration::from_secs(60);
        // A caller's own deadline may be it: the next caller may have more time.
        remembered.note(&tried(FailureKind::Timeout), later);
        assert_eq!(remembered.failure(&key), None);
        remembered.note(&tried(FailureKind::Crashed), later);
        assert_eq!(remembered.failure(&key).map(|f| f.kind), Some(FailureKind::Crashed));
        remembered.note(&tried(FailureKind::Crashed), now);
        assert_eq!(remembered.failure(&key), None, "its time is over");
    }
}
