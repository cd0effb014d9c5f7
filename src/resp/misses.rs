//! What a connection missed and has not SET yet.
//!
//! Invariant: a lease is held as long as its connection lives, at most for the
//! key's wait, and at most [`MOST`] at once: then it is given back, so that
//! another client may compute the value.

use std::collections::HashMap;

use kiln_cluster::Lease;
use kiln_proto::ArtifactKey;
use tokio::time::Instant;

use super::{
    families::{Family, Outcome},
    values::Values,
};

/// Misses remembered at once.
const MOST: usize = 1024;

/// A miss.
pub(super) struct Missed {
    family: Family,
    since: Instant,
    /// When it counts as unfilled.
    until: Instant,
    lease: Option<Lease>,
}

/// The misses of one connection.
#[derive(Default)]
pub(super) struct Misses {
    missed: HashMap<ArtifactKey, Missed>,
    /// None of them ends before.
    next: Option<Instant>,
}

impl Missed {
    pub(super) fn new(family: Family, until: Instant, lease: Option<Lease>) -> Self {
        Self { family, since: Instant::now(), until, lease }
    }
}

impl Misses {
    /// Whether `key` was missed a while ago.
    pub(super) fn contains(&self, key: &ArtifactKey) -> bool {
        self.missed.contains_key(key)
    }

    /// Whether this client, as far as this node knows, is the one that computes `key`.
    pub(super) fn holds(&self, key: &ArtifactKey, values: &Values) -> bool {
        let lease = self.missed.get(key).and_then(|missed| missed.lease.as_ref());
        lease.is_some_and(|lease| values.parts.index.is_live(key, lease.token()))
    }

    /// Whether other clients may wait for this one.
    pub(super) fn has_leases(&self) -> bool {
        self.missed.values().any(|missed| missed.lease.as_ref().is_some_and(|l| !l.is_lost()))
    }

    /// When [`expire`](Self::expire) has something to do next.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.next
    }

    /// Remembers a miss.
    pub(super) async fn insert(&mut self, key: ArtifactKey, missed: Missed, values: &Values) {
        if self.missed.len() >= MOST
            && let Some(oldest) = self.missed.iter().min_by_key(|(_, m)| m.since).map(|(k, _)| *k)
        {
            self.end(&oldest, Outcome::Unfilled, values).await;
        }
        self.next = Some(self.next.map_or(missed.until, |next| next.min(missed.until)));
        self.missed.insert(key, missed);
    }

    /// The client SETs `key`: the seconds since it missed it, and its lease.
    pub(super) fn fill(&mut self, key: &ArtifactKey, values: &Values) -> (f64, Option<Lease>) {
        match self.missed.remove(key) {
            None => (0.0, None),
            Some(missed) => {
                values.families.count(&missed.family, Outcome::Filled);
                (missed.since.elapsed().as_secs_f64(), missed.lease)
            }
        }
    }

    /// Ends what is older than it may be.
    pub(super) async fn expire(&mut self, values: &Values) {
        let now = Instant::now();
        let over: Vec<_> =
            self.missed.iter().filter(|(_, m)| m.until <= now).map(|(key, _)| *key).collect();
        for key in over {
            self.end(&key, Outcome::Unfilled, values).await;
        }
        self.next = self.missed.values().map(|missed| missed.until).min();
    }

    /// The client leaves.
    pub(super) async fn clear(&mut self, values: &Values) {
        let all: Vec<_> = self.missed.keys().copied().collect();
        for key in all {
            self.end(&key, Outcome::Abandoned, values).await;
        }
        self.next = None;
    }

    async fn end(&mut self, key: &ArtifactKey, outcome: Outcome, values: &Values) {
        let Some(missed) = self.missed.remove(key) else { return };
        // Another connection of the same client may have done it.
        let outcome = if values.is_stored(key).await { Outcome::Filled } else { outcome };
        values.families.count(&missed.family, outcome);
    }
}
