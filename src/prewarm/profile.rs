//! What is asked for at which hour of the day, and so what will be.
//!
//! Invariant: a key counts for as much as the cluster used it, however many nodes look; at most
//! [`MOST`] keys are kept, those that are used most; a number that cannot be is none.

use std::collections::HashMap;

use kiln_proto::ArtifactKey;
use serde::{Deserialize, Serialize};

/// Hours of a day.
const HOURS: usize = 24;
/// Keys that are kept.
const MOST: usize = 4096;
/// How much of an hour's use is that of the last day: a week old counts a tenth.
const FRESH: f64 = 0.28;
/// How much the same hour of earlier days decides; the rest is the day as a whole.
const SAME_HOUR: f64 = 0.75;

/// Use by key and hour, in UTC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Hours since the Unix epoch at the last look.
    looked: Option<u64>,
    keys: HashMap<ArtifactKey, Use>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Use {
    /// The index's count at the last look.
    hits: u64,
    /// Hits an hour, by hour of the day.
    by_hour: [f64; HOURS],
}

impl Profile {
    /// Begins a look at what the index counts now. `hour`: since the Unix epoch.
    pub fn look(&mut self, hour: u64) -> Look<'_> {
        let passed = self.looked.map(|looked| hour.saturating_sub(looked));
        self.looked = Some(hour);
        Look { profile: self, hour, passed }
    }

    /// How much a key will be used in that hour, in hits; 0: it is not known.
    pub fn expected(&self, key: &ArtifactKey, hour: u64) -> f64 {
        let Some(of) = self.keys.get(key) else { return 0.0 };
        let same = of.by_hour[(hour % HOURS as u64) as usize];
        SAME_HOUR * same + (1.0 - SAME_HOUR) * of.of_a_day() / HOURS as f64
    }

    /// Keeps those that are used most.
    fn forget(&mut self) {
        if self.keys.len() <= MOST {
            return;
        }
        let mut all: Vec<(ArtifactKey, f64)> =
            self.keys.iter().map(|(key, of)| (*key, of.of_a_day())).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (key, _) in &all[MOST..] {
            self.keys.remove(key);
        }
    }

    /// Keys that are known.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a profile that was read can be one.
    pub(super) fn is_sound(&self) -> bool {
        let rates = self.keys.values().flat_map(|of| &of.by_hour);
        self.keys.len() <= MOST && rates.clone().all(|rate| rate.is_finite() && *rate >= 0.0)
    }
}

/// One look at all keys.
pub struct Look<'p> {
    profile: &'p mut Profile,
    hour: u64,
    /// Hours since the look before it; `None`: there was none.
    passed: Option<u64>,
}

impl Look<'_> {
    /// Takes in what the index counts of a key; returns how much it will be used in the hour
    /// `wanted`.
    pub fn count(&mut self, key: &ArtifactKey, hits: u64, wanted: u64) -> f64 {
        let passed = self.passed.filter(|passed| *passed > 0);
        match self.profile.keys.get_mut(key) {
            Some(known) => known.count(hits, self.hour, passed),
            None => {
                let by_hour = first(hits, self.hour, passed);
                self.profile.keys.insert(*key, Use { hits, by_hour });
            }
        }
        let expected = self.profile.expected(key, wanted);
        if self.profile.keys.len() >= 2 * MOST {
            self.profile.forget();
        }
        expected
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.profile.forget();
    }
}

/// By hour, of a key that is met for the first time: when in the day it was used is not
/// known unless it is new.
fn first(hits: u64, hour: u64, passed: Option<u64>) -> [f64; HOURS] {
    let hours = passed.unwrap_or(HOURS as u64);
    let share = hits as f64 / hours as f64;
    let mut by_hour = [0.0; HOURS];
    for at in last(hour, hours) {
        by_hour[at] = share;
    }
    by_hour
}

