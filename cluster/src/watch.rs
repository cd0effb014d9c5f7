//! Whoever waits for a command to be applied is woken here.
//!
//! Invariant: the state is on disk before anyone is told of it, and a waiter that
//! registered before it looked at the state misses nothing that came after.

mod event;
mod lists;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use ed25519_dalek::VerifyingKey;
use kiln_proto::{ArtifactKey, NodeId};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, watch};

pub use self::event::IndexEvent;
use self::lists::Lists;
use crate::{
    admission::Admissions,
    command::{Candidate, NodeFacts},
    deadlines::{Deadlines, Grant},
    signing::NodeKey,
    state::Event,
    table::{
        self, Counters, EntryRecord, FailureRecord, KeyRecord, LeaseRecord, Record, RecordKey,
        RevocationRecord, Standing, StateError, View,
    },
    tokens::TokenInfo,
    trust::Trust,
    wanted::Wanted,
};

/// Events kept for a subscriber that is behind.
const EVENTS: usize = 4096;

/// A node as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its addresses and compilers.
    pub facts: NodeFacts,
    /// The key with which it joined: what certificates of members name it by, for good. It
    /// signs with [`Self::signing`].
    pub key: VerifyingKey,
    /// The keys with which it signed manifests, the present one last.
    pub keys: Vec<NodeKey>,
    /// Whether it left: its manifests remain verifiable.
    pub left: bool,
    /// Whether it is silent while another node has its address: no member until it
    /// says where it is.
    pub away: bool,
    /// Whether it may become a voter.
    pub eligible: bool,
    /// Why what it signed counts no more.
    pub revoked: Option<Revoked>,
    /// Its disk.
    pub(crate) candidate: Candidate,
}

/// A signer was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Whether what it signed before is trusted still.
    pub keep: bool,
    /// Why, as was said.
    pub reason: String,
    /// The node that was asked for it.
    pub by: NodeId,
    /// When, by the leader's clock, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

impl NodeInfo {
    /// Whether it is a member now.
    pub fn is_member(&self) -> bool {
        !self.left && !self.away
    }
}

pub(crate) type Nodes = BTreeMap<NodeId, NodeInfo>;
/// All tokens by id.
pub(crate) type Tokens = BTreeMap<u64, TokenInfo>;

/// What `apply` tells the rest of the node.
pub(crate) struct Watch {
    keys: Waiters,
    events: broadcast::Sender<IndexEvent>,
    applied: watch::Sender<u64>,
    grants: mpsc::UnboundedSender<Grant>,
    nodes: ArcSwap<Nodes>,
    tokens: ArcSwap<Tokens>,
    admissions: ArcSwap<Admissions>,
    trust: ArcSwap<Trust>,
    counters: ArcSwap<Option<Counters>>,
    wanted: Mutex<Lists>,
    /// The live leases; a leader counts their time.
    pub deadlines: Deadlines,
}

/// Who waits, by key. The count is kept under the lock: that of the `Arc` sinks only after a
/// waiter's drop has let go of it.
type Waiters = Arc<Mutex<HashMap<ArtifactKey, Waiting>>>;

/// Those who wait for one key.
#[derive(Default)]
struct Waiting {
    notify: Arc<Notify>,
    waiters: usize,
}

/// Wakes when something about its key was applied. Dropped, it is forgotten.
pub(crate) struct Waiter {
    key: ArtifactKey,
    notify: Arc<Notify>,
    keys: Waiters,
}

impl Waiter {
    /// The next wake-up; enable it before looking at the state.
    pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        if let Some(waiting) = keys.get_mut(&self.key) {
            waiting.waiters -= 1;
            if waiting.waiters == 0 {
                keys.remove(&self.key);
            }
        }
    }
}

impl Watch {
    /// A watch over the state in `view`. `grants` is told of each lease that is granted.
    pub(crate) fn new(
        view: &impl View,
        applied: u64,
        deadlines: Deadlines,
        grants: mpsc::UnboundedSender<Grant>,
    ) -> Result<Self, StateError> {
        let watch = Self {
            keys: Arc::default(),
            events: broadcast::channel(EVENTS).0,
            applied: watch::Sender::new(applied),
            grants,
            nodes: ArcSwap::default(),
            tokens: ArcSwap::default(),
            admissions: ArcSwap::default(),
            trust: ArcSwap::default(),
            counters: ArcSwap::default(),
            wanted: Mutex::new(Lists::read(view)?),
            deadlines,
        };
        watch.nodes.store(Arc::new(read_nodes(view)?));
        watch.read_tokens(view)?;
        watch.trust.store(Arc::new(table::trust(view)?));
        watch.counters.store(Arc::new(table::read(view, ())?));
        watch.deadlines.reload(view)?;
        Ok(watch)
    }

