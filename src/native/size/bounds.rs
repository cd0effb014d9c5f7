//! What is known of symbols and loop variables, and what follows from it.
//!
//! Invariant: sound. What is said to hold holds for all values within the
//! bounds; what cannot be shown is not said.

use std::cell::Cell;

use super::{Atom, Monomial, Size};
use crate::core::Range;

/// How deep a proof may go: each step removes one atom.
const DEEPEST: usize = 8;
/// Steps of one proof: what takes more is not shown.
const STEPS: usize = 200;

/// Bounds of symbols and variables; symbols that are not listed are at least zero.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds<'a> {
    /// For each symbol.
    pub symbols: &'a [Range],
    /// For each variable, its extent: it is at least zero and less.
    pub vars: &'a [Size],
}

impl Bounds<'_> {
    /// Whether `0 <= size < limit` for sure.
    pub fn is_within(&self, size: &Size, limit: &Size) -> bool {
        match (size.known(), limit.known()) {
            (Some(size), Some(limit)) => (0..limit).contains(&size),
            _ => self.is_less(size, limit) && self.is_nonnegative(size),
        }
    }

    /// Whether `a < b` for sure.
    pub fn is_less(&self, a: &Size, b: &Size) -> bool {
        self.is_nonnegative(&(&(b - a) - &Size::from(1)))
    }

    /// Whether `size >= 0` for sure.
    pub fn is_nonnegative(&self, size: &Size) -> bool {
        Proof { bounds: *self, left: Cell::new(STEPS) }.shown(size, DEEPEST)
    }

    fn range(&self, symbol: usize) -> Range {
        let any = Range { min: 0, max: i64::MAX };
        let range = self.symbols.get(symbol).copied().unwrap_or(any);
        Range { min: range.min.max(0), ..range }
    }
}

/// One attempt to show something.
struct Proof<'a> {
    bounds: Bounds<'a>,
    left: Cell<usize>,
}

