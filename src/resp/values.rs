//! Values by name: the node's tiers and index, as Redis clients see them.
//!
//! Invariant: a value is an artifact of `kiln_proto::value`, and its bytes are
//! verified as any artifact's; every call here ends within a bound, with or
//! without a quorum.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kiln_cluster::{Cluster, Entry, Index, Lease, Put, PutMode, Turn};
use kiln_proto::{ArtifactKey, value};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::{
    counters::{Count, Counters},
    decode::Admitted,
    families::Families,
    names::Names,
    quorum::Quorum,
    session::Deed,
    sizes::Sizes,
};
use crate::{
    cache::{Arrivals, Blob, Tiers},
    error::Error,
    gate::Inside,
    manager::{Found, Manager, Reporter},
};

/// Bringing a value here from another node or the object store.
const FETCH: Duration = Duration::from_secs(30);
/// A question to the leader.
const ASK: Duration = Duration::from_secs(3);
/// What a client waits for a SET, whose answer is the same in any case: less
/// than the 5 s after which PyTorch's client gives up.
const STORE: Duration = Duration::from_secs(4);
/// The same while the cluster cannot commit.
const STORE_ALONE: Duration = Duration::from_millis(500);
/// Most seconds that a value can be said to have cost: a client that missed a
/// key and SETs it much later has not computed all that time.
const MOST_SECONDS: f64 = 3600.0;

/// The parts of the node that values need.
#[derive(Clone)]
pub struct Parts {
    /// The replicated index.
    pub index: Index,
    /// Whether there is a quorum.
    pub cluster: Arc<Cluster>,
    /// Verified bytes.
    pub manager: Arc<Manager>,
    /// What is in memory.
    pub tiers: Arc<Tiers>,
    /// Memory for what clients send.
    pub arrivals: Arrivals,
    /// Where hits are told.
    pub reporter: Reporter,
    /// What happened, for the node's status.
    pub counters: Arc<Counters>,
}

/// How a SET ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// The key has this value.
    Yes,
    /// The key had a value, and was not to be overwritten.
    Existing,
    /// A later SET of this node took its place.
    Superseded,
    /// It was not stored, or nothing is known about it yet.
    No,
}

/// A value on its way into the cluster.
pub(super) struct Set {
    pub(super) namespace: Arc<str>,
    pub(super) name: Box<[u8]>,
    pub(super) value: Value,
    pub(super) mode: PutMode,
    /// What a hit saves, as far as is known.
    pub(super) seconds: f64,
    /// Of the client that missed the key: ends with the SET.
    pub(super) lease: Option<Lease>,
    /// What its request may take of the node's memory.
    pub(super) admitted: Arc<Admitted>,
    /// Where the audit log has values: a line once it is stored, and none where it is not.
    pub(super) deed: Option<Deed>,
}

/// A value as it came.
pub(super) enum Value {
    /// A long one, received into sealed memory.
    Blob(Blob),
    /// A short one, in the memory of its request.
    Bytes(Bytes),
}

/// An entry's bytes.
pub(super) enum Opened {
    Here(Blob),
    /// They were nowhere: the entry is no more.
    Retired,
    /// They cannot be reached now.
    Unreachable,
}

/// All values of the node.
pub(super) struct Values {
    pub(super) parts: Parts,
    pub(super) names: Names,
    pub(super) families: Families,
    pub(super) quorum: Quorum,
    pub(super) sizes: Sizes,
    /// Stores whose client has its answer already, perhaps.
    pub(super) stores: TaskTracker,
}

impl Values {
    pub(super) fn new(parts: Parts, families: Families) -> Self {
        Self {
            parts,
            names: Names::new(),
            families,
            quorum: Quorum::new(),
            sizes: Sizes::default(),
            stores: TaskTracker::new(),
        }
    }

    /// Whether the cluster cannot answer, or not this node any more: what it has is then
    /// what it may say, or nothing at all if it left.
    pub(super) fn is_cut_off(&self) -> bool {
        self.quorum.is_lost() || self.is_off()
    }

    /// A node that left never hears of an overwrite again: to its clients nothing is
    /// stored, and nothing can be.
    pub(super) fn has_left(&self) -> bool {
        self.parts.cluster.has_left()
    }

    /// Whether nothing is read or kept: this node left, or its cache is off.
    fn is_off(&self) -> bool {
        self.has_left() || self.parts.manager.emergency().is_cache_off()
    }

    pub(super) fn count(&self, count: Count) {
        self.parts.counters.add(count);
    }

