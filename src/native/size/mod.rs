//! Whole numbers that depend on symbols and loop variables: sizes, strides, offsets.
//!
//! A [`Size`] is a polynomial with whole coefficients. Divisions that do not come
//! out even are atoms of their own, and remainders are what a division leaves
//! (`x - n * floor(x / n)`), so that an index that was taken apart and put together
//! again is the same form: equality of forms proves equality of values.
//!
//! Invariant: no term has the coefficient zero; divisors are positive.

mod bounds;
mod divide;
mod parse;

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Add, Mul, Neg, Sub},
};

pub use bounds::Bounds;

use crate::plan;

/// A whole number, perhaps not known before the program is called. Written as a plan has it.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(into = "plan::Expr", from = "plan::Expr")]
pub struct Size {
    terms: BTreeMap<Monomial, i64>,
}

/// A product of atoms, in order; none: one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Monomial(Vec<Atom>);

/// What a polynomial does not look into.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Atom {
    /// A symbol of the program, by position: at least zero.
    Symbol(usize),
    /// A loop variable: from zero to its extent.
    Var(usize),
    /// A number that the program computes, by its owner's numbering.
    Value(usize),
    /// The first by the second, rounded down.
    Floor(Box<[Size; 2]>),
    /// The greater.
    Max(Box<[Size; 2]>),
    /// The lesser.
    Min(Box<[Size; 2]>),
}

// Graded: longer products first in importance, as polynomial division needs.
impl Ord for Monomial {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Monomial {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Size {
    /// The symbol at that position.
    pub fn symbol(index: usize) -> Self {
        Self::atom(Atom::Symbol(index))
    }

    /// The loop variable of that number.
    pub fn var(index: usize) -> Self {
        Self::atom(Atom::Var(index))
    }

    /// One atom.
    pub fn atom(atom: Atom) -> Self {
        Self { terms: BTreeMap::from([(Monomial(vec![atom]), 1)]) }
    }

    /// The number, if it depends on nothing.
    pub fn known(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&Monomial::default()).copied(),
            _ => None,
        }
    }

    /// Whether it is known to be `number`.
    pub fn is(&self, number: i64) -> bool {
        self.known() == Some(number)
    }

    /// The only symbol, if it is nothing else.
    pub fn as_symbol(&self) -> Option<usize> {
        match self.as_atom() {
            Some(Atom::Symbol(symbol)) => Some(*symbol),
            _ => None,
        }
    }

    fn as_atom(&self) -> Option<&Atom> {
        let mut terms = self.terms.iter();
        match (terms.next(), terms.next()) {
            (Some((Monomial(atoms), 1)), None) if atoms.len() == 1 => atoms.first(),
            _ => None,
        }
    }

    /// Rounded down, in what holds for all non-negative symbols.
    #[must_use]
    pub fn div_floor(&self, by: &Self) -> Self {
        self.div_in(by, &Bounds::default())
    }

    /// Rounded up.
    #[must_use]
    pub fn div_ceil(&self, by: &Self) -> Self {
        (&(self + by) - &Self::from(1)).div_floor(by)
    }

    /// What `div_floor` leaves.
    #[must_use]
    pub fn modulo(&self, by: &Self) -> Self {
        self.mod_in(by, &Bounds::default())
    }

    /// The greater of both.
    #[must_use]
    pub fn max_of(&self, other: &Self) -> Self {
        self.choose(other, Ord::max, Atom::Max)
    }

    /// The lesser of both.
    #[must_use]
    pub fn min_of(&self, other: &Self) -> Self {
        self.choose(other, Ord::min, Atom::Min)
    }

    fn choose(
        &self,
        other: &Self,
        known: fn(i64, i64) -> i64,
        atom: fn(Box<[Self; 2]>) -> Atom,
    ) -> Self {
        match (self.known(), other.known()) {
            (Some(a), Some(b)) => Self::from(known(a, b)),
            _ if self == other => self.clone(),
            _ => {
                let mut both = [self.clone(), other.clone()];
                both.sort();
                Self::atom(atom(Box::new(both)))
            }
        }
    }

    /// Its value; `None`: a symbol that is not there, a variable, a division by
    /// zero, or more than `i64` holds.
    pub fn value(&self, symbols: &[i64]) -> Option<i64> {
        let mut sum = 0i64;
        for (Monomial(atoms), factor) in &self.terms {
            let mut product = *factor;
            for atom in atoms {
                product = product.checked_mul(atom.value(symbols)?)?;
            }
            sum = sum.checked_add(product)?;
        }
        Some(sum)
    }

    /// With each atom for which `with` has something else.
    #[must_use]
    pub fn substituted(&self, bounds: &Bounds<'_>, with: &dyn Fn(&Atom) -> Option<Self>) -> Self {
        let mut sum = Self::default();
        for (Monomial(atoms), factor) in &self.terms {
            let mut product = Self::from(*factor);
            for atom in atoms {
                product = &product * &atom.substituted(bounds, with);
            }
            sum = &sum + &product;
        }
        sum
    }

