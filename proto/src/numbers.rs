//! Pseudo-random numbers (SplitMix64): small, and of a seed.
//!
//! Invariant: equal seeds give equal numbers, on every machine and in every version: what
//! two nodes make of one seed is compared.

/// A sequence of numbers.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// That of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one, of 64 bits.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Another sequence, for part `n` of what this one is for.
    pub const fn part(&self, n: u64) -> Self {
        let mut part = Self(self.0 ^ n.wrapping_mul(0xa24b_aed4_963e_e407));
        part.word();
        part
    }

    /// The next one, at least 0 and below 1, of 53 bits.
    pub const fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_published_algorithm() {
        // Of Vigna's splitmix64.c.
        let mut numbers = Numbers::new(1_234_567);
        let first = [(); 3].map(|()| numbers.word());
        let known =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first, known);
        let [mut one, mut two] = [1, 2].map(|n| numbers.part(n));
        assert_ne!(one.word(), two.word());
        assert!((0..1000).all(|_| (0.0..1.0).contains(&numbers.unit())));
    }
}