    /// Registers for `key`.
    pub(crate) fn waiter(&self, key: ArtifactKey) -> Waiter {
        let mut keys = self.keys.lock();
        let waiting = keys.entry(key).or_default();
        waiting.waiters += 1;
        let notify = Arc::clone(&waiting.notify);
        drop(keys);
        Waiter { key, notify, keys: Arc::clone(&self.keys) }
    }

    /// Wakes everyone who waits for `key`.
    pub(crate) fn wake(&self, key: &ArtifactKey) {
        if let Some(waiting) = self.keys.lock().get(key) {
            waiting.notify.notify_waiters();
        }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<IndexEvent> {
        self.events.subscribe()
    }

    /// The index of the last applied log entry, as it moves.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub(crate) fn nodes(&self) -> Arc<Nodes> {
        self.nodes.load_full()
    }

    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        self.tokens.load_full()
    }

    /// What joining takes.
    pub(crate) fn admissions(&self) -> Arc<Admissions> {
        self.admissions.load_full()
    }

    fn read_tokens(&self, view: &impl View) -> Result<(), StateError> {
        self.tokens.store(Arc::new(table::tokens(view)?));
        self.admissions.store(Arc::new(table::admissions(view)?));
        Ok(())
    }

    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// The numbers of the whole cluster; `None` before it is founded.
    pub(crate) fn counters(&self) -> Option<Counters> {
        Option::clone(&self.counters.load())
    }

    /// The lists of wanted pieces, the oldest first.
    pub(crate) fn wanted(&self) -> Arc<[Arc<Wanted>]> {
        self.wanted.lock().all()
    }

    /// Tells of commands whose changes are on disk.
    pub(crate) fn applied(
        &self,
        view: &impl View,
        index: u64,
        events: &[Event],
    ) -> Result<(), StateError> {
        self.counters.store(Arc::new(table::read(view, ())?));
        for event in events {
            self.deadlines.follow(event);
            match *event {
                Event::Published { key, pack } => {
                    self.send(IndexEvent::Published { key, pack });
                    self.wake(&key);
                }
                Event::Tombstoned { key, pack } => {
                    self.send(IndexEvent::Tombstoned { key, pack });
                    self.tell_if_free(view, key)?;
                }
                Event::Replaced { key, pack } => self.send(IndexEvent::Replaced { key, pack }),
                Event::Pinned { key, pinned } => self.send(IndexEvent::Pinned { key, pinned }),
                Event::Stored { pack } => self.send(IndexEvent::Stored { pack }),
                Event::Condemned { pack } => self.send(IndexEvent::Condemned { pack }),
                Event::Forgotten { pack } => self.send(IndexEvent::Forgotten { pack }),
                Event::LeaseGranted { key, token, node, request } => {
                    self.tell_grant(Grant { key, token, node, request });
                }
                Event::Failed { key, .. } => {
                    self.send(IndexEvent::Failed { key });
                    self.wake(&key);
                }
                Event::LeaseEnded { key, .. } | Event::Lifted { key, .. } => {
                    self.wake(&key);
                    self.tell_if_free(view, key)?;
                }
                Event::Retired { key } => self.tell_if_free(view, key)?,
                Event::Wanted { whole } => {
                    self.wanted.lock().follow(view, whole)?;
                    self.send(IndexEvent::Wanted { whole });
                }
                Event::Unwanted { whole } => self.wanted.lock().follow(view, whole)?,
                Event::TokensChanged => {
                    self.read_tokens(view)?;
                    self.send(IndexEvent::TokensChanged);
                }
                Event::TrustChanged => {
                    self.trust.store(Arc::new(table::trust(view)?));
                    self.send(IndexEvent::TrustChanged);
                }
                Event::NodesChanged => {
                    self.nodes.store(Arc::new(read_nodes(view)?));
                    self.send(IndexEvent::NodesChanged);
                }
            }
        }
        self.applied.send_replace(index);
        Ok(())
    }

    /// Tells that `key` can be taken, where a list wants it and the state in `view` has
    /// nothing of it.
    fn tell_if_free(&self, view: &impl View, key: ArtifactKey) -> Result<(), StateError> {
        let taken = || -> Result<bool, StateError> {
            Ok(has::<EntryRecord>(view, key)?
                || has::<FailureRecord>(view, key)?
                || has::<LeaseRecord>(view, key)?)
        };
        if self.wanted.lock().want(&key) && !taken()? {
            self.send(IndexEvent::Free { key });
        }
        Ok(())
    }

    /// Tells that a snapshot replaced the state.
    pub(crate) fn installed(&self, view: &impl View, index: u64) -> Result<(), StateError> {
        self.nodes.store(Arc::new(read_nodes(view)?));
        self.read_tokens(view)?;
        self.trust.store(Arc::new(table::trust(view)?));
        self.counters.store(Arc::new(table::read(view, ())?));
        self.deadlines.reload(view)?;
        *self.wanted.lock() = Lists::read(view)?;
        for waiting in self.keys.lock().values() {
            waiting.notify.notify_waiters();
        }
        for grant in self.deadlines.grants() {
            self.tell_grant(grant);
        }
        self.send(IndexEvent::Reset);
        self.applied.send_replace(index);
        Ok(())
    }

    fn tell_grant(&self, grant: Grant) {
        // An error means that this node stops.
        let _ = self.grants.send(grant);
    }

    fn send(&self, event: IndexEvent) {
        // An error means that nobody listens.
        drop(self.events.send(event));
    }
}

