//! The ordered writes that this node has under way.
//!
//! Invariant: of two writes of one key, the later turn counts: an earlier one that is
//! not committed when the later one is, never will be. A write whose outcome is not
//! known is remembered until a later write of its key, or a fence, has ended it, and
//! at most [`MOST_OPEN`] writes are remembered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kiln_proto::{ArtifactKey, Token};
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

use crate::error::ClusterError;

/// Most writes of one node that are under way or of unknown outcome.
pub(crate) const MOST_OPEN: usize = 16_384;

/// All writes of this process that are not over.
pub(crate) struct Writes {
    open: Arc<Mutex<Open>>,
    /// Notified when the outcome of a write is not known.
    unknown: Arc<Notify>,
    /// Names this process's session until it has one.
    pub nonce: u64,
    /// This process's session, which its first write opens.
    pub session: OnceCell<Token>,
}

#[derive(Default)]
struct Open {
    last: u64,
    writes: BTreeMap<u64, Write>,
    keys: HashMap<ArtifactKey, OfKey>,
}

struct Write {
    key: Option<ArtifactKey>,
    /// Whether it takes the place of all that came before.
    overwrites: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its caller waits for it.
    UnderWay,
    /// It was sent, and what came of it is not known.
    Unknown,
    /// It was given up while an earlier one may still apply, or may have.
    GivenUp,
}

/// The writes of one key, the oldest first.
#[derive(Default)]
struct OfKey {
    sequences: Vec<u64>,
    changed: Arc<Notify>,
}

/// The place of one write among those of its key, taken when it arrived.
pub struct Turn {
    key: ArtifactKey,
    sequence: u64,
    sent: bool,
    changed: Arc<Notify>,
    open: Arc<Mutex<Open>>,
    unknown: Arc<Notify>,
}

/// What a write says about the others of its session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub sequence: u64,
    pub floor: u64,
    pub supersedes: Vec<u64>,
    /// The key whose last write was given up.
    pub withdraw: Option<ArtifactKey>,
}

impl Writes {
    /// No writes yet; fails where the system has no randomness.
    pub(crate) fn new() -> Result<Self, ClusterError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(ClusterError::unavailable)?;
        Ok(Self {
            open: Arc::default(),
            unknown: Arc::default(),
            nonce: u64::from_le_bytes(nonce),
            session: OnceCell::new(),
        })
    }

    /// The next turn of `key`. `overwrites`: it supersedes all earlier ones that are
    /// not committed; else it waits for them.
    pub(crate) fn turn(&self, key: &ArtifactKey, overwrites: bool) -> Result<Turn, ClusterError> {
        let mut open = self.open.lock();
        let sequence = open.begin(Some(*key), overwrites)?;
        let of_key = open.keys.entry(*key).or_default();
        of_key.sequences.push(sequence);
        let changed = Arc::clone(&of_key.changed);
        changed.notify_waiters();
        let (key, unknown) = (*key, Arc::clone(&self.unknown));
        Ok(Turn { key, sequence, sent: false, changed, open: Arc::clone(&self.open), unknown })
    }

    /// What ends the writes whose outcome is not known; `None` where there are none.
    pub(crate) fn fence(&self) -> Result<Option<Fence>, ClusterError> {
        let mut open = self.open.lock();
        let withdraw = open.to_withdraw();
        let supersedes = match &withdraw {
            Some(key) => open.keys.get(key).map(|of_key| of_key.sequences.clone()),
            None => {
                let unknown = open.writes.iter().filter(|(_, w)| w.state == State::Unknown);
                Some(unknown.map(|(sequence, _)| *sequence).collect())
            }
        };
        let Some(supersedes) = supersedes.filter(|unknown| !unknown.is_empty()) else {
            return Ok(None);
        };
        let sequence = open.begin(None, false)?;
        Ok(Some(Fence { sequence, floor: open.floor(), supersedes, withdraw }))
    }

    /// The fence was applied (or, not `applied`, it is not known whether it was).
    pub(crate) fn fenced(&self, fence: &Fence, applied: bool) {
        let mut open = self.open.lock();
        match applied {
            true => open.end([fence.sequence].iter().chain(&fence.supersedes)),
            false => open.set(fence.sequence, State::Unknown),
        }
    }

    /// Returns when there may be writes of unknown outcome.
    pub(crate) async fn some_unknown(&self) {
        self.unknown.notified().await;
    }
}

impl Open {
    fn begin(&mut self, key: Option<ArtifactKey>, overwrites: bool) -> Result<u64, ClusterError> {
        if self.writes.len() >= MOST_OPEN {
            let why = format!("{MOST_OPEN} writes of this node have no outcome yet");
            return Err(ClusterError::Unavailable(why));
        }
        self.last += 1;
        self.writes.insert(self.last, Write { key, overwrites, state: State::UnderWay });
        Ok(self.last)
    }

    /// The oldest write that is not over.
    fn floor(&self) -> u64 {
        self.writes.keys().next().copied().unwrap_or(self.last + 1)
    }

