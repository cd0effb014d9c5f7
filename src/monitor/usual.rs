//! What is usual of a figure: its median over the window, and how far it usually strays.
//!
//! Invariant: less than half of the values, however wild, cannot move either number
//! beyond what the other values are.

use serde::{Deserialize, Serialize};

/// From the median absolute deviation to the standard deviation of a normal distribution.
const SIGMA: f64 = 1.4826;

/// Median and spread over a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    /// Median.
    pub median: f64,
    /// Median absolute deviation, times 1.4826.
    pub sigma: f64,
    /// Cycles that it rests on.
    pub cycles: usize,
}

impl Usual {
    /// Of these values; `None` where there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let median = median(values)?;
        let away: Vec<f64> = values.iter().map(|value| (value - median).abs()).collect();
        let sigma = self::median(&away)? * SIGMA;
        Some(Self { median, sigma, cycles: values.len() })
    }

    /// How far `value` is above it, in spreads of at least `floor`.
    pub fn score(&self, value: f64, floor: f64) -> f64 {
        (value - self.median) / self.sigma.max(floor)
    }
}

/// The median of these values; `None` where there are none. What is no number counts for
/// nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[f64::NAN]), None);
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(Usual::of(&[1.0, 1.0, 1.0]).unwrap().sigma, 0.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_minority_cannot_move_it(
            good in proptest::collection::vec(10.0f64..20.0, 7..40),
            wild in proptest::collection::vec(-1e12f64..1e12, 0..6),
        ) {
            prop_assume!(wild.len() * 2 < good.len());
            let all: Vec<f64> = good.iter().chain(&wild).copied().collect();
            let usual = Usual::of(&all).unwrap();
            prop_assert!((10.0..=20.0).contains(&usual.median), "{usual:?}");
            prop_assert!(usual.sigma <= 10.0 * SIGMA, "{usual:?}");
        }
    }
}
