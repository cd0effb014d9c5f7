//! Division of polynomials, as far as it comes out even.
//!
//! Invariant: `self == quotient * by + rest`, whatever the atoms are.

use super::{Atom, Bounds, Monomial, Size};

impl Size {
    /// Quotient and rest; terms that `by` does not divide are in the rest.
    pub fn divide(&self, by: &Self) -> (Self, Self) {
        let Some((lead, divisor)) = by.terms.last_key_value() else {
            return (Self::default(), self.clone());
        };
        let (mut quotient, mut left, mut rest) = (Self::default(), self.clone(), Self::default());
        while let Some((monomial, factor)) = left.terms.last_key_value() {
            let (monomial, factor) = (monomial.clone(), *factor);
            match monomial.without(lead) {
                // A constant keeps what is less than the divisor; other terms all or nothing.
                Some(whole) if factor % divisor == 0 || monomial.0.is_empty() => {
                    let times = factor.div_euclid(*divisor);
                    let mut part = Self::default();
                    part.add_term(whole, times);
                    left = &left - &(&part * by);
                    quotient = &quotient + &part;
                    if factor % divisor != 0 {
                        rest = &rest + &left;
                        break;
                    }
                }
                _ => {
                    left.terms.remove(&monomial);
                    rest.add_term(monomial, factor);
                }
            }
        }
        (quotient, rest)
    }

    /// Rounded down, under `bounds`.
    #[must_use]
    pub fn div_in(&self, by: &Self, bounds: &Bounds<'_>) -> Self {
        if by.is(1) {
            return self.clone();
        }
        if let (Some(a), Some(b)) = (self.known(), by.known().filter(|b| *b > 0)) {
            return Self::from(a.div_euclid(b));
        }
        let (mut quotient, mut rest) = self.divide(by);
        if rest.terms.is_empty() || bounds.is_within(&rest, by) {
            return quotient;
        }
        // What is divided at run time must not be negative: there a quotient is
        // cut off, not rounded down. A whole that is not negative may have such a rest.
        if !quotient.is(0) && !bounds.is_nonnegative(&rest) {
            (quotient, rest) = (Self::default(), self.clone());
        }
        if let Some((a, b)) = shortened(&rest, by, bounds) {
            return &quotient + &a.div_in(&b, bounds);
        }
        // floor(floor(x / a) / b) is floor(x / (a b)).
        if let Some(Atom::Floor(inner)) = rest.as_atom() {
            return &quotient + &inner[0].div_in(&(&inner[1] * by), bounds);
        }
        &quotient + &Self::atom(Atom::Floor(Box::new([rest, by.clone()])))
    }

    /// What `div_in` leaves: never negative.
    #[must_use]
    pub fn mod_in(&self, by: &Self, bounds: &Bounds<'_>) -> Self {
        self - &(&self.div_in(by, bounds) * by)
    }
}

/// Both in steps of a number that divides the divisor, if the terms that it does
/// not divide stay below one step: the quotient is the same.
fn shortened(a: &Size, by: &Size, bounds: &Bounds<'_>) -> Option<(Size, Size)> {
    let whole = by.terms.values().fold(0, |so_far, x| gcd(so_far, x.abs()));
    let mut steps: Vec<i64> = a
        .terms
        .iter()
        .filter(|(monomial, _)| !monomial.0.is_empty())
        .map(|(_, factor)| gcd(whole, factor.abs()))
        .filter(|step| *step > 1)
        .collect();
    steps.sort_unstable();
    steps.dedup();
    steps.into_iter().rev().find_map(|step| {
        let step = Size::from(step);
        let (steps, below) = a.divide(&step);
        let fits = bounds.is_within(&below, &step);
        fits.then(|| (steps, by.divide(&step).0))
    })
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Monomial {
    /// The product without the atoms of `other`, if it has them all.
    fn without(&self, other: &Self) -> Option<Self> {
        let mut left = self.0.clone();
        for atom in &other.0 {
            left.remove(left.iter().position(|a| a == atom)?);
        }
        Some(Self(left))
    }
}
