//! Whether the store is worth asking.
//!
//! Invariant: while the store is down, one caller per pause finds out whether it
//! is back; all others are told at once and wait for nothing.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::cache::{Health, TierError, TierName};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

pub(super) struct Gate {
    /// A folder's file that is there as long as the folder is mounted.
    marker: Option<PathBuf>,
    state: Mutex<Option<Down>>,
}

struct Down {
    why: String,
    pause: Duration,
    until: Instant,
}

impl Gate {
    pub(super) fn new(marker: Option<PathBuf>) -> Self {
        Self { marker, state: Mutex::new(None) }
    }

    /// Lets the caller try, or says why not.
    pub(super) fn enter(&self) -> Result<(), TierError> {
        self.enter_at(Instant::now())
    }

    fn enter_at(&self, now: Instant) -> Result<(), TierError> {
        if let Some(down) = &mut *self.state.lock() {
            if now < down.until {
                return Err(unavailable(down.why.clone()));
            }
            // This caller tries; the next ones wait for its result.
            down.until = now + down.pause;
        }
        let Some(marker) = &self.marker else { return Ok(()) };
        // Without this an unmounted folder would answer "not found" to every
        // question, and take every upload onto the wrong device.
        marker.symlink_metadata().map(drop).map_err(|e| {
            let why = format!("{}: {e}; is the folder mounted?", marker.display());
            self.failed(why.clone());
            unavailable(why)
        })
    }

    pub(super) fn succeeded(&self) {
        *self.state.lock() = None;
    }

    pub(super) fn failed(&self, why: String) {
        self.failed_at(Instant::now(), why);
    }

    fn failed_at(&self, now: Instant, why: String) {
        let mut state = self.state.lock();
        let pause = match &*state {
            Some(down) => (down.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        *state = Some(Down { why, pause, until: now + pause });
    }

    pub(super) fn health(&self) -> Health {
        match &*self.state.lock() {
            Some(down) => Health::Down { why: down.why.clone() },
            None => Health::Up,
        }
    }
}

fn unavailable(why: String) -> TierError {
    TierError::Unavailable { tier: TierName::Object, why }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_a_pause_tries_a_store_that_is_down() {
        let gate = Gate::new(None);
        let mut now = Instant::now();
        assert!(gate.enter_at(now).is_ok() && gate.enter_at(now).is_ok());
        gate.failed_at(now, "away".into());
        assert!(gate.enter_at(now).unwrap_err().to_string().contains("away"));
        now += FIRST_PAUSE;
        assert!(gate.enter_at(now).is_ok(), "the one that tries");
        assert!(gate.enter_at(now).is_err(), "the others do not wait for it");
        gate.failed_at(now, "still away".into());
        now += FIRST_PAUSE;
        assert!(gate.enter_at(now).is_err(), "the pause grows");
        for _ in 0..20 {
            gate.failed_at(now, "away".into());
        }
        now += LONGEST_PAUSE;
        assert!(gate.enter_at(now).is_ok(), "and is bounded");
        gate.succeeded();
        assert!(gate.enter_at(now).is_ok() && gate.enter_at(now).is_ok());
        assert_eq!(gate.health(), Health::Up);
    }
}
