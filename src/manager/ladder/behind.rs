//! What was wanted is compiled while a fallback is used.
//!
//! Invariant: one task a key in the node, [`MOST`] keys and [`MOST_BYTES`] of requests in
//! all; each compile is under the lease of its key, so that all nodes together make one;
//! every task ends: with the artifact, after the last pause, or with the node.

use std::{collections::HashMap, sync::Arc};

use kiln_proto::ArtifactKey;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Event, FallbackPolicy, pauses, table::Cause};
use crate::manager::{Manager, Request};

/// Keys at once.
const MOST: usize = 256;
/// Bytes of their sources.
const MOST_BYTES: usize = 256 << 20;

/// Keys that are compiled behind, with the bytes of their sources.
#[derive(Clone, Default)]
pub(in crate::manager) struct Behind(Arc<Mutex<HashMap<ArtifactKey, usize>>>);

/// The place of a key; given back when dropped.
struct Place {
    behind: Behind,
    key: ArtifactKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.behind.0.lock().remove(&self.key);
    }
}

impl Behind {
    /// `None`: the key has one, or there is no room.
    fn place(&self, key: ArtifactKey, bytes: usize) -> Option<Place> {
        let mut keys = self.0.lock();
        let all: usize = keys.values().sum();
        let fits = keys.len() < MOST && all.saturating_add(bytes) <= MOST_BYTES;
        if !fits || keys.contains_key(&key) {
            return None;
        }
        keys.insert(key, bytes);
        Some(Place { behind: self.clone(), key })
    }
}

impl Manager {
    /// Has `wanted` compiled after a while, and again after longer ones.
    pub(super) fn compile_behind(self: &Arc<Self>, wanted: ArtifactKey, request: &Request) {
        let bytes = request.input.source.bytes();
        let Some(place) = self.behind.place(wanted, bytes) else { return };
        // Who asks for the key meanwhile has the policy that it asks with.
        let request = Request { fallback: FallbackPolicy::None, ..request.clone() };
        let (manager, stop) = (self.clone(), self.stop.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = manager.until_compiled(wanted, &request) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    async fn until_compiled(self: &Arc<Self>, wanted: ArtifactKey, request: &Request) {
        let mut last = String::new();
        for pause in pauses::behind() {
            tokio::time::sleep(pause).await;
            let limit = Instant::now() + self.settings.flight_limit;
            let error = match self.attempt(request, limit, &mut |_, _| {}).await.result {
                Ok(_) => {
                    tracing::info!(%wanted, "compiled at last: the fallback is needed no more");
                    self.counters.replaced();
                    self.events.tell(Event::Replaced { wanted });
                    return;
                }
                Err(error) => error,
            };
            tracing::debug!(%wanted, %error, "not compiled behind a fallback");
            last = error.to_string();
            if Cause::of(&error).is_none() {
                break;
            }
        }
        tracing::warn!(%wanted, last, "not compiled behind a fallback, and not tried any more");
        self.events.tell(Event::GaveUp { wanted, message: last });
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::Digest;

    use super::*;

    fn key(n: usize) -> ArtifactKey {
        ArtifactKey::from_bytes(*Digest::of(&n.to_le_bytes()).as_bytes())
    }

    #[test]
    fn a_key_has_one_place_and_all_are_bounded() {
        let behind = Behind::default();
        let first = behind.place(key(0), 10);
        assert!(first.is_some() && behind.place(key(0), 10).is_none());
        drop(first);
        let held: Vec<_> = (0..2 * MOST).filter_map(|n| behind.place(key(n), 1)).collect();
        assert_eq!(held.len(), MOST);
        drop(held);
        assert!(behind.place(key(1), MOST_BYTES + 1).is_none());
        let _large = behind.place(key(1), MOST_BYTES).expect("there is room");
        assert!(behind.place(key(2), 1).is_none());
    }
}
