//! Whether an artifact computes what its program does.
//!
//! Invariant: that it was not looked at is told with the reason, and is never taken for a
//! pass; what was looked at and is wrong has no artifact, so there is no such check.

/// Longest reason in bytes: it is in the manifest, which every replica keeps.
const LONGEST: usize = 512;

/// An artifact that was run on inputs made up for it, or was not.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Check {
    /// It gives what the reference interpreter gives.
    Passed {
        /// The largest difference of an output over its largest magnitude.
        relative_error: f64,
        /// Beyond that it would have been wrong.
        limit: f64,
    },
    /// It was not run.
    Not {
        /// Why.
        why: String,
    },
}

impl Check {
    /// It was not run, for a reason that is cut to what a manifest may have.
    pub fn not(why: impl Into<String>) -> Self {
        let mut why: String = why.into();
        let end = (0..=why.len().min(LONGEST)).rev().find(|at| why.is_char_boundary(*at));
        why.truncate(end.unwrap_or(0));
        if why.is_empty() {
            why.push_str("no reason is known");
        }
        Self::Not { why }
    }

    /// Whether it was run, and is right.
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Passed { .. })
    }

    /// What every check must hold, whoever tells of it.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Passed { relative_error, limit }
                if !(0.0..=*limit).contains(relative_error) || !limit.is_finite() =>
            {
                Err(format!("a check with an error of {relative_error}, limit {limit}"))
            }
            Self::Not { why } if why.is_empty() || why.len() > LONGEST => {
                Err(format!("the reason of a check has {} bytes, 1 to {LONGEST}", why.len()))
            }
            Self::Passed { .. } | Self::Not { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_within_its_limit() {
        let passed = |relative_error, limit| Check::Passed { relative_error, limit }.validate();
        assert!(passed(0.0, 0.0).is_ok() && passed(1e-3, 1e-2).is_ok());
        for (error, limit) in
            [(2e-2, 1e-2), (-1.0, 1.0), (f64::NAN, 1.0), (0.0, f64::NAN), (0.0, f64::INFINITY)]
        {
            assert!(passed(error, limit).is_err(), "{error} {limit}");
        }
    }

    #[test]
    fn a_reason_is_never_empty_and_never_long() {
        let long = Check::not("\u{fc}".repeat(LONGEST));
        assert!(long.validate().is_ok() && !long.passed());
        assert!(Check::not("").validate().is_ok());
        assert!(Check::Not { why: "x".repeat(LONGEST + 1) }.validate().is_err());
        assert!(Check::Not { why: String::new() }.validate().is_err());
    }
}
