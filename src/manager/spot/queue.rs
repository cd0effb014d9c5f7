//! Hits that wait to be looked into.
//!
//! Invariant: bounded in number and in the bytes of what they hold; who cannot be taken is
//! counted, and no hit waits for a place.

use std::collections::VecDeque;

use kiln_proto::{ArtifactKey, Digest, Manifest};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::manager::Request;

/// Hits that wait at most.
const WAITING: usize = 4;
/// Artifacts that are remembered, so that each is compared once by a node.
const KNOWN: usize = 16_384;
/// Largest source that waits with its hit; another one is looked for in the cluster.
const MOST_SOURCE: usize = 16 << 20;

/// A hit that is to be looked into.
#[derive(Debug)]
pub(super) struct Sampled {
    pub(super) key: ArtifactKey,
    pub(super) namespace: String,
    /// What the client asked with, where it has sent that.
    pub(super) request: Option<Request>,
}

/// The queue, and what was compared already.
#[derive(Debug)]
pub(in crate::manager) struct Queue {
    /// One in so many hits; 0: none.
    one_in: u64,
    waiting: Mutex<VecDeque<Sampled>>,
    added: Notify,
    known: quick_cache::sync::Cache<(ArtifactKey, Digest), ()>,
}

impl Queue {
    /// Takes one in `one_in` hits; 0: none.
    pub(in crate::manager) fn new(one_in: u64) -> Self {
        Self {
            one_in,
            waiting: Mutex::default(),
            added: Notify::new(),
            known: quick_cache::sync::Cache::new(KNOWN),
        }
    }

    /// Whether it takes any hit at all.
    pub(super) fn is_on(&self) -> bool {
        self.one_in > 0
    }

    /// Whether this hit is one of those that are looked into. By chance: what is looked
    /// into must not be known beforehand.
    pub(super) fn picks(&self) -> bool {
        match self.one_in {
            0 => false,
            1 => true,
            // Without randomness nothing can be signed either: then none is picked.
            n => getrandom::u64().is_ok_and(|random| random % n == 0),
        }
    }

    /// Whether this artifact was compared here.
    pub(super) fn knows(&self, manifest: &Manifest) -> bool {
        self.known.get(&(manifest.key, manifest.pack_digest)).is_some()
    }

    /// It was compared here.
    pub(super) fn learn(&self, manifest: &Manifest) {
        self.known.insert((manifest.key, manifest.pack_digest), ());
    }

    /// Takes a hit; false: there is no room.
    pub(super) fn add(&self, manifest: &Manifest, request: Option<&Request>) -> bool {
        let (key, namespace) = (manifest.key, manifest.namespace.clone());
        let mut waiting = self.waiting.lock();
        if waiting.iter().any(|other| other.key == key) {
            return true;
        }
        if waiting.len() >= WAITING {
            return false;
        }
        let small = request.filter(|request| request.input.source.bytes() <= MOST_SOURCE);
        waiting.push_back(Sampled { key, namespace, request: small.cloned() });
        drop(waiting);
        self.added.notify_one();
        true
    }

    /// The next one. One caller at a time.
    pub(super) async fn next(&self) -> Sampled {
        loop {
            if let Some(next) = self.waiting.lock().pop_front() {
                return next;
            }
            self.added.notified().await;
        }
    }
}