    /// `self = factor * atom + rest`, where neither part has the atom outside of
    /// other atoms; `None` if it stands in a higher power.
    pub fn linear_in(&self, atom: &Atom) -> Option<(Self, Self)> {
        let (mut factor, mut rest) = (Self::default(), Self::default());
        for (monomial, coefficient) in &self.terms {
            let mut atoms = monomial.0.clone();
            match atoms.iter().position(|a| a == atom) {
                Some(at) => {
                    atoms.remove(at);
                    if atoms.contains(atom) {
                        return None;
                    }
                    factor.add_term(Monomial(atoms), *coefficient);
                }
                None => rest.add_term(monomial.clone(), *coefficient),
            }
        }
        Some((factor, rest))
    }

    /// Whether the variable `var` occurs, at any depth.
    pub fn has_var(&self, var: usize) -> bool {
        self.any(&|atom| *atom == Atom::Var(var))
    }

    /// Whether `wanted` holds for an atom, at any depth.
    pub fn any(&self, wanted: &dyn Fn(&Atom) -> bool) -> bool {
        let mut found = false;
        self.each_atom(&mut |atom| found |= wanted(atom));
        found
    }

    /// Calls `seen` for every atom, at any depth.
    pub fn each_atom(&self, seen: &mut dyn FnMut(&Atom)) {
        for atom in self.atoms() {
            seen(atom);
            if let Atom::Floor(parts) | Atom::Max(parts) | Atom::Min(parts) = atom {
                parts.iter().for_each(|part| part.each_atom(seen));
            }
        }
    }

    /// The atoms of its terms, those in several terms several times.
    pub fn atoms(&self) -> impl Iterator<Item = &Atom> {
        self.terms.keys().flat_map(|monomial| &monomial.0)
    }

    /// The largest power of two, up to `most`, that divides it for sure.
    pub fn power_of_two(&self, most: i64) -> i64 {
        let of = |factor: &i64| 1i64 << factor.trailing_zeros().min(62);
        self.terms.values().map(of).fold(most, i64::min)
    }

    fn add_term(&mut self, monomial: Monomial, factor: i64) {
        let sum = self.terms.entry(monomial).or_insert(0);
        *sum = sum.saturating_add(factor);
        if *sum == 0 {
            self.terms.retain(|_, factor| *factor != 0);
        }
    }

    /// As text, each atom as `name` says; divisions of numbers that are not
    /// negative, as C and Rust have them.
    pub fn text(&self, name: &dyn Fn(&Atom) -> String) -> String {
        if self.terms.is_empty() {
            return "0".to_owned();
        }
        let mut out = String::new();
        for (Monomial(atoms), factor) in self.terms.iter().rev() {
            let mut parts: Vec<String> = atoms.iter().map(|atom| atom.text(name)).collect();
            if factor.unsigned_abs() != 1 || atoms.is_empty() {
                parts.push(factor.unsigned_abs().to_string());
            }
            let sign = match (*factor < 0, out.is_empty()) {
                (true, true) => "-",
                (true, false) => " - ",
                (false, true) => "",
                (false, false) => " + ",
            };
            out += sign;
            out += &parts.join(" * ");
        }
        out
    }

    /// For a plan; variables and computed values do not occur there.
    pub fn to_plan(&self) -> plan::Expr {
        let mut sum: Vec<plan::Expr> = Vec::new();
        for (Monomial(atoms), factor) in self.terms.iter().rev() {
            let mut product: Vec<plan::Expr> = atoms.iter().map(Atom::to_plan).collect();
            if *factor != 1 || product.is_empty() {
                product.push(plan::Expr::Known(*factor));
            }
            sum.extend(one_or(product, plan::Expr::Mul));
        }
        one_or(sum, plan::Expr::Add).unwrap_or(plan::Expr::Known(0))
    }
}

fn one_or(
    mut parts: Vec<plan::Expr>,
    many: fn(Vec<plan::Expr>) -> plan::Expr,
) -> Option<plan::Expr> {
    if parts.len() > 1 { Some(many(parts)) } else { parts.pop() }
}

impl Atom {
    fn value(&self, symbols: &[i64]) -> Option<i64> {
        let both = |parts: &[Size; 2]| Some((parts[0].value(symbols)?, parts[1].value(symbols)?));
        match self {
            Self::Symbol(symbol) => symbols.get(*symbol).copied(),
            Self::Var(_) | Self::Value(_) => None,
            Self::Floor(parts) => both(parts).filter(|(_, b)| *b > 0).map(|(a, b)| a.div_euclid(b)),
            Self::Max(parts) => both(parts).map(|(a, b)| a.max(b)),
            Self::Min(parts) => both(parts).map(|(a, b)| a.min(b)),
        }
    }