    fn set(&mut self, sequence: u64, state: State) {
        if let Some(write) = self.writes.get_mut(&sequence) {
            write.state = state;
        }
    }

    /// A key with a write that was given up, and none under way.
    fn to_withdraw(&self) -> Option<ArtifactKey> {
        let state = |sequence| self.writes.get(sequence).map(|write| write.state);
        let of_key = self.keys.iter().find(|(_, of_key)| {
            let mut states = of_key.sequences.iter().filter_map(state);
            states.clone().any(|state| state == State::GivenUp)
                && states.all(|state| state != State::UnderWay)
        });
        of_key.map(|(key, _)| *key)
    }

    fn end<'a>(&mut self, sequences: impl IntoIterator<Item = &'a u64>) {
        for sequence in sequences {
            let Some(Write { key: Some(key), .. }) = self.writes.remove(sequence) else { continue };
            let Some(of_key) = self.keys.get_mut(&key) else { continue };
            of_key.sequences.retain(|known| known != sequence);
            of_key.changed.notify_waiters();
            if of_key.sequences.is_empty() {
                self.keys.remove(&key);
            }
        }
    }
}

impl Turn {
    /// The key that it writes.
    pub fn key(&self) -> &ArtifactKey {
        &self.key
    }

    /// Whether a later write took its place: it is not to be carried out.
    pub fn is_superseded(&self) -> bool {
        let open = self.open.lock();
        // One that a later write ended is not among them any more.
        let Some(of_key) = open.keys.get(&self.key) else { return true };
        let overwrites = |sequence| open.writes.get(sequence).is_some_and(|w| w.overwrites);
        !of_key.sequences.contains(&self.sequence)
            || of_key.sequences.iter().any(|later| *later > self.sequence && overwrites(later))
    }

    /// Whether no other write of the key is under way, or of unknown outcome.
    pub fn is_alone(&self) -> bool {
        let open = self.open.lock();
        open.keys.get(&self.key).is_some_and(|of_key| of_key.sequences == [self.sequence])
    }

    /// Returns when a later write takes its place.
    pub async fn superseded(&self) {
        self.changes_until(Self::is_superseded).await;
    }

    /// Returns when no earlier write of the key may still be carried out by itself.
    pub(crate) async fn is_first(&self) {
        self.changes_until(|turn| {
            let open = turn.open.lock();
            let earlier = open.keys.get(&turn.key).into_iter().flat_map(|of_key| &of_key.sequences);
            let mut earlier = earlier.take_while(|sequence| **sequence < turn.sequence);
            earlier.all(|sequence| {
                open.writes.get(sequence).is_none_or(|write| write.state != State::UnderWay)
            })
        })
        .await;
    }

    /// Gives the turn up to the later ones that took its place.
    pub(crate) fn give_way(self) -> Successors {
        let last = {
            let open = self.open.lock();
            let sequences = open.keys.get(&self.key).into_iter().flat_map(|k| &k.sequences);
            sequences.copied().max().unwrap_or(self.sequence)
        };
        let (key, changed, open) = (self.key, self.changed.clone(), self.open.clone());
        Successors { key, last, changed, open }
    }