/// Whether a record is there.
fn has<R: Record>(view: &impl View, key: R::Key) -> Result<bool, StateError> {
    Ok(view.get(R::TABLE, key.bytes().as_ref())?.is_some())
}

/// The registered nodes whose keys can be read; a node cannot join with another.
fn read_nodes(view: &impl View) -> Result<Nodes, StateError> {
    let mut revocations = table::revocations(view)?;
    let keys = table::keys(view)?;
    let nodes = table::nodes(view)?.into_iter().filter_map(|(id, record)| {
        let key = VerifyingKey::from_bytes(&record.key).ok()?;
        let keys = keys_of(id, key, &keys);
        let (left, away) = (record.left(), record.away());
        let (eligible, candidate) = (record.standing == Standing::Eligible, record.candidate);
        let revoked =
            revocations.remove(&id).map(|RevocationRecord { keep, reason, by, at_unix_ms }| {
                Revoked { keep, reason, by, at_unix_ms }
            });
        let facts = record.facts;
        Some((id, NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate }))
    });
    Ok(nodes.collect())
}

/// The keys of a node that joined with `first`.
fn keys_of(id: NodeId, first: VerifyingKey, records: &[([u8; 32], KeyRecord)]) -> Vec<NodeKey> {
    let revoked = records.iter().find(|(key, _)| key == first.as_bytes());
    let revoked = revoked.map(|(_, record)| record.revoked.clone()).unwrap_or_default();
    let mut later: Vec<_> =
        records.iter().filter(|(_, record)| record.node == id && record.number > 0).collect();
    later.sort_by_key(|(_, record)| record.number);
    let later = later.into_iter().filter_map(|(key, record)| {
        let key = VerifyingKey::from_bytes(key).ok()?;
        let (since_unix_ms, revoked) = (record.since_unix_ms, record.revoked.clone());
        Some(NodeKey { key, since_unix_ms, revoked })
    });
    [NodeKey { key: first, since_unix_ms: 0, revoked }].into_iter().chain(later).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::{deadlines::Lifetimes, environment::system_clock, state::tests::Model};

    #[test]
    fn the_last_waiter_leaves_nothing_though_another_is_being_dropped() {
        let hour = Duration::from_secs(3600);
        let lifetimes = Lifetimes { lease: hour, failure: hour, resource_failure: hour };
        let deadlines = Deadlines::new(lifetimes, system_clock());
        let grants = mpsc::unbounded_channel().0;
        let watch = Watch::new(&Model::default(), 0, deadlines, grants).unwrap();
        let key = ArtifactKey::from_bytes([1; 32]);
        let (one, other) = (watch.waiter(key), watch.waiter(key));
        // A waiter whose drop has let go of the lock has this still.
        let of_the_one = Arc::clone(&one.notify);
        drop(one);
        assert_eq!(watch.keys.lock().len(), 1, "the other one waits on");
        drop(other);
        assert_eq!(watch.keys.lock().len(), 0);
        drop(of_the_one);
    }
}