impl Use {
    fn count(&mut self, hits: u64, hour: u64, passed: Option<u64>) {
        // An entry that went and came back counts from nothing.
        let new = hits.checked_sub(self.hits).unwrap_or(hits) as f64;
        self.hits = hits;
        match passed {
            Some(passed) => {
                for at in last(hour, passed) {
                    self.by_hour[at] += FRESH * (new / passed as f64 - self.by_hour[at]);
                }
            }
            // Twice in an hour: it is not over.
            None => self.by_hour[(hour % HOURS as u64) as usize] += FRESH * new,
        }
    }

    fn of_a_day(&self) -> f64 {
        self.by_hour.iter().sum()
    }
}

/// The hours of the day that passed before `hour`, so many and at most a day of them.
fn last(hour: u64, passed: u64) -> impl Iterator<Item = usize> {
    let day = HOURS as u64;
    (1..=passed.min(day)).map(move |back| ((hour + day - back % day) % day) as usize)
}

#[cfg(test)]
mod tests {
    use kiln_proto::Digest;

    use super::*;

    fn key(name: &str) -> ArtifactKey {
        ArtifactKey::from_bytes(*Digest::of(name.as_bytes()).as_bytes())
    }

    fn look(profile: &mut Profile, hour: u64, counts: &[(ArtifactKey, u64)]) {
        let mut look = profile.look(hour);
        for (key, hits) in counts {
            look.count(key, *hits, hour);
        }
    }

    /// A week in which one key is used at nine in the morning, and one evenly.
    fn week() -> Profile {
        let mut profile = Profile::default();
        let (mut morning, mut even) = (0, 0);
        for hour in 0..7 * 24 {
            morning += if hour % 24 == 9 { 20 } else { 0 };
            even += 1;
            // The look is at the end of the hour.
            look(&mut profile, hour + 1, &[(key("morning"), morning), (key("even"), even)]);
        }
        profile
    }

    #[test]
    fn what_is_used_in_the_morning_is_expected_in_the_morning() {
        let profile = week();
        let at = |name, hour: u64| profile.expected(&key(name), 100 * 24 + hour);
        assert!(at("morning", 9) > 3.0 * at("even", 9), "{}", at("morning", 9));
        for hour in [0, 8, 10, 20] {
            assert!(at("even", hour) > at("morning", hour), "at {hour}");
        }
        assert!((at("even", 3) - 1.0).abs() < 0.2, "{}", at("even", 3));
        assert!(at("unknown", 9) == 0.0);
    }

    #[test]
    fn a_fresh_profile_goes_by_the_whole() {
        let mut profile = Profile::default();
        look(&mut profile, 5, &[(key("a"), 240), (key("b"), 24)]);
        for hour in 0..24 {
            assert!(profile.expected(&key("a"), hour) > 5.0 * profile.expected(&key("b"), hour));
        }
    }

    #[test]
    fn a_habit_that_ends_is_forgotten() {
        let mut profile = week();
        let before = profile.expected(&key("morning"), 9);
        for hour in 7 * 24..21 * 24 {
            look(&mut profile, hour + 1, &[(key("morning"), 140), (key("even"), hour)]);
        }
        assert!(profile.expected(&key("morning"), 9) < before / 50.0);
    }

    #[test]
    fn a_node_that_was_away_and_a_count_that_begins_anew_do_no_harm() {
        let mut profile = week();
        look(&mut profile, 60 * 24, &[(key("morning"), 3), (key("even"), u64::MAX)]);
        look(&mut profile, 10, &[(key("morning"), 1)]);
        assert!(profile.is_sound());
    }

    #[test]
    fn the_most_used_are_kept() {
        let mut profile = Profile::default();
        let all: Vec<_> = (0..3 * MOST as u64).map(|n| (key(&n.to_string()), n)).collect();
        look(&mut profile, 1, &all);
        assert_eq!(profile.len(), MOST);
        assert!(profile.expected(&key("9"), 1) == 0.0);
        assert!(profile.expected(&key(&(3 * MOST - 1).to_string()), 1) > 0.0);
    }
}
