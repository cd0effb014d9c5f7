//! Sizes of a graph, and which inputs decide them.
//!
//! Invariant: a piece has each of its symbols in the shape of one of its inputs,
//! so that it is a program of its own.

use std::collections::BTreeSet;

use kiln_proto::graph::{Argument, Dim, Graph, Node, SymInt, TensorType, ValueId};

use crate::{
    decompose::Symbols,
    size::{Atom, Size},
};

/// The sizes of a graph, symbols by their position in the core program.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    symbols: Symbols<'a>,
    /// What a symbol is taken to be where a number is needed.
    assumed: Vec<i64>,
}

impl<'a> Sizes<'a> {
    /// A symbol is taken to be `assumed`, or what of its range is nearest.
    pub(super) fn of(graph: &'a Graph, assumed: u32) -> Self {
        let symbols = Symbols::of(graph);
        let ranges = symbols.ranges.iter();
        let assumed = ranges.map(|range| i64::from(assumed).min(range.max).max(range.min));
        Self { assumed: assumed.collect(), symbols }
    }

    /// A size as one.
    pub(super) fn size(&self, dim: &Dim) -> Result<Size, String> {
        self.symbols.size(dim)
    }

    /// The bytes of a dense tensor.
    pub(super) fn bytes_of(&self, ty: &TensorType) -> Result<Size, String> {
        let width = Size::from(ty.dtype.bytes() as i64);
        ty.shape.iter().try_fold(width, |bytes, dim| Ok(&bytes * &self.size(dim)?))
    }

    /// The bytes of a dense tensor, about.
    pub(super) fn bytes(&self, ty: &TensorType) -> u64 {
        let sizes = ty.shape.iter().map(|dim| match dim {
            Dim::Static(size) => *size,
            Dim::Symbolic(_) => {
                let size = self.size(dim).ok().and_then(|size| size.value(&self.assumed));
                size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0)
            }
        });
        sizes.fold(ty.dtype.bytes(), u64::saturating_mul)
    }

    /// The symbols in `formula`.
    fn named(&self, formula: &str) -> impl Iterator<Item = usize> {
        let words = formula.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter_map(|word| self.symbols.position(word))
    }

    fn of_type(&self, ty: &TensorType, found: &mut BTreeSet<usize>) {
        for dim in ty.shape.iter().chain(&ty.strides) {
            if let Dim::Symbolic(formula) = dim {
                found.extend(self.named(formula));
            }
        }
    }

    /// The symbols in what `node` is told and in the shapes that it gives.
    pub(super) fn of_node(&self, graph: &Graph, node: &Node, found: &mut BTreeSet<usize>) {
        for (_, argument) in &node.args {
            match argument {
                Argument::SymInt(formula) => found.extend(self.named(formula)),
                Argument::SymInts(ints) => ints.iter().for_each(|int| match int {
                    SymInt::Known(_) => {}
                    SymInt::Symbolic(formula) => found.extend(self.named(formula)),
                }),
                Argument::Sizes(sizes) => sizes.iter().flatten().for_each(|dim| match dim {
                    Dim::Static(_) => {}
                    Dim::Symbolic(formula) => found.extend(self.named(formula)),
                }),
                _ => {}
            }
        }
        node.outputs.iter().for_each(|value| self.of_type(&graph.value(*value).ty, found));
    }

    /// The symbols in an input's type.
    pub(super) fn of_input(&self, graph: &Graph, value: ValueId, found: &mut BTreeSet<usize>) {
        self.of_type(&graph.value(value).ty, found);
    }

    /// Whether a dimension of that shape says what the symbol is.
    pub(super) fn decides(&self, ty: &TensorType, symbol: usize) -> bool {
        ty.shape.iter().any(|dim| {
            let Ok(size) = self.size(dim) else { return false };
            let linear = size.linear_in(&Atom::Symbol(symbol));
            let known = linear.and_then(|(scale, rest)| Some((scale.known()?, rest.known()?)));
            known.is_some_and(|(scale, _)| scale > 0)
        })
    }

    /// A symbol's name in the graph.
    pub(super) fn name(&self, symbol: usize) -> &'a str {
        self.symbols.name(symbol)
    }
}

/// Strides of a dense tensor of `shape`.
pub(super) fn dense(shape: &[Dim]) -> Vec<Dim> {
    let mut known = 1u64;
    let mut formulas: Vec<String> = Vec::new();
    let mut strides = Vec::with_capacity(shape.len());
    for dim in shape.iter().rev() {
        strides.push(match formulas.is_empty() {
            true => Dim::Static(known),
            false => Dim::Symbolic(match known {
                1 => formulas.join("*"),
                _ => format!("{known}*{}", formulas.join("*")),
            }),
        });
        // As the exporter has it: of a size zero the next stride is not zero.
        match dim {
            Dim::Static(size) => known = known.saturating_mul((*size).max(1)),
            Dim::Symbolic(formula) => formulas.push(factor(formula)),
        }
    }
    strides.reverse();
    strides
}

/// `formula` within a product.
fn factor(formula: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if formula.chars().all(plain) { formula.to_owned() } else { format!("({formula})") }
}
