//! The time of leases and negative entries, counted by the leader.
//!
//! Invariant: only a leader acts on a deadline, and only on its own monotonic
//! clock. A new leader gives every live lease a full time to live, and the time
//! in which a leader did not run counts for nobody, so a lease whose holder
//! heartbeats ends only when the holder says so.

use std::{collections::HashMap, time::Duration};

use kiln_proto::{ArtifactKey, FailureKind, NodeId, Token};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    codec,
    environment::WallClock,
    state::Event,
    table::{FailureRecord, LeaseRecord, StateError, Table, View},
};

/// Most negative entries at once; each is in every replica, with its message.
const MOST_FAILURES: usize = 65_536;
/// Ticks in one time to live.
const TICKS: u32 = 8;

/// How long things live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetimes {
    /// A lease without heartbeats.
    pub lease: Duration,
    /// A failure that follows from the request alone.
    pub failure: Duration,
    /// A failure for want of time or memory, which another try may have.
    pub resource_failure: Duration,
}

impl Lifetimes {
    fn of_failure(&self, kind: FailureKind) -> Duration {
        match kind {
            FailureKind::Timeout | FailureKind::OutOfMemory => self.resource_failure,
            _ => self.failure,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    token: Token,
    at: Instant,
}

/// A lease as it was granted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant {
    pub key: ArtifactKey,
    pub token: Token,
    pub node: NodeId,
    pub request: u64,
}

/// A live lease.
struct Live {
    node: NodeId,
    request: u64,
    deadline: Deadline,
}

#[derive(Default)]
struct Inner {
    leases: HashMap<ArtifactKey, Live>,
    failures: HashMap<ArtifactKey, Deadline>,
    last_tick: Option<Instant>,
}

/// What has run out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    pub leases: Vec<(ArtifactKey, Token)>,
    pub failures: Vec<(ArtifactKey, Token)>,
}

/// The live leases and negative entries of the replica, with their deadlines.
pub(crate) struct Deadlines {
    lifetimes: Lifetimes,
    clock: WallClock,
    inner: Mutex<Inner>,
}

impl Deadlines {
    pub(crate) fn new(lifetimes: Lifetimes, clock: WallClock) -> Self {
        Self { lifetimes, clock, inner: Mutex::default() }
    }

    /// When a failure of `kind` that happens now is lifted, in Unix milliseconds.
    pub(crate) fn until_unix_ms(&self, kind: FailureKind) -> u64 {
        milliseconds((self.clock)() + self.lifetimes.of_failure(kind))
    }

    /// What this node's clock says, in Unix milliseconds.
    pub(crate) fn now_unix_ms(&self) -> u64 {
        milliseconds((self.clock)())
    }

    /// How often [`Self::due`] wants to be asked.
    pub(crate) fn tick(&self) -> Duration {
        self.lifetimes.lease / TICKS
    }

    /// Reads everything from the state, with full times to live.
    pub(crate) fn reload(&self, view: &impl View) -> Result<(), StateError> {
        let now = Instant::now();
        let mut inner = Inner::default();
        for (key, value) in view.all(Table::Leases)? {
            let lease: LeaseRecord = codec::decode(&value)?;
            if let Ok(key) = ArtifactKey::try_from(key.as_slice()) {
                let deadline = Deadline { token: lease.token, at: now + self.lifetimes.lease };
                let LeaseRecord { node, request, .. } = lease;
                inner.leases.insert(key, Live { node, request, deadline });
            }
        }
        for (key, value) in view.all(Table::Failures)? {
            let failure: FailureRecord = codec::decode(&value)?;
            if let Ok(key) = ArtifactKey::try_from(key.as_slice()) {
                let at = self.lift_at(failure.until_unix_ms, now);
                inner.failures.insert(key, Deadline { token: failure.token, at });
            }
        }
        inner.last_tick = self.inner.lock().last_tick;
        *self.inner.lock() = inner;
        Ok(())
    }