    /// The value of `key`, if it is in memory and known to be the latest.
    pub(super) fn known(&self, key: &ArtifactKey, namespace: &str) -> Option<Blob> {
        if self.is_off() {
            return None;
        }
        let (pack, signer) = self.names.pack(key)?;
        // A certificate ends without an event.
        let blob = self.parts.tiers.memory().lookup(&pack)?;
        if !self.parts.manager.believes_all_of(signer, namespace) {
            return None; // the way through the index tells by which of its keys it was
        }
        self.parts.reporter.hit(*key);
        Some(blob)
    }

    /// The value of `key` that the local replica knows.
    pub(super) async fn local(&self, key: &ArtifactKey, namespace: &str) -> Option<Blob> {
        if let Some(blob) = self.known(key, namespace) {
            return Some(blob);
        }
        match self.opened(key, namespace).await {
            Some(Opened::Here(blob)) => Some(blob),
            _ => None,
        }
    }

    /// The value of `key`, after every SET acknowledged before this call, as
    /// far as the cluster can be asked.
    pub(super) async fn anywhere(&self, key: &ArtifactKey, namespace: &str) -> Option<Blob> {
        if let Some(blob) = self.local(key, namespace).await {
            return Some(blob);
        }
        self.fresh(key).await?;
        self.local(key, namespace).await
    }

    /// The entry of `key`, from the local replica if it has one, else from the leader.
    pub(super) async fn entry(&self, key: &ArtifactKey) -> Option<Entry> {
        match self.look(key).await {
            Some(entry) => Some(entry),
            None => self.fresh(key).await,
        }
    }

    /// Whether the local replica has a value for `key`.
    pub(super) async fn is_stored(&self, key: &ArtifactKey) -> bool {
        self.look(key).await.is_some()
    }

    async fn look(&self, key: &ArtifactKey) -> Option<Entry> {
        if self.is_off() {
            return None;
        }
        let found = self.parts.index.lookup(key).await;
        let found = found.unwrap_or_else(|e| {
            tracing::error!(key = %key.short(), error = %e, "look up a value");
            None
        });
        found.filter(|entry| self.parts.manager.believes_entry(entry))
    }

    /// The entry of `key` after all that was acknowledged; `None` also where the
    /// cluster cannot be asked.
    async fn fresh(&self, key: &ArtifactKey) -> Option<Entry> {
        if self.is_cut_off() {
            return None;
        }
        let asked = timeout(ASK, self.parts.index.lookup_linearizable(key));
        let found = tokio::select! {
            answered = asked => answered.ok()?.unwrap_or_else(|e| {
                tracing::debug!(key = %key.short(), error = %e, "ask the cluster for a value");
                None
            }),
            () = self.quorum.lost() => None,
        };
        found.filter(|entry| self.parts.manager.believes_entry(entry))
    }

    async fn opened(&self, key: &ArtifactKey, namespace: &str) -> Option<Opened> {
        let before = self.names.before(key);
        let entry = self.look(key).await?;
        let opened = self.open(&entry, namespace).await;
        if let Opened::Here(_) = &opened {
            self.names.keep(key, (entry.pack, entry.manifest.signer), before);
        }
        Some(opened)
    }

    /// The bytes of `entry`.
    pub(super) async fn open(&self, entry: &Entry, namespace: &str) -> Opened {
        let key = &entry.key;
        match timeout(FETCH, self.parts.manager.open(entry, namespace)).await {
            Ok(Ok(Found::Here(found))) => {
                let files = &found.manifest.files;
                // Whoever publishes under such a key is bound by its form.
                match files.len() == 1 && files[0].path == value::FILE {
                    true => Opened::Here(found.pack),
                    false => {
                        tracing::warn!(%key, "an artifact under a value's key is no value");
                        Opened::Unreachable
                    }
                }
            }
            Ok(Ok(Found::Retired)) => {
                self.names.drop_key(key);
                Opened::Retired
            }
            Ok(Ok(Found::Unreachable(why))) => {
                tracing::debug!(%key, epoch = entry.epoch, why, "a value cannot be reached");
                Opened::Unreachable
            }
            Ok(Ok(Found::Incomplete(piece))) => {
                tracing::warn!(%key, %piece, "an artifact of pieces is no value");
                Opened::Unreachable
            }
            Ok(Err(error)) => {
                tracing::warn!(%key, %error, "bring a value");
                Opened::Unreachable
            }
            Err(_) => {
                tracing::warn!(%key, "a value did not come within {FETCH:?}");
                Opened::Unreachable
            }
        }
    }

