//! The loop IR: buffers, each defined by an expression over loop variables.
//!
//! Views are gone: they are in the indices at which expressions load. A map has
//! one variable, the position in the buffer; a reduction has two, row and column.
//!
//! Invariant: a temporary's expression loads inputs and earlier temporaries only,
//! at positions inside of them wherever its guards hold.

mod expr;

use std::collections::BTreeSet;

use kiln_proto::graph::DType;

pub(crate) use expr::{Domain, Expr, Exprs, Id, Source, domain_of};

use crate::{
    core::{Range, Reduction},
    size::{Bounds, Size},
};

/// The variable of a map; the row of a reduction.
pub(crate) const ROW: usize = 0;
/// The column of a reduction.
pub(crate) const COLUMN: usize = 1;

/// A whole program in loops.
#[derive(Debug, Default)]
pub(crate) struct Loops {
    pub(crate) symbols: Vec<Range>,
    pub(crate) exprs: Exprs,
    /// Types of the inputs, by position in the graph.
    pub(crate) inputs: Vec<DType>,
    /// Those of them that are baked in.
    pub(crate) constants: BTreeSet<Source>,
    /// Those of them that are what they are before anything is launched: parameters,
    /// buffers and constants. What a user gives, the launch before may still write, and
    /// what the program itself writes to.
    pub(crate) settled: BTreeSet<Source>,
    /// In an order in which they can run.
    pub(crate) temps: Vec<Temp>,
    /// For each output, the temporary that holds it, and nothing else does.
    pub(crate) outputs: Vec<usize>,
    /// Those of them that are written to an input, and to which.
    pub(crate) updates: Vec<(usize, usize)>,
}

impl Loops {
    /// The type of a source's elements.
    pub(crate) fn dtype(&self, source: Source) -> DType {
        match source {
            Source::Input(input) => self.inputs[input],
            Source::Temp(temp) => self.temps[temp].dtype,
        }
    }

    /// The input that a temporary is written to.
    pub(crate) fn updated(&self, temp: usize) -> Option<usize> {
        self.updates.iter().find(|(own, _)| *own == temp).map(|(_, input)| *input)
    }

    /// What `size` is at most, if its symbols have bounds.
    pub(crate) fn most(&self, size: &Size) -> Option<i64> {
        let symbol = size.as_symbol()?;
        self.symbols.get(symbol).map(|range| range.max).filter(|max| *max != i64::MAX)
    }
}

/// A dense buffer and what fills it.
#[derive(Debug, Clone)]
pub(crate) struct Temp {
    pub(crate) dtype: DType,
    /// Elements.
    pub(crate) numel: Size,
    pub(crate) def: Def,
    /// Nodes of the graph that it came from, ascending.
    pub(crate) origins: Vec<usize>,
}

/// What fills a buffer.
#[derive(Debug, Clone)]
pub(crate) enum Def {
    /// Element [`ROW`] by this.
    Map(Id),
    /// Element [`ROW`] by what this gives for all columns.
    Reduce { how: Reduction, domain: Domain, rows: Size, columns: Size, of: Id },
    /// Element `row * columns + column`: the sum of this up to the column.
    Scan { domain: Domain, rows: Size, columns: Size, of: Id },
    /// Element `row * k + i`: the i-th greatest (or least) of a row, or its position; from the
    /// [`Def::Runs`] of the same rows, where there are such.
    TopK {
        k: i64,
        largest: bool,
        positions: bool,
        rows: Size,
        columns: Size,
        of: Id,
        runs: Option<usize>,
    },
    /// Element `row * columns + i`: the position in its row of the i-th, where each chunk of a row
    /// is in order, the greatest (or least) first.
    Runs { largest: bool, rows: Size, columns: Size, of: Id },
    /// Element `(z * m + i) * n + j`: row i of `a` times column j of `b`.
    Product(Box<Product>),
    /// Element `((b * s + i) * h + head) * e + j`, or as [`Attention::by_head`] says.
    Attention(Box<Attention>),
}

/// A batch of products of matrices.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    pub(crate) batch: Size,
    pub(crate) m: Size,
    pub(crate) n: Size,
    pub(crate) k: Size,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    /// The batch of `b` is theirs, and `batch` is one.
    pub(crate) groups: Option<Groups>,
}

/// Rows in groups, each with a matrix of its own: see [`crate::core::Op::GroupedMatMul`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) count: Size,
    /// Whole numbers: where each ends.
    pub(crate) ends: Source,
    /// Elements before the first one.
    pub(crate) offset: Size,
    /// Elements from one to the next.
    pub(crate) step: Size,
}

impl Product {
    /// What it reads.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Source> {
        let ends = self.groups.as_ref().map(|groups| groups.ends);
        [self.a.source, self.b.source].into_iter().chain(ends)
    }
}

/// A batch of strided matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub(crate) source: Source,
    /// Elements before the first one of batch [`ROW`].
    pub(crate) offset: Size,
    /// In elements; m or n.
    pub(crate) outer: Size,
    /// In elements; k.
    pub(crate) reduced: Size,
}

/// Softmax attention; names as in [`crate::core::Op::Attention`].
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) batch: Size,
    pub(crate) heads: i64,
    pub(crate) group: i64,
    pub(crate) rows: Size,
    pub(crate) keys: Size,
    pub(crate) d: i64,
    pub(crate) e: i64,
    pub(crate) causal: bool,
    pub(crate) scale: f64,
    /// The buffer has the rows of a head together: `((b * h + head) * s + i) * e + j`.
    pub(crate) by_head: bool,
    /// Each with the strides of batch, head, row; the last dimension is dense.
    pub(crate) q: Heads,
    pub(crate) k: Heads,
    pub(crate) v: Heads,
    /// Over variables 0 to 3: batch, head, row, key. A float is added; false is [`Self::hidden`].
    pub(crate) mask: Option<Id>,
    pub(crate) hidden: f64,
    /// Whether a row of which nothing is seen gives zero, else NaN.
    pub(crate) empty_zero: bool,
}

/// Rows of each head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) source: Source,
    pub(crate) offset: Size,
    pub(crate) strides: [Size; 3],
}

/// Elements of a tensor.
pub(crate) fn numel(shape: &[Size]) -> Size {
    shape.iter().fold(Size::from(1), |product, size| &product * size)
}

/// Strides of a dense tensor in row-major order.
pub(crate) fn row_major(shape: &[Size]) -> Vec<Size> {
    let mut strides = vec![Size::from(1); shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = &strides[dim] * &shape[dim];
    }
    strides
}

/// The position of `indices` in a dense tensor.
pub(crate) fn flattened(indices: &[Size], shape: &[Size]) -> Size {
    let parts = indices.iter().zip(row_major(shape));
    parts.fold(Size::default(), |sum, (index, stride)| &sum + &(index * &stride))
}

/// The indices of position `flat` in a dense tensor.
pub(crate) fn unflattened(flat: &Size, shape: &[Size], bounds: &Bounds<'_>) -> Vec<Size> {
    let mut indices = vec![Size::default(); shape.len()];
    let mut rest = flat.clone();
    // The outermost dimension that has a choice takes what is left.
    let first = shape.iter().position(|size| !size.is(1)).unwrap_or(0);
    for dim in (0..shape.len()).rev() {
        if shape[dim].is(1) || shape[dim].is(0) {
            continue;
        }
        if dim == first {
            indices[dim] = rest;
            break;
        }
        indices[dim] = rest.mod_in(&shape[dim], bounds);
        rest = rest.div_in(&shape[dim], bounds);
    }
    indices
}