impl Proof<'_> {
    fn shown(&self, size: &Size, depth: usize) -> bool {
        if size.terms.values().all(|factor| *factor >= 0)
            && size.atoms().all(|a| self.natural(a, depth))
        {
            return true;
        }
        let left = self.left.get();
        if depth == 0 || left == 0 || size.known().is_some() {
            return false;
        }
        self.left.set(left - 1);
        // The sum is least where each atom is at the end that its factor pushes to.
        let mut atoms: Vec<&Atom> = size.atoms().collect();
        atoms.sort_by_key(|atom| match atom {
            Atom::Symbol(_) => 2,
            Atom::Var(_) | Atom::Value(_) => 1,
            Atom::Floor(_) | Atom::Max(_) | Atom::Min(_) => 0,
        });
        atoms.dedup();
        for atom in atoms {
            let Some((factor, rest)) = size.linear_in(atom) else { continue };
            let ends = if self.shown(&factor, depth - 1) {
                self.least(atom, depth - 1)
            } else if self.shown(&-&factor, depth - 1) {
                self.greatest(atom, depth - 1)
            } else {
                continue;
            };
            let shown = |end: &Size| self.shown(&(&(&factor * end) + &rest), depth - 1);
            if self
                .remainder(atom, &factor, depth - 1)
                .is_some_and(|low| self.shown(&(&low + &rest), depth - 1))
                || ends.iter().any(shown)
            {
                return true;
            }
            if matches!(atom, Atom::Var(_)) {
                return false;
            }
        }
        self.shifted(size).is_some_and(|size| size.terms.values().all(|factor| *factor >= 0))
    }

    /// What `factor * floor(x / b)` is never below, where `b` divides the factor:
    /// a multiple of `x`, or of `x - (b - 1)`.
    fn remainder(&self, atom: &Atom, factor: &Size, depth: usize) -> Option<Size> {
        let Atom::Floor(parts) = atom else { return None };
        let [x, by] = &**parts;
        let (times, rest) = factor.divide(by);
        if !rest.is(0) {
            // floor(x / (a b)) is floor(floor(x / a) / b), with b from the factor.
            let sign = Size::from(if self.shown(factor, depth) { 1 } else { -1 });
            let part = factor * &sign;
            let (others, rest) = by.divide(&part);
            if !rest.is(0) || part.is(0) {
                return None;
            }
            let x = x.div_in(&others, &self.bounds);
            return Some(match sign.is(1) {
                true => &(&x - &part) + &Size::from(1),
                false => -&x,
            });
        }
        if self.shown(&times, depth) {
            return Some(&times * &(&(x - by) + &Size::from(1)));
        }
        self.shown(&-&times, depth).then(|| &times * x)
    }

    fn natural(&self, atom: &Atom, depth: usize) -> bool {
        match atom {
            Atom::Symbol(_) | Atom::Var(_) => true,
            Atom::Value(_) => false,
            Atom::Floor(parts) => depth > 0 && self.shown(&parts[0], depth - 1),
            Atom::Max(parts) => depth > 0 && parts.iter().any(|part| self.shown(part, depth - 1)),
            Atom::Min(parts) => depth > 0 && parts.iter().all(|part| self.shown(part, depth - 1)),
        }
    }

    /// Numbers that the atom is never below.
    fn least(&self, atom: &Atom, depth: usize) -> Vec<Size> {
        match atom {
            Atom::Symbol(symbol) => vec![Size::from(self.bounds.range(*symbol).min)],
            Atom::Var(_) => vec![Size::default()],
            Atom::Max(parts) => parts.to_vec(),
            Atom::Floor(_) | Atom::Min(_) if self.natural(atom, depth) => vec![Size::default()],
            Atom::Value(_) | Atom::Floor(_) | Atom::Min(_) => Vec::new(),
        }
    }

    /// Numbers that the atom is never above.
    fn greatest(&self, atom: &Atom, depth: usize) -> Vec<Size> {
        let one = Size::from(1);
        match atom {
            Atom::Symbol(symbol) => match self.bounds.range(*symbol).max {
                i64::MAX => Vec::new(),
                max => vec![Size::from(max)],
            },
            Atom::Var(var) => {
                self.bounds.vars.get(*var).map(|extent| extent - &one).into_iter().collect()
            }
            Atom::Min(parts) => parts.to_vec(),
            Atom::Floor(parts) => {
                let top = self.top(&parts[0], depth);
                let whole = top.map(|top| {
                    top.div_in(&parts[1], &Bounds { symbols: self.bounds.symbols, vars: &[] })
                });
                // Another division would only say what was asked.
                whole
                    .into_iter()
                    .filter(|w| w.atoms().all(|a| matches!(a, Atom::Symbol(_))))
                    .collect()
            }
            Atom::Value(_) | Atom::Max(_) => Vec::new(),
        }
    }

    /// A number over symbols that `size` is never above.
    fn top(&self, size: &Size, depth: usize) -> Option<Size> {
        let Some(atom) = size.atoms().find(|atom| !matches!(atom, Atom::Symbol(_))) else {
            return Some(size.clone());
        };
        let depth = depth.checked_sub(1)?;
        let (factor, rest) = size.linear_in(atom)?;
        let end = if self.shown(&factor, depth) {
            self.greatest(atom, depth)
        } else if self.shown(&-&factor, depth) {
            self.least(atom, depth)
        } else {
            return None;
        };
        self.top(&(&(&factor * end.first()?) + &rest), depth)
    }

    /// In symbols that start at zero.
    fn shifted(&self, size: &Size) -> Option<Size> {
        let symbols_only = size.atoms().all(|atom| matches!(atom, Atom::Symbol(_)));
        symbols_only.then(|| {
            let mut sum = Size::default();
            for (Monomial(atoms), factor) in &size.terms {
                let mut product = Size::from(*factor);
                for atom in atoms {
                    let least = match atom {
                        Atom::Symbol(symbol) => self.bounds.range(*symbol).min,
                        _ => 0,
                    };
                    product = &product * &(&Size::atom(atom.clone()) + &Size::from(least));
                }
                sum = &sum + &product;
            }
            sum
        })
    }
}