    /// Stores a value. A store that takes too long goes on behind its answer; of several
    /// of one key, the one that arrived last counts.
    pub(super) async fn set(self: &Arc<Self>, set: Set) -> Stored {
        if self.has_left() {
            self.failed(&value::shown(&set.name), &Error::Left);
            return Stored::No;
        }
        if self.is_off() {
            self.failed(&value::shown(&set.name), &"the cache of this node is off");
            return Stored::No;
        }
        let inside = match self.parts.manager.gate().enter() {
            Ok(inside) => inside,
            Err(error) => {
                self.failed(&value::shown(&set.name), &error);
                return Stored::No;
            }
        };
        let key = self.names.key(&set.namespace, &set.name);
        let bound = if self.quorum.is_lost() { STORE_ALONE } else { STORE };
        // Before its turn, which ends with the value that the key has by then.
        let clearing = timeout(bound, self.parts.manager.clear_unbelieved(&key, &set.namespace));
        if let Err(error) = clearing.await.unwrap_or_else(|_| Err(Error::deadline("removing"))) {
            self.failed(&value::shown(&set.name), &error);
            return Stored::No;
        }
        let turn = match self.parts.index.turn(&key, set.mode) {
            Ok(turn) => turn,
            Err(error) => {
                self.failed(&value::shown(&set.name), &error);
                return Stored::No;
            }
        };
        let values = self.clone();
        let store = async move { values.store(set, turn, inside).await };
        let store = self.stores.spawn(store.in_current_span());
        match timeout(bound, store).await {
            Ok(ended) => ended.unwrap_or(Stored::No),
            Err(_) => {
                self.count(Count::Late);
                Stored::No
            }
        }
    }

    async fn store(&self, set: Set, turn: Turn, inside: Inside) -> Stored {
        let Set { namespace, name, value, mode, seconds, lease, admitted, deed } = set;
        let seconds = seconds.min(MOST_SECONDS);
        let value = match value {
            Value::Blob(blob) => blob,
            Value::Bytes(bytes) => match Blob::copy_within(self.parts.tiers.budget(), &bytes).await
            {
                Ok(blob) => blob,
                Err(error) => {
                    self.failed(&value::shown(&name), &error);
                    return Stored::No;
                }
            },
        };
        let manifest = value::manifest(&namespace, &name, value.digest(), value.size(), seconds);
        let key = manifest.key;
        self.parts.manager.note_publication(&key);
        // An earlier write that is under way must not come after this one.
        let already = match turn.is_alone() {
            true => self.has_already(&key, &value, mode).await,
            false => None,
        };
        let stored = match already {
            Some(put) => Ok(put),
            None => self.parts.manager.put(&inside, turn, manifest, &value, mode).await,
        };
        // The client reads what it wrote, before any event tells this node.
        self.names.drop_key(&key);
        drop((lease, admitted));
        match stored {
            Ok(Put::Committed(_)) => {
                self.count(Count::Stored);
                if let Some(deed) = deed {
                    deed.done();
                }
                Stored::Yes
            }
            Ok(Put::Unchanged(_)) => {
                self.count(Count::Unchanged);
                if mode == PutMode::Create { Stored::Existing } else { Stored::Yes }
            }
            Ok(Put::Existing(_)) => Stored::Existing,
            Ok(Put::Superseded) => {
                self.count(Count::Superseded);
                Stored::Superseded
            }
            Err(error) => {
                self.failed(&value::shown(&name), &error);
                Stored::No
            }
        }
    }

    /// A SET was answered, and not stored.
    pub(super) fn failed(&self, name: &str, why: &dyn std::fmt::Display) {
        self.count(Count::Failed);
        tracing::warn!(name, %why, "a SET was answered, and not stored");
    }

    /// The same of many.
    pub(super) fn failed_all(&self, count: usize, why: &dyn std::fmt::Display) {
        (0..count).for_each(|_| self.count(Count::Failed));
        tracing::warn!(count, %why, "SETs were not stored");
    }

    /// What needs no entry in the log: the key has this very value.
    async fn has_already(&self, key: &ArtifactKey, value: &Blob, mode: PutMode) -> Option<Put> {
        let entry = self.look(key).await?;
        let pack = value.digest();
        if mode == PutMode::Create && entry.pack != pack {
            return Some(Put::Existing(entry));
        }
        if entry.pack != pack || !self.parts.tiers.holds(&pack) {
            return None;
        }
        // This replica may be behind: another SET could have come in between.
        let entry = self.fresh(key).await?;
        (entry.pack == pack).then_some(Put::Unchanged(entry))
    }

    /// Removes the value of `key`; whether it had one.
    pub(super) async fn delete(&self, key: &ArtifactKey) -> Result<bool, Error> {
        if self.has_left() {
            return Ok(false);
        }
        let index = &self.parts.index;
        let removed = timeout(STORE, index.tombstone(key, "deleted by a client".into())).await;
        self.names.drop_key(key);
        Ok(removed.map_err(|_| Error::deadline("deleting"))??)
    }
}