    async fn changes_until(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            // Registered before the look: no change is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// The write is sent now: from here on its outcome is unknown until it is told.
    pub(crate) fn send(&mut self) -> Fence {
        self.sent = true;
        let open = self.open.lock();
        let of_key = open.keys.get(&self.key).into_iter().flat_map(|of_key| &of_key.sequences);
        let supersedes = of_key.copied().take_while(|earlier| *earlier < self.sequence).collect();
        let floor = open.floor().min(self.sequence);
        Fence { sequence: self.sequence, floor, supersedes, withdraw: None }
    }

    /// The outcome is known: the write and all that it superseded are over.
    pub(crate) fn end(&mut self, fence: &Fence) {
        self.sent = false;
        self.open.lock().end([self.sequence].iter().chain(&fence.supersedes));
    }
}

/// The writes that took the place of another one.
pub(crate) struct Successors {
    key: ArtifactKey,
    last: u64,
    changed: Arc<Notify>,
    open: Arc<Mutex<Open>>,
}

impl Successors {
    /// Returns when all of them are over: one is committed, or none ever will be.
    pub(crate) async fn over(&self) {
        loop {
            // Registered before the look: no change is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let over = {
                let open = self.open.lock();
                let of_key = open.keys.get(&self.key);
                of_key.is_none_or(|of_key| of_key.sequences.iter().all(|s| *s > self.last))
            };
            if over {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        let Some(write) = open.writes.get(&self.sequence) else { return };
        let overwrites = write.overwrites;
        let mut others = open.keys.get(&self.key).into_iter().flat_map(|k| &k.sequences);
        let has_earlier = others.clone().any(|other| *other < self.sequence);
        let is_last = !others.any(|other| *other > self.sequence);
        match (overwrites && has_earlier && is_last, self.sent) {
            // What came before it may have been applied, or may yet be.
            (true, _) => open.set(self.sequence, State::GivenUp),
            (false, true) => open.set(self.sequence, State::Unknown),
            (false, false) => return open.end([&self.sequence]),
        }
        drop(open);
        self.changed.notify_waiters();
        self.unknown.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;

    use super::*;

    fn key(n: u8) -> ArtifactKey {
        ArtifactKey::from_bytes([n; 32])
    }

    #[test]
    fn a_later_turn_supersedes_what_is_not_committed() {
        let writes = Writes::new().unwrap();
        let mut first = writes.turn(&key(1), true).unwrap();
        let other = writes.turn(&key(2), true).unwrap();
        assert!(!first.is_superseded());
        assert_eq!(
            first.send(),
            Fence { sequence: 1, floor: 1, supersedes: vec![], withdraw: None }
        );
        let mut second = writes.turn(&key(1), true).unwrap();
        assert!(first.is_superseded() && !other.is_superseded());
        let fence = second.send();
        assert_eq!(fence, Fence { sequence: 3, floor: 1, supersedes: vec![1], withdraw: None });
        second.end(&fence);
        assert!(first.is_superseded(), "also when its successor is over");
        drop(first);
        assert_eq!(writes.fence().unwrap(), None, "its outcome is known: it never applies");
    }

    #[test]
    fn what_gives_way_waits_for_the_outcome_of_what_came_later() {
        let writes = Writes::new().unwrap();
        let removal = writes.turn(&key(1), true).unwrap();
        let mut put = writes.turn(&key(1), true).unwrap();
        let successors = removal.give_way();
        let fence = put.send();
        let mut later = writes.turn(&key(1), true).unwrap();
        assert!(successors.over().now_or_never().is_none(), "the old value may be served yet");
        put.end(&fence);
        assert!(successors.over().now_or_never().is_some(), "whatever comes after that");
        let fence = later.send();
        later.end(&fence);
        assert!(successors.over().now_or_never().is_some());
    }

    #[test]
    fn what_creates_waits_and_supersedes_nobody() {
        let writes = Writes::new().unwrap();
        let mut first = writes.turn(&key(1), true).unwrap();
        let mut create = writes.turn(&key(1), false).unwrap();
        assert!(!first.is_superseded());
        assert!(create.is_first().now_or_never().is_none());
        let fence = first.send();
        drop(first);
        assert!(create.is_first().now_or_never().is_some(), "its outcome is unknown: fence it");
        assert_eq!(create.send().supersedes, [fence.sequence]);
    }

    #[test]
    fn unknown_outcomes_are_kept_until_they_are_fenced() {
        let writes = Writes::new().unwrap();
        for n in 0..3 {
            let mut turn = writes.turn(&key(n), true).unwrap();
            turn.send();
        }
        drop(writes.turn(&key(9), true).unwrap());
        let fence = writes.fence().unwrap().unwrap();
        let supersedes = vec![1, 2, 3];
        assert_eq!(fence, Fence { sequence: 5, floor: 1, supersedes, withdraw: None });
        writes.fenced(&fence, false);
        let fence = writes.fence().unwrap().unwrap();
        assert_eq!(fence.supersedes, [1, 2, 3, 5]);
        writes.fenced(&fence, true);
        assert_eq!(writes.fence().unwrap(), None);
        assert!(writes.open.lock().keys.is_empty());
        let mut next = writes.turn(&key(1), true).unwrap();
        assert_eq!(next.send().floor, 7, "what is over is forgotten");
    }

    #[test]
    fn what_came_before_a_write_that_was_given_up_is_withdrawn() {
        let writes = Writes::new().unwrap();
        let mut first = writes.turn(&key(1), true).unwrap();
        first.send();
        let second = writes.turn(&key(1), true).unwrap();
        drop(second);
        assert_eq!(writes.fence().unwrap(), None, "the first may still be heard of");
        drop(first);
        let fence = writes.fence().unwrap().unwrap();
        assert_eq!((fence.withdraw, &fence.supersedes[..]), (Some(key(1)), &[1, 2][..]));
        writes.fenced(&fence, true);
        assert_eq!(writes.fence().unwrap(), None);
        // A later one makes that needless.
        let mut first = writes.turn(&key(1), true).unwrap();
        first.send();
        drop(writes.turn(&key(1), true).unwrap());
        drop(first);
        let mut third = writes.turn(&key(1), true).unwrap();
        let fence = third.send();
        assert_eq!(fence.supersedes.len(), 2);
        third.end(&fence);
        drop(third);
        assert_eq!(writes.fence().unwrap(), None);
    }

    #[test]
    fn the_number_of_writes_is_bounded() {
        let writes = Writes::new().unwrap();
        let turns: Vec<_> = (0..MOST_OPEN).map(|_| writes.turn(&key(1), false).unwrap()).collect();
        assert!(matches!(writes.turn(&key(1), true), Err(ClusterError::Unavailable(_))));
        drop(turns);
        assert!(writes.turn(&key(1), true).is_ok());
    }
}