    /// Never later than a failure of today would be lifted, whatever clock the
    /// leader had that wrote the entry.
    fn lift_at(&self, until_unix_ms: u64, now: Instant) -> Instant {
        let left = Duration::from_millis(until_unix_ms).saturating_sub((self.clock)());
        now + left.min(self.lifetimes.failure.max(self.lifetimes.resource_failure))
    }

    /// Follows what was applied.
    pub(crate) fn follow(&self, event: &Event) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        match *event {
            Event::LeaseGranted { key, token, node, request } => {
                let deadline = Deadline { token, at: now + self.lifetimes.lease };
                inner.leases.insert(key, Live { node, request, deadline });
            }
            Event::LeaseEnded { key, .. } => drop(inner.leases.remove(&key)),
            Event::Failed { key, token, until_unix_ms } => {
                let at = self.lift_at(until_unix_ms, now);
                inner.failures.insert(key, Deadline { token, at });
            }
            Event::Lifted { key, .. } => drop(inner.failures.remove(&key)),
            _ => {}
        }
    }

    /// This node became the leader: every live lease starts afresh.
    pub(crate) fn start(&self, now: Instant) {
        let mut inner = self.inner.lock();
        for live in inner.leases.values_mut() {
            live.deadline.at = now + self.lifetimes.lease;
        }
        inner.last_tick = Some(now);
    }

    /// A heartbeat: whether `token` is live.
    pub(crate) fn renew(
        &self,
        key: &ArtifactKey,
        token: Token,
        from: NodeId,
        now: Instant,
    ) -> bool {
        match self.inner.lock().leases.get_mut(key) {
            Some(live) if live.deadline.token == token && live.node == from => {
                live.deadline.at = now + self.lifetimes.lease;
                true
            }
            _ => false,
        }
    }

    /// Whether one more failure may be remembered; where not, its key is free at once.
    pub(crate) fn takes_failures(&self) -> bool {
        let takes = self.inner.lock().failures.len() < MOST_FAILURES;
        if !takes {
            metrics::counter!("kiln_index_failures_dropped_total").increment(1);
        }
        takes
    }

    /// How many leases are live in this replica.
    pub(crate) fn live(&self) -> usize {
        self.inner.lock().leases.len()
    }

    /// Whether `token` is live in this replica.
    pub(crate) fn is_live(&self, key: &ArtifactKey, token: Token) -> bool {
        self.inner.lock().leases.get(key).is_some_and(|live| live.deadline.token == token)
    }

    /// All live leases, the oldest first.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let inner = self.inner.lock();
        let grant = |(key, live): (&ArtifactKey, &Live)| {
            let Live { node, request, deadline } = *live;
            Grant { key: *key, token: deadline.token, node, request }
        };
        let mut grants: Vec<_> = inner.leases.iter().map(grant).collect();
        grants.sort_unstable_by_key(|grant| grant.token);
        grants
    }

    /// The live lease that was granted to this `request` of `node`.
    pub(crate) fn granted_to(
        &self,
        key: &ArtifactKey,
        node: NodeId,
        request: u64,
    ) -> Option<Token> {
        let inner = self.inner.lock();
        let live = inner.leases.get(key).filter(|l| (l.node, l.request) == (node, request));
        live.map(|live| live.deadline.token)
    }

    /// How many leases live, and of at most `most` the key, the holder and the token.
    pub(crate) fn leases(&self, most: usize) -> (usize, Vec<(ArtifactKey, NodeId, Token)>) {
        let inner = self.inner.lock();
        let some = inner.leases.iter().take(most);
        (
            inner.leases.len(),
            some.map(|(key, live)| (*key, live.node, live.deadline.token)).collect(),
        )
    }

    /// What has run out at `now`. Time in which this was not asked for much
    /// longer than a tick is a pause of the leader, and is given back.
    pub(crate) fn due(&self, now: Instant) -> Due {
        let mut inner = self.inner.lock();
        let since = inner.last_tick.map_or(Duration::ZERO, |last| now - last);
        inner.last_tick = Some(now);
        if since > self.tick() * 2 {
            tracing::warn!(?since, "this leader was paused: leases get the time back");
            for live in inner.leases.values_mut() {
                live.deadline.at += since;
            }
        }
        let leases = inner.leases.iter().map(|(key, live)| (key, live.deadline));
        let leases = leases.filter(|(_, d)| d.at <= now);
        let failures = inner.failures.iter().filter(|(_, d)| d.at <= now);
        Due {
            leases: leases.map(|(key, d)| (*key, d.token)).collect(),
            failures: failures.map(|(key, d)| (*key, d.token)).collect(),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::environment::system_clock;

    const TTL: Duration = Duration::from_secs(8);
    const TICK: Duration = Duration::from_secs(1);

    fn deadlines() -> Deadlines {
        let lifetimes = Lifetimes { lease: TTL, failure: TTL, resource_failure: TTL };
        Deadlines::new(lifetimes, system_clock())
    }

    fn key(n: u8) -> ArtifactKey {
        ArtifactKey::from_bytes([n; 32])
    }

    fn granted(deadlines: &Deadlines, n: u8) {
        let (key, token) = (key(n), Token(n.into()));
        deadlines.follow(&Event::LeaseGranted { key, token, node: 1, request: 1 });
    }

    /// Ticks on until `until`, renewing key 1; returns what came due on the way.
    fn run(deadlines: &Deadlines, from: Instant, until: Duration) -> Vec<(ArtifactKey, Token)> {
        let mut due = Vec::new();
        let mut passed = Duration::ZERO;
        while passed < until {
            passed += TICK;
            assert!(deadlines.renew(&key(1), Token(1), 1, from + passed));
            due.extend(deadlines.due(from + passed).leases);
        }
        due
    }

    #[test]
    fn a_lease_without_heartbeats_runs_out_and_one_with_them_does_not() {
        let deadlines = deadlines();
        granted(&deadlines, 1);
        granted(&deadlines, 2);
        let (all, shown) = deadlines.leases(1);
        assert!(all == 2 && shown.len() == 1 && shown[0].1 == 1, "{shown:?}");
        let start = Instant::now();
        deadlines.start(start);
        assert!(run(&deadlines, start, TTL - TICK).is_empty());
        let due = run(&deadlines, start + TTL - TICK, TICK);
        assert_eq!(due, [(key(2), Token(2))]);
    }

    #[test]
    fn a_leader_that_was_paused_expires_nothing_because_of_it() {
        let deadlines = deadlines();
        granted(&deadlines, 1);
        let start = Instant::now();
        deadlines.start(start);
        assert_eq!(deadlines.due(start + TICK), Due::default());
        let woken = start + TICK + TTL * 10;
        assert_eq!(deadlines.due(woken), Due::default(), "the pause expired a live lease");
        assert!(deadlines.renew(&key(1), Token(1), 1, woken), "the holder can still renew");
        assert_eq!(deadlines.due(woken + TICK), Due::default());
    }

    #[test]
    fn a_new_leader_gives_a_full_time_to_live() {
        let deadlines = deadlines();
        granted(&deadlines, 1);
        let elected = Instant::now() + TTL * 3;
        deadlines.start(elected);
        for tick in 1..8 {
            assert_eq!(deadlines.due(elected + TICK * tick), Due::default());
        }
        assert_eq!(deadlines.due(elected + TTL).leases, [(key(1), Token(1))]);
    }

    #[test]
    fn an_old_token_renews_nothing() {
        let deadlines = deadlines();
        granted(&deadlines, 1);
        assert!(!deadlines.renew(&key(1), Token(9), 1, Instant::now()));
        deadlines.follow(&Event::LeaseEnded { key: key(1), token: Token(1) });
        assert!(!deadlines.renew(&key(1), Token(1), 1, Instant::now()));
    }
}
