//! Which artifacts are checked.
//!
//! Invariant: all nodes agree, since only the request and the key decide; and who asked
//! for it is in no key.

use kiln_proto::{ArtifactKey, Check};

/// One key of so many is in the sample.
const SHARE: u8 = 8;

/// Whether what a program became is run before it is given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// One key of eight, unless it was checked before.
    #[default]
    Sampled,
    /// Also what is stored already, whoever checked it.
    Always,
    /// Nothing.
    Never,
}

impl Verify {
    /// Whether what was just compiled is checked.
    pub fn wants(self, key: &ArtifactKey) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            // The last byte: the first one spreads keys over nodes.
            Self::Sampled => key.as_bytes().last().is_some_and(|byte| byte % SHARE == 0),
        }
    }

    /// Whether what is stored is checked. `check`: what its producer signed. `is_hit`: it
    /// was there before this request.
    pub fn wants_stored(self, key: &ArtifactKey, check: Option<&Check>, is_hit: bool) -> bool {
        let passed = check.is_some_and(Check::passed);
        self.wants(key) && (!passed || (is_hit && self == Self::Always))
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::Digest;

    use super::*;

    #[test]
    fn a_sample_is_one_key_of_eight() {
        let key = |n: u32| ArtifactKey::from_bytes(*Digest::of(&n.to_le_bytes()).as_bytes());
        let count = |verify: Verify| (0..8000).filter(|n| verify.wants(&key(*n))).count();
        assert!((850..1150).contains(&count(Verify::Sampled)), "{}", count(Verify::Sampled));
        assert_eq!((count(Verify::Always), count(Verify::Never)), (8000, 0));
    }

    #[test]
    fn a_stored_artifact_is_checked_again_only_where_that_is_asked_for() {
        let sampled = ArtifactKey::from_bytes([8; 32]);
        let other = ArtifactKey::from_bytes([9; 32]);
        let passed = Check::Passed { relative_error: 0.0, limit: 1.0 };
        let not = Check::not("no GPU");
        for (verify, key, check, is_hit, wanted) in [
            (Verify::Always, other, Some(&passed), true, true),
            (Verify::Always, other, Some(&passed), false, false),
            (Verify::Always, other, Some(&not), false, true),
            (Verify::Always, other, None, false, true),
            (Verify::Sampled, sampled, Some(&passed), true, false),
            (Verify::Sampled, sampled, Some(&not), true, true),
            (Verify::Sampled, sampled, None, true, true),
            (Verify::Sampled, other, None, true, false),
            (Verify::Never, sampled, None, true, false),
        ] {
            assert_eq!(verify.wants_stored(&key, check, is_hit), wanted, "{verify:?} {check:?}");
        }
    }
}
