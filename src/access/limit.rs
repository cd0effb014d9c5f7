//! A bound on how often something is told.
//!
//! Invariant: at most [`MOST`] times a second, and what was left out is counted until the
//! next time.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock;

/// A second.
const MOST: u64 = 10;

/// Told so often at most.
#[derive(Debug, Default)]
pub(super) struct Limit {
    second: AtomicU64,
    told: AtomicU64,
    left_out: AtomicU64,
}

impl Limit {
    /// How many were left out before, where this one may be told.
    pub(super) fn tell(&self) -> Option<u64> {
        self.tell_at(clock::unix_ms() / 1000)
    }

    fn tell_at(&self, second: u64) -> Option<u64> {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.told.store(0, Ordering::Relaxed);
        }
        if self.told.fetch_add(1, Ordering::Relaxed) < MOST {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
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
            assert_eq!(limit.tell_at(7), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(limit.tell_at(7), None);
        }
        assert_eq!(limit.tell_at(8), Some(5));
        assert_eq!(limit.tell_at(8), Some(0));
    }
}
