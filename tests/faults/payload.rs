//! Randomness from a seed, and bytes that tell who wrote them.
//!
//! Invariant: no two writes of a run have the same bytes.

use kiln_proto::{Digest, numbers::Numbers};

/// The same seed, the same choices.
#[derive(Debug, Clone)]
pub(crate) struct Chance(Numbers);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Numbers::new(seed))
    }

    /// One for part `n`, that shares no sequence with this one's.
    pub(crate) fn part(&self, n: u64) -> Self {
        Self(self.0.part(n))
    }

    /// One of `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.0.word() % n as u64) as usize
    }

    /// Whether it is one of `of` cases in a hundred.
    pub(crate) fn percent(&mut self, of: usize) -> bool {
        self.below(100) < of
    }
}

/// The bytes of one write: `name` in front, and then up to some 40 KB.
pub(crate) fn bytes(name: &str, chance: &mut Chance) -> Vec<u8> {
    let length = match chance.percent(80) {
        true => 64 + chance.below(2000),
        false => 8_000 + chance.below(32_000),
    };
    let line = format!("{name}\n");
    let mut bytes = line.as_bytes().repeat(length / line.len() + 1);
    bytes.truncate(length.max(line.len()));
    bytes
}

/// How histories name bytes.
pub(crate) fn name(digest: &Digest) -> String {
    digest.to_string()[..16].to_owned()
}
