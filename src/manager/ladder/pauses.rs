//! Pauses before something is tried again.
//!
//! Invariant: each is longer than the one before up to a limit, none is that of another
//! node, as chance has its part in it, and their number is bounded.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// While a caller waits: `times` of them, from a quarter of a second on.
pub(super) fn waiting(times: usize) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(4))
        .with_max_times(times)
        .build()
}

/// While nobody waits: half an hour in all. A failure that the cluster remembers costs a
/// look into the local index each time.
pub(super) fn behind() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(300))
        .with_max_times(13)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let all: Vec<Duration> = behind().collect();
        assert_eq!(all.len(), 13);
        assert!(all[0] >= Duration::from_secs(1) && all[0] < Duration::from_secs(3), "{all:?}");
        let sum: Duration = all.iter().sum();
        assert!(sum > Duration::from_secs(1200) && sum < Duration::from_secs(4800), "{sum:?}");
        assert_ne!(all, behind().collect::<Vec<_>>(), "two nodes do not ask at one time");
        assert_eq!(waiting(1).count(), 1);
    }
}
