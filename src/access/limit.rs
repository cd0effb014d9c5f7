//! A bound on how often something is told.
//!
//! Invariant: at most [`MOST`] times a second of whoever is told apart, and what was left out
//! is counted until the next time; memory is bounded, whoever asks.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::clock;

/// A second.
const MOST: u64 = 10;
/// Callers that are told apart at once. Those of an earlier second, of whom nothing is owed,
/// make room; without room all share one bound.
const CALLERS: usize = 8192;

/// Told so often at most, of each caller.
#[derive(Debug, Default)]
pub(super) struct Limit(Mutex<HashMap<String, Told>>);

#[derive(Debug, Default)]
struct Told {
    second: u64,
    times: u64,
    left_out: u64,
}

impl Limit {
    /// How many of this caller were left out before, where this one may be told.
    pub(super) fn tell(&self, caller: &str) -> Option<u64> {
        self.tell_at(caller, clock::unix_ms() / 1000)
    }

    fn tell_at(&self, caller: &str, second: u64) -> Option<u64> {
        let mut callers = self.0.lock();
        if callers.len() >= CALLERS && !callers.contains_key(caller) {
            callers.retain(|_, told| told.second == second || told.left_out > 0);
        }
        let caller =
            if callers.len() < CALLERS || callers.contains_key(caller) { caller } else { "" };
        let told = callers.entry(caller.to_owned()).or_default();
        if told.second != second {
            (told.second, told.times) = (second, 0);
        }
        told.times += 1;
        if told.times <= MOST {
            return Some(std::mem::take(&mut told.left_out));
        }
        told.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_counted_and_told_with_the_next() {
        let limit = Limit::default();
        for _ in 0..MOST {
            assert_eq!(limit.tell_at("a", 7), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(limit.tell_at("a", 7), None);
        }
        assert_eq!(limit.tell_at("b", 7), Some(0), "another is told of all the same");
        assert_eq!(limit.tell_at("a", 8), Some(5));
        assert_eq!(limit.tell_at("a", 8), Some(0));
    }

    #[test]
    fn any_number_of_callers_takes_bounded_memory() {
        let limit = Limit::default();
        for caller in 0..3 * CALLERS {
            limit.tell_at(&caller.to_string(), 7);
        }
        assert!(limit.0.lock().len() <= CALLERS + 1);
    }
}
