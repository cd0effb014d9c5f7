//! The time of day, as this machine's clock has it.
//!
//! Invariant: nothing but what is shown to people, and forecasts and ages, rests on it; what must
//! be right is counted by the monotonic clock, or by the leader's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since the Unix epoch. Nothing, where the clock was never set and is before it.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    milliseconds(since_epoch())
}

/// The whole milliseconds of `time`; the largest number, where they are more.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
