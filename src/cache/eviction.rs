//! Who goes first when room is short.
//!
//! Invariant: a rank depends on the entry alone, not on the time of the
//! question, so entries stay sorted while they are not used.
//!
//! "Value decayed by the time since use" seems to break that: the value of an
//! entry falls while it lies there. But a decay by half-lives multiplies all
//! values by the same factor in the same time, so it never swaps two entries:
//! comparing `v * 2^(-(now - used) / h)` is comparing `log2(v) + used / h`. The
//! latter is the rank; finding a victim is a look at the front of a sorted set,
//! and the clock is read only when an entry is used.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Priority;

/// What a policy may look at.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Bytes.
    pub size: u64,
    /// Seconds of compilation that a hit saves.
    pub compile_seconds: f64,
    /// Its class.
    pub priority: Priority,
    /// Milliseconds since the Unix epoch.
    pub last_used_ms: u64,
}

/// An order of leaving: the lowest rank goes first.
pub trait Policy: Send + Sync {
    /// How much it is worth to keep; within the tier only, in no unit.
    fn rank(&self, candidate: &Candidate) -> Rank;
}

/// A place in the order of leaving.
#[derive(Debug, Clone, Copy)]
pub struct Rank {
    /// Compared first.
    pub class: Priority,
    /// Compared within the class.
    pub worth: f64,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.class.cmp(&other.class).then(self.worth.total_cmp(&other.worth))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

/// Priority class, then compile-seconds saved per byte, decayed since the last use.
#[derive(Debug, Clone, Copy)]
pub struct CostAware {
    /// Time in which an unused entry loses half its worth.
    pub half_life: Duration,
}

/// A compile that took no measurable time still saved a round trip; and a
/// division by a size or a time of zero would make every entry equal.
const LEAST_SECONDS: f64 = 1e-3;

impl Policy for CostAware {
    fn rank(&self, candidate: &Candidate) -> Rank {
        let seconds = match candidate.compile_seconds {
            s if s.is_finite() => s.max(LEAST_SECONDS),
            _ => LEAST_SECONDS,
        };
        let saved_per_byte = seconds / candidate.size.max(1) as f64;
        let half_lives = candidate.last_used_ms as f64 / self.half_life.as_millis().max(1) as f64;
        Rank { class: candidate.priority, worth: saved_per_byte.log2() + half_lives }
    }
}

/// Least recently used, whatever the class.
#[derive(Debug, Clone, Copy)]
pub struct Lru;

impl Policy for Lru {
    fn rank(&self, candidate: &Candidate) -> Rank {
        Rank { class: Priority::Normal, worth: candidate.last_used_ms as f64 }
    }
}

/// Which policy, in the configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EvictionSettings {
    /// Priority, then compile-seconds per byte, decayed.
    CostAware {
        /// Time in which an unused entry loses half its worth.
        #[serde(with = "humantime_serde", default = "a_day")]
        half_life: Duration,
    },
    /// Least recently used.
    Lru,
}

const fn a_day() -> Duration {
    Duration::from_secs(24 * 60 * 60)
}

impl Default for EvictionSettings {
    fn default() -> Self {
        Self::CostAware { half_life: a_day() }
    }
}

impl EvictionSettings {
    /// The policy itself.
    pub fn policy(&self) -> Box<dyn Policy> {
        match *self {
            Self::CostAware { half_life } => Box::new(CostAware { half_life }),
            Self::Lru => Box::new(Lru),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HALF_LIFE: Duration = Duration::from_secs(3600);

    fn entry(size: u64, compile_seconds: f64, last_used_ms: u64) -> Candidate {
        Candidate { size, compile_seconds, priority: Priority::Normal, last_used_ms }
    }

    fn cost_aware(candidate: Candidate) -> Rank {
        CostAware { half_life: HALF_LIFE }.rank(&candidate)
    }

    #[test]
    fn what_saves_more_seconds_a_byte_stays_longer() {
        assert!(cost_aware(entry(1000, 30.0, 0)) > cost_aware(entry(1000, 3.0, 0)));
        assert!(cost_aware(entry(1000, 30.0, 0)) > cost_aware(entry(100_000, 30.0, 0)));
    }

    #[test]
    fn worth_halves_in_a_half_life() {
        let ms = HALF_LIFE.as_millis() as u64;
        // Three half-lives make an eighth: ten times the seconds outlast that...
        assert!(cost_aware(entry(1, 10.0, 0)) > cost_aware(entry(1, 1.0, 3 * ms)));
        // ... and four make a sixteenth, which they do not.
        assert!(cost_aware(entry(1, 10.0, 0)) < cost_aware(entry(1, 1.0, 4 * ms)));
    }

    #[test]
    fn class_comes_before_worth() {
        let low = Candidate { priority: Priority::Low, ..entry(1, 1e6, u64::MAX) };
        let high = Candidate { priority: Priority::High, ..entry(1 << 40, 0.0, 0) };
        assert!(cost_aware(low) < cost_aware(entry(1 << 40, 0.0, 0)));
        assert!(cost_aware(high) > cost_aware(entry(1, 1e6, u64::MAX)));
        assert!(Lru.rank(&low) > Lru.rank(&high), "LRU looks at nothing but the last use");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The static rank orders as the decaying value does, at any later time.
        #[test]
        fn the_rank_orders_as_the_decayed_value(
            a in (1u64..1 << 40, 0.01f64..1e5, 0u64..1 << 36),
            b in (1u64..1 << 40, 0.01f64..1e5, 0u64..1 << 36),
            later in 0u64..1 << 36,
        ) {
            let now = a.2.max(b.2) + later;
            let log_value = |(size, seconds, used): (u64, f64, u64)| {
                let age = (now - used) as f64 / HALF_LIFE.as_millis() as f64;
                (seconds / size as f64).log2() - age
            };
            let (x, y) = (log_value(a), log_value(b));
            prop_assume!((x - y).abs() > 1e-3);
            let ranks = (cost_aware(entry(a.0, a.1, a.2)), cost_aware(entry(b.0, b.1, b.2)));
            prop_assert_eq!(x > y, ranks.0 > ranks.1);
        }

        /// No input makes an order that contradicts itself or panics.
        #[test]
        fn any_cost_has_a_rank(bits in any::<u64>(), size in any::<u64>(), used in any::<u64>()) {
            let rank = cost_aware(entry(size, f64::from_bits(bits), used));
            prop_assert!(rank.worth.is_finite());
        }
    }
}
