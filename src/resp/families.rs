//! Which GETs that miss are worth a wait for somebody's SET.
//!
//! A family is what keys have in common: their hash-like and numeric parts
//! replaced by `*`. In some families a client that misses computes the value and
//! SETs it, so others do well to wait for that; in others nobody ever SETs.
//!
//! Invariant: a family in which misses were not followed by SETs makes nobody
//! wait until they are again; what was learned is bounded and only a hint.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::pattern::matches;

/// Families remembered; the whole memory is dropped when there are more.
const MOST_FAMILIES: usize = 4096;
/// Keys are looked at up to here.
const LONGEST_FAMILY: usize = 256;
/// Hash-like parts have at least so many characters.
const SHORTEST_HASH: usize = 16;
/// And so many digits among them: `autograd-experimental` is a word.
const DIGITS_OF_HASH: usize = 3;
/// Older outcomes count half when there are more than this.
const REMEMBERED: f32 = 32.0;
/// A family of which nothing is known is trusted this much: one miss without a
/// SET is enough to doubt it, one whose client left at once is not.
const TRUST: f32 = 0.5;

/// A family's name.
pub(super) type Family = Arc<[u8]>;

/// How a miss ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With a SET.
    Filled,
    /// The client left: it may have been killed in the middle.
    Abandoned,
    /// Without a SET.
    Unfilled,
}

/// What this node knows of families.
pub(super) struct Families {
    /// Milliseconds.
    wait: AtomicU64,
    told: Vec<(String, Duration)>,
    learned: Mutex<HashMap<Family, Record>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Record {
    missed: f32,
    filled: f32,
}

impl Record {
    fn waits(self) -> bool {
        self.filled + TRUST >= (self.missed + TRUST) / 2.0
    }

    fn count(&mut self, outcome: Outcome) {
        if self.missed >= REMEMBERED {
            self.missed /= 2.0;
            self.filled /= 2.0;
        }
        match outcome {
            Outcome::Filled => {
                self.missed += 1.0;
                self.filled += 1.0;
            }
            Outcome::Abandoned => self.missed += 0.5,
            Outcome::Unfilled => self.missed += 1.0,
        }
    }
}

impl Families {
    /// `wait` for every key, but what `told` says for those that match first.
    pub(super) fn new(wait: Duration, told: Vec<(String, Duration)>) -> Self {
        Self { wait: AtomicU64::new(millis(wait)), told, learned: Mutex::default() }
    }

    /// How long a GET waits of whose family nothing else was told.
    pub(super) fn usual_wait(&self) -> Duration {
        Duration::from_millis(self.wait.load(Ordering::Relaxed))
    }

    /// So long from now on.
    pub(super) fn set_usual_wait(&self, wait: Duration) {
        self.wait.store(millis(wait), Ordering::Relaxed);
    }

    /// The longest wait of any key.
    pub(super) fn longest(&self) -> Duration {
        self.told.iter().map(|(_, wait)| *wait).fold(self.usual_wait(), Duration::max)
    }

    /// How long a GET of `key` may wait; zero: not at all.
    pub(super) fn wait(&self, key: &[u8], family: &Family) -> Duration {
        let told = self.told.iter().find(|(pattern, _)| matches(pattern.as_bytes(), key));
        if let Some((_, wait)) = told {
            return *wait;
        }
        let learned = self.learned.lock();
        // Of a family that is new, its parent tells what to expect.
        let known = learned.get(family).or_else(|| learned.get(&parent(family)));
        match known.is_none_or(|record| record.waits()) {
            true => self.usual_wait(),
            false => Duration::ZERO,
        }
    }

