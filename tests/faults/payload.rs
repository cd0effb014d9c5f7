//! Randomness from a seed, and bytes that tell who wrote them.
//!
//! Invariant: no two writes of a run have the same bytes.

use kiln_proto::Digest;

/// A small generator (splitmix64): the same seed, the same choices.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One for part `n`, that shares no sequence with this one's.
    pub(crate) fn part(&self, n: u64) -> Self {
        let mut chance = Self(self.0 ^ n.wrapping_mul(0xA24B_AED4_963E_E407));
        chance.next();
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One of `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
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