    fn substituted(&self, bounds: &Bounds<'_>, with: &dyn Fn(&Self) -> Option<Size>) -> Size {
        if let Some(new) = with(self) {
            return new;
        }
        let both = |parts: &[Size; 2]| {
            (parts[0].substituted(bounds, with), parts[1].substituted(bounds, with))
        };
        match self {
            Self::Symbol(_) | Self::Var(_) | Self::Value(_) => Size::atom(self.clone()),
            Self::Floor(parts) => {
                let (a, b) = both(parts);
                a.div_in(&b, bounds)
            }
            Self::Max(parts) => {
                let (a, b) = both(parts);
                a.max_of(&b)
            }
            Self::Min(parts) => {
                let (a, b) = both(parts);
                a.min_of(&b)
            }
        }
    }

    fn text(&self, name: &dyn Fn(&Self) -> String) -> String {
        let both = |parts: &[Size; 2]| (parts[0].text(name), parts[1].text(name));
        match self {
            Self::Symbol(_) | Self::Var(_) | Self::Value(_) => name(self),
            Self::Floor(parts) => {
                let (a, b) = both(parts);
                format!("(({a}) / ({b}))")
            }
            Self::Max(parts) => {
                let (a, b) = both(parts);
                format!("max({a}, {b})")
            }
            Self::Min(parts) => {
                let (a, b) = both(parts);
                format!("min({a}, {b})")
            }
        }
    }

    fn to_plan(&self) -> plan::Expr {
        let both = |parts: &[Size; 2]| parts.each_ref().map(Size::to_plan);
        match self {
            Self::Symbol(symbol) => plan::Expr::Symbol(*symbol),
            // Loops are inside kernels: the compiler checks that none is left over.
            Self::Var(_) | Self::Value(_) => plan::Expr::Symbol(usize::MAX),
            Self::Floor(parts) => plan::Expr::Div(Box::new(both(parts))),
            Self::Max(parts) => plan::Expr::Max(both(parts).into()),
            Self::Min(parts) => plan::Expr::Min(both(parts).into()),
        }
    }
}

impl From<Size> for plan::Expr {
    fn from(size: Size) -> Self {
        size.to_plan()
    }
}

impl From<plan::Expr> for Size {
    fn from(expr: plan::Expr) -> Self {
        let fold = |parts: Vec<plan::Expr>, with: fn(&Self, &Self) -> Self| {
            parts.into_iter().map(Self::from).reduce(|a, b| with(&a, &b)).unwrap_or_default()
        };
        match expr {
            plan::Expr::Known(number) => Self::from(number),
            plan::Expr::Symbol(symbol) => Self::symbol(symbol),
            plan::Expr::Add(parts) => fold(parts, |a, b| a + b),
            plan::Expr::Mul(parts) => fold(parts, |a, b| a * b),
            plan::Expr::Div(parts) => fold((*parts).into(), Self::div_floor),
            plan::Expr::Mod(parts) => fold((*parts).into(), Self::modulo),
            plan::Expr::Max(parts) => fold(parts, Self::max_of),
            plan::Expr::Min(parts) => fold(parts, Self::min_of),
        }
    }
}

impl From<i64> for Size {
    fn from(number: i64) -> Self {
        let mut size = Self::default();
        size.add_term(Monomial::default(), number);
        size
    }
}

impl From<i32> for Size {
    fn from(number: i32) -> Self {
        Self::from(i64::from(number))
    }
}

impl From<usize> for Size {
    /// Sizes past `i64` are refused long before.
    fn from(number: usize) -> Self {
        Self::from(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl Add for &Size {
    type Output = Size;
    fn add(self, other: Self) -> Size {
        let mut sum = self.clone();
        for (monomial, factor) in &other.terms {
            sum.add_term(monomial.clone(), *factor);
        }
        sum
    }
}

impl Neg for &Size {
    type Output = Size;
    fn neg(self) -> Size {
        self * &Size::from(-1)
    }
}

impl Sub for &Size {
    type Output = Size;
    fn sub(self, other: Self) -> Size {
        self + &-other
    }
}

impl Mul for &Size {
    type Output = Size;
    fn mul(self, other: Self) -> Size {
        let mut product = Size::default();
        for (Monomial(a), x) in &self.terms {
            for (Monomial(b), y) in &other.terms {
                let mut atoms = [a.as_slice(), b].concat();
                atoms.sort();
                product.add_term(Monomial(atoms), x.saturating_mul(*y));
            }
        }
        product
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(&|atom| match atom {
            Atom::Symbol(symbol) => format!("s{symbol}"),
            Atom::Var(var) => format!("i{var}"),
            Atom::Value(value) => format!("v{value}"),
            _ => String::new(),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