    /// Learns how a miss ended.
    pub(super) fn count(&self, family: &Family, outcome: Outcome) {
        let mut learned = self.learned.lock();
        if learned.len() >= MOST_FAMILIES {
            learned.clear();
        }
        for family in [family.clone(), parent(family)] {
            learned.entry(family).or_default().count(outcome);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The family of `key`.
pub(super) fn family_of(key: &[u8]) -> Family {
    let key = &key[..key.len().min(LONGEST_FAMILY)];
    let in_hash = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let mut family = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|byte| in_hash(byte)).count();
        match run {
            0 => family.push(*first),
            _ if is_hash(&rest[..run]) => family.push(b'*'),
            _ => without_numbers(&rest[..run], &mut family),
        }
        rest = &rest[run.max(1)..];
    }
    // Caches that spread their keys over folders put a hash's first digits there.
    while let Some(at) = family.windows(4).position(is_folder_of_hash) {
        family.drain(at..at + 2);
    }
    match family.as_slice() {
        [digit, b'/', b'*', rest @ ..] if digit.is_ascii_hexdigit() => [b"*", rest].concat().into(),
        _ => family.into(),
    }
}

fn is_hash(run: &[u8]) -> bool {
    let digits = run.iter().filter(|byte| byte.is_ascii_digit()).count();
    run.len() >= SHORTEST_HASH && digits >= DIGITS_OF_HASH
}

/// `x/*` within `/x/*`: one hexadecimal digit.
fn is_folder_of_hash(window: &[u8]) -> bool {
    matches!(window, [b'/', digit, b'/', b'*'] if digit.is_ascii_hexdigit())
}

/// Numbers of two digits and more are `*` too.
fn without_numbers(run: &[u8], family: &mut Vec<u8>) {
    let mut rest = run;
    while let Some(first) = rest.first() {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        family.push(if digits >= 2 { b'*' } else { *first });
        rest = &rest[digits.max(1)..];
    }
}

/// The family of families that differ in the last part alone.
fn parent(family: &Family) -> Family {
    let at = family.iter().rposition(|byte| matches!(byte, b':' | b'/' | b'|' | b'.'));
    let mut parent = family[..at.map_or(0, |at| at + 1)].to_vec();
    parent.push(b'*');
    parent.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(120);

    fn family(key: &str) -> String {
        String::from_utf8(family_of(key.as_bytes()).to_vec()).unwrap()
    }

    #[test]
    fn families_keep_words_and_drop_hashes() {
        for (key, expected) in [
            (
                "pt2:fx-graph-v1::f7b3q5x2a4mz6kpw7r2u5tdy3e4cvn6hjl2s5g7o4i3ab6xq2:c1",
                "pt2:fx-graph-v1::*:c1",
            ),
            (
                "pt2:autograd-experimental::a7b3q5x2a4mz6kpw7r2u5tdy3e4:c1",
                "pt2:autograd-experimental::*:c1",
            ),
            ("ccache:0123456789abcdef0123456789abcdef01234567", "ccache:*"),
            ("/a/5/c/a5c3456789abcdef0123456789abcdef", "/*"),
            ("a/5/c/a5c3456789abcdef0123456789abcdef", "*"),
            ("user:1234:name", "user:*:name"),
            ("550e8400-e29b-41d4-a716-446655440000", "*"),
            ("kernel-v2", "kernel-v2"),
            ("", ""),
        ] {
            assert_eq!(family(key), expected, "{key}");
        }
        assert_eq!(family_of(&[0xff; 1000]).len(), LONGEST_FAMILY);
    }

    #[test]
    fn one_miss_without_a_set_is_enough_to_wait_no_more() {
        let families = Families::new(WAIT, Vec::new());
        let family = family_of(b"session:alice");
        assert_eq!(families.wait(b"session:alice", &family), WAIT);
        families.count(&family, Outcome::Unfilled);
        assert_eq!(families.wait(b"session:alice", &family), Duration::ZERO);
        let other = family_of(b"session:bob");
        assert_eq!(families.wait(b"session:bob", &other), Duration::ZERO, "the parent tells");
        families.count(&family, Outcome::Filled);
        assert_eq!(families.wait(b"session:alice", &family), WAIT, "and a SET is enough again");
    }

    #[test]
    fn a_family_with_a_history_forgives() {
        let families = Families::new(WAIT, Vec::new());
        let family = family_of(b"pt2:x");
        families.count(&family, Outcome::Abandoned);
        assert_eq!(families.wait(b"pt2:x", &family), WAIT, "one killed process proves nothing");
        (0..100).for_each(|_| families.count(&family, Outcome::Filled));
        (0..10).for_each(|_| families.count(&family, Outcome::Unfilled));
        assert_eq!(families.wait(b"pt2:x", &family), WAIT);
        (0..40).for_each(|_| families.count(&family, Outcome::Unfilled));
        assert_eq!(families.wait(b"pt2:x", &family), Duration::ZERO, "but not for ever");
    }

    #[test]
    fn what_was_told_counts_before_what_was_learned() {
        let told = [("fast:*", 0), ("*:slow", 300)];
        let told = told.map(|(pattern, wait)| (pattern.into(), Duration::from_secs(wait)));
        let families = Families::new(WAIT, told.into());
        for (key, wait) in [("fast:slow", 0), ("x:slow", 300), ("x", 120)] {
            let family = family_of(key.as_bytes());
            families.count(&family, Outcome::Filled);
            assert_eq!(families.wait(key.as_bytes(), &family), Duration::from_secs(wait), "{key}");
        }
        assert_eq!(families.longest(), Duration::from_secs(300));
    }

    #[test]
    fn memory_of_families_is_bounded() {
        let families = Families::new(WAIT, Vec::new());
        for n in 0..3 * MOST_FAMILIES {
            let letters = n.to_string().replace(|c: char| c.is_ascii_digit(), "x");
            let name = format!("{letters}{}", char::from_u32(0x4e00 + n as u32).unwrap());
            families.count(&family_of(name.as_bytes()), Outcome::Unfilled);
        }
        assert!(families.learned.lock().len() <= MOST_FAMILIES + 2);
    }
}
