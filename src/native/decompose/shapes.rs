//! Shapes with symbols: the exporter's formulas as [`Size`]s, and when two are the same.
//!
//! Invariant: symbols are numbered by their first appearance in the inputs, so
//! that their names leave no trace.

use std::collections::HashSet;

use kiln_proto::graph::{Dim, Graph};

use super::super::{core::Range, size::Size};

/// Most elements of one tensor, where its sizes are known.
const MOST_ELEMENTS: i64 = 1 << 40;
/// Most dimensions of one tensor.
const MOST_DIMENSIONS: usize = 64;

/// The symbols of a program, in the order of the inputs.
#[derive(Debug)]
pub(crate) struct Symbols<'a> {
    names: Vec<&'a str>,
    pub(crate) ranges: Vec<Range>,
}

impl<'a> Symbols<'a> {
    pub(crate) fn of(graph: &'a Graph) -> Self {
        let mut symbols = Self { names: Vec::new(), ranges: Vec::new() };
        let mut seen = HashSet::new();
        for input in &graph.inputs {
            for dim in &graph.value(input.value).ty.shape {
                let Dim::Symbolic(formula) = dim else { continue };
                let words = formula.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                for word in words {
                    let known = graph.symbols.iter().find(|symbol| symbol.name == word);
                    if let Some(symbol) = known.filter(|_| seen.insert(word)) {
                        symbols.names.push(&symbol.name);
                        symbols.ranges.push(Range {
                            min: symbol.min.unwrap_or(0).max(0),
                            max: symbol.max.unwrap_or(i64::MAX),
                        });
                    }
                }
            }
        }
        symbols
    }

    pub(crate) fn size(&self, dim: &Dim) -> Result<Size, String> {
        match dim {
            Dim::Static(size) => i64::try_from(*size).map(Size::from).map_err(|e| e.to_string()),
            Dim::Symbolic(formula) => self.formula(formula),
        }
    }

    pub(super) fn formula(&self, formula: &str) -> Result<Size, String> {
        Size::parse(formula, &self.names)
    }

    /// A symbol's name in the graph.
    pub(crate) fn name(&self, symbol: usize) -> &'a str {
        self.names[symbol]
    }

    /// The symbol of that name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| *known == name)
    }
}

/// Symbol values at which formulas are compared: both ends of the ranges, and
/// scattered ones. Formulas that differ do so at one of them.
pub(super) fn samples(ranges: &[Range]) -> Vec<Vec<i64>> {
    let at = |step: u64| {
        let value = |(i, range): (u64, &Range)| {
            let span = range.max.saturating_sub(range.min).saturating_add(1).clamp(1, 9973);
            let scattered = (step * 31 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            range.min
                + match step {
                    0 => 0,
                    1 => span - 1,
                    _ => scattered as i64 % span,
                }
        };
        (0..).zip(ranges).map(value).collect()
    };
    (0..16).map(at).collect()
}

/// Number of elements, where all sizes are known and within limits.
pub(super) fn elements(shape: &[Size]) -> Result<Option<i64>, String> {
    if shape.len() > MOST_DIMENSIONS {
        return Err(format!("{} dimensions, at most {MOST_DIMENSIONS}", shape.len()));
    }
    let known = shape.iter().filter_map(Size::known);
    let product = known.fold(1i64, |all, size| all.saturating_mul(size));
    if product > MOST_ELEMENTS {
        return Err(format!("shape {} has more than {MOST_ELEMENTS} elements", show(shape)));
    }
    Ok(shape.iter().all(|size| size.known().is_some()).then_some(product))
}

/// The product of sizes.
pub(super) fn product<'s>(sizes: impl IntoIterator<Item = &'s Size>) -> Size {
    sizes.into_iter().fold(Size::from(1), |all, size| &all * size)
}

/// `[2, s0, 3]`
pub(super) fn show(shape: &[Size]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

/// A dimension that may count from the end; tensors without any have one here.
pub(crate) fn dimension(dim: i64, rank: usize) -> Result<usize, String> {
    let rank = rank.max(1);
    let from_start = if dim < 0 { dim + rank as i64 } else { dim };
    usize::try_from(from_start)
        .ok()
        .filter(|d| *d < rank)
        .ok_or_else(|| format!("dimension {dim} of a tensor with {rank}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_tell_sizes_apart_whatever_the_ranges() {
        for min in 0..3 {
            for max in min + 1..40 {
                let found = samples(&[Range { min, max }, Range { min, max }]);
                let differ = |f: fn(i64, i64) -> i64, g: fn(i64, i64) -> i64| {
                    found.iter().any(|at| f(at[0], at[1]) != g(at[0], at[1]))
                };
                assert!(differ(|a, _| a, |_, b| b), "s0 and s1 in {min} to {max}");
                assert!(differ(|a, _| a, |_, _| 1), "s0 and 1 in {min} to {max}");
                assert!(differ(|a, b| a * b, |a, _| a), "s0 * s1 and s0 in {min} to {max}");
                assert!(found.iter().flatten().all(|value| (min..=max).contains(value)));
            }
        }
    }
}
