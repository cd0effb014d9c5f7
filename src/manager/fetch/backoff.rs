//! Addresses that did not answer lately.
//!
//! Invariant: an address that fails is asked again after a pause that doubles up to
//! [`LONGEST`]; at most [`MOST`] addresses are remembered. Nothing here says that
//! bytes are absent: who is not asked is unreachable.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(8);
const MOST: usize = 4096;

/// Pauses by address.
#[derive(Default)]
pub(super) struct Backoff(Mutex<HashMap<String, Pause>>);

struct Pause {
    length: Duration,
    until: Instant,
}

impl Backoff {
    /// Whether `address` is to be left alone at `now`.
    pub(super) fn is_paused(&self, address: &str, now: Instant) -> bool {
        self.0.lock().get(address).is_some_and(|pause| now < pause.until)
    }

    /// It answered.
    pub(super) fn answered(&self, address: &str) {
        self.0.lock().remove(address);
    }

    /// It did not, at `now`.
    pub(super) fn failed(&self, address: &str, now: Instant) {
        let mut pauses = self.0.lock();
        if pauses.len() >= MOST {
            pauses.retain(|_, pause| now < pause.until);
        }
        let length = pauses.get(address).map_or(FIRST, |pause| (pause.length * 2).min(LONGEST));
        if pauses.len() < MOST || pauses.contains_key(address) {
            pauses.insert(address.to_owned(), Pause { length, until: now + length });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_within_bounds_and_ends_with_an_answer() {
        let (backoff, mut now) = (Backoff::default(), Instant::now());
        assert!(!backoff.is_paused("a", now));
        backoff.failed("a", now);
        assert!(backoff.is_paused("a", now) && !backoff.is_paused("b", now));
        now += FIRST;
        assert!(!backoff.is_paused("a", now));
        for _ in 0..20 {
            backoff.failed("a", now);
        }
        assert!(backoff.is_paused("a", now + LONGEST / 2));
        assert!(!backoff.is_paused("a", now + LONGEST));
        backoff.answered("a");
        assert!(!backoff.is_paused("a", now));
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let (backoff, now) = (Backoff::default(), Instant::now());
        for n in 0..2 * MOST {
            backoff.failed(&n.to_string(), now);
        }
        assert_eq!(backoff.0.lock().len(), MOST);
    }
}
