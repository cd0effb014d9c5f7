//! From a Redis key to its pack without a look into the index.
//!
//! Invariant: a key's pack is known here only as long as the local replica says
//! the same; whatever may have changed it, an event, a missed event, a SET of
//! this node, drops it, and an answer that was read before the drop is not kept. Who signed it
//! is kept beside it: whether that one is believed is asked each time.

use std::{collections::HashMap, sync::Arc};

use kiln_cluster::{Index, IndexEvent};
use kiln_proto::{ArtifactKey, Digest, NodeId, value};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

const SHARDS: usize = 32;
/// Packs known in one shard; it is emptied when there are more.
const MOST_PACKS: usize = 2048;
/// Names whose key is remembered, each at most this long.
const MOST_NAMES: usize = 32_768;
const LONGEST_NAME: usize = 512;

/// What is known about names and keys.
pub(super) struct Names {
    keys: quick_cache::sync::Cache<Name, ArtifactKey>,
    shards: [Mutex<Shard>; SHARDS],
}

/// A name within its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name(Arc<str>, Box<[u8]>);

/// The same, borrowed.
#[derive(Hash)]
struct NameRef<'a>(&'a str, &'a [u8]);

impl quick_cache::Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        *self.0 == *name.0 && *self.1 == *name.1
    }
}

#[derive(Default)]
struct Shard {
    /// Counts drops: who read the index before one must not keep what it read.
    drops: u64,
    packs: HashMap<ArtifactKey, (Digest, NodeId)>,
}

/// The state before a look into the index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before(u64);

impl Names {
    pub(super) fn new() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { keys: quick_cache::sync::Cache::new(MOST_NAMES), shards }
    }

    /// The key of `name`.
    pub(super) fn key(&self, namespace: &Arc<str>, name: &[u8]) -> ArtifactKey {
        if let Some(key) = self.keys.get(&NameRef(namespace, name)) {
            return key;
        }
        let key = value::components(namespace, name).key();
        if name.len() <= LONGEST_NAME {
            self.keys.insert(Name(namespace.clone(), name.into()), key);
        }
        key
    }

    /// The pack of `key` and its signer, if they are known.
    pub(super) fn pack(&self, key: &ArtifactKey) -> Option<(Digest, NodeId)> {
        self.shard(key).lock().packs.get(key).copied()
    }

    /// To be called before the index is looked at.
    pub(super) fn before(&self, key: &ArtifactKey) -> Before {
        Before(self.shard(key).lock().drops)
    }

    /// Keeps what the index said since `before`.
    pub(super) fn keep(&self, key: &ArtifactKey, pack: (Digest, NodeId), before: Before) {
        let mut shard = self.shard(key).lock();
        if shard.drops != before.0 {
            return;
        }
        if shard.packs.len() >= MOST_PACKS {
            shard.packs.clear();
        }
        shard.packs.insert(*key, pack);
    }

    /// Forgets the pack of `key`.
    pub(super) fn drop_key(&self, key: &ArtifactKey) {
        let mut shard = self.shard(key).lock();
        shard.drops += 1;
        shard.packs.remove(key);
    }

    fn drop_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.drops += 1;
            shard.packs.clear();
        }
    }

    fn shard(&self, key: &ArtifactKey) -> &Mutex<Shard> {
        &self.shards[usize::from(key.as_bytes()[0]) % SHARDS]
    }

    /// Follows the index until `stop`.
    pub(super) async fn follow(&self, index: Index, stop: CancellationToken) {
        let mut events = index.events();
        // What changed before the line above is not told.
        self.drop_all();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = stop.cancelled() => return,
            };
            match event {
                Ok(
                    IndexEvent::Published { key, .. }
                    | IndexEvent::Replaced { key, .. }
                    | IndexEvent::Tombstoned { key, .. },
                ) => self.drop_key(&key),
                Ok(IndexEvent::Reset | IndexEvent::TrustChanged) | Err(RecvError::Lagged(_)) => {
                    self.drop_all();
                }
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_keys_of_the_contract() {
        let names = Names::new();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for _ in 0..2 {
            let key = names.key(&a, b"name");
            assert_eq!(key, value::components("a", b"name").key());
            assert_ne!(key, names.key(&b, b"name"));
            assert_ne!(key, names.key(&a, b"nam"));
        }
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let (names, key) = (Names::new(), ArtifactKey::from_bytes([7; 32]));
        let before = names.before(&key);
        names.drop_key(&key);
        names.keep(&key, (Digest::of(b"old"), 1), before);
        assert_eq!(names.pack(&key), None);
        names.keep(&key, (Digest::of(b"new"), 2), names.before(&key));
        assert_eq!(names.pack(&key), Some((Digest::of(b"new"), 2)));
        names.drop_all();
        assert_eq!(names.pack(&key), None);
    }

    #[test]
    fn packs_are_bounded() {
        let names = Names::new();
        for n in 0..2 * MOST_PACKS as u64 {
            let mut bytes = [0; 32];
            bytes[8..16].copy_from_slice(&n.to_le_bytes());
            let key = ArtifactKey::from_bytes(bytes);
            names.keep(&key, (Digest::of(b"x"), 1), names.before(&key));
        }
        assert!(names.shards[0].lock().packs.len() <= MOST_PACKS);
    }
}
