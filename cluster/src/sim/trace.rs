//! What happened in a run, in order, with the simulated time of each event.
//!
//! Invariant: a run is its trace: two runs of one seed that differ anywhere differ here.

use std::{collections::BTreeMap, fmt::Display};

use kiln_proto::{Digest, Hasher};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The events of one run.
pub(super) struct Trace {
    start: Instant,
    shown: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    hasher: Hasher,
    events: u64,
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<String>,
    troubles: i64,
}

impl Trace {
    /// No events yet; time begins now. `shown`: print each.
    pub(super) fn new(shown: bool) -> Self {
        let inner = Inner {
            hasher: Hasher::new(),
            events: 0,
            counts: BTreeMap::new(),
            violations: Vec::new(),
            troubles: 0,
        };
        Self { start: Instant::now(), shown, inner: Mutex::new(inner) }
    }

    /// Microseconds since the run began.
    pub(super) fn micros(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    pub(super) fn event(&self, what: impl Display) {
        let line = format!("{:>12.6} {what}\n", self.start.elapsed().as_secs_f64());
        if self.shown {
            print!("{line}");
        }
        let mut inner = self.inner.lock();
        inner.hasher.update(line.as_bytes());
        inner.events += 1;
    }

    /// Counts one more of `what`.
    pub(super) fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    pub(super) fn add(&self, what: &'static str, count: u64) {
        *self.inner.lock().counts.entry(what).or_default() += count;
    }

    /// One more thing goes wrong, or one fewer.
    pub(super) fn trouble(&self, more: i64) {
        self.inner.lock().troubles += more;
    }

    pub(super) fn in_trouble(&self) -> bool {
        self.inner.lock().troubles > 0
    }

    pub(super) fn counted(&self, what: &str) -> u64 {
        self.inner.lock().counts.get(what).copied().unwrap_or(0)
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inner.lock().counts.clone()
    }

    /// Something that must never be.
    pub(super) fn violation(&self, what: String) {
        self.event(format_args!("VIOLATION {what}"));
        self.inner.lock().violations.push(what);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.inner.lock().violations.clone()
    }

    /// How many events, and the digest of them all.
    pub(super) fn digest(&self) -> (u64, Digest) {
        let inner = self.inner.lock();
        (inner.events, inner.hasher.finalize().into())
    }
}
