//! The primitive IR: maps, sums and products over affine walks.
//!
//! Invariant: a primitive reads only inputs, constants and earlier primitives,
//! and writes a dense tensor of its own.

use kiln_proto::graph::DType;

use super::strided::Strided;

/// Where elements come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Source {
    /// Input of the program, by position.
    Input(usize),
    /// Output of a primitive.
    Prim(usize),
}

/// A tensor that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) source: Source,
    pub(super) walk: Strided,
}

/// What a map computes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// A tensor, walked over the map's own shape.
    Read(Access),
    /// A number.
    Scalar(f64),
}

/// What a map computes, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Neg,
    Exp,
    Sqrt,
    Rsqrt,
    Sigmoid,
    Silu,
    Reciprocal,
    /// Rounds to the map's element type.
    Cast,
    /// Moves.
    Copy,
}

/// What a primitive does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Compute {
    /// One element from one element of each operand.
    Map(Scalar, Vec<Operand>),
    /// Sums the read tensor over its dimensions from `lead` on.
    Sum { read: Access, lead: usize },
    /// `[batch.., m, k] x [batch.., k, n]`; both walks have all the batch dimensions.
    Product { a: Access, b: Access },
}

/// One primitive.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prim {
    pub(super) compute: Compute,
    /// Of what it writes.
    pub(super) shape: Vec<usize>,
    /// Of what it writes.
    pub(super) dtype: DType,
    /// The graph's node that it came from.
    pub(super) origin: usize,
}

impl Prim {
    /// Everything that it reads.
    pub(super) fn reads(&self) -> Vec<&Access> {
        match &self.compute {
            Compute::Map(_, operands) => operands
                .iter()
                .filter_map(|operand| match operand {
                    Operand::Read(access) => Some(access),
                    Operand::Scalar(_) => None,
                })
                .collect(),
            Compute::Sum { read, .. } => vec![read],
            Compute::Product { a, b } => vec![a, b],
        }
    }
}

/// A whole program in primitives.
#[derive(Debug, Clone, Default)]
pub(super) struct Prims {
    /// In an order in which they can run.
    pub(super) list: Vec<Prim>,
    /// The primitive that computes each output.
    pub(super) outputs: Vec<usize>,
    /// Element type of each input.
    pub(super) inputs: Vec<DType>,
}

impl Prims {
    /// Element type of a source.
    pub(super) fn dtype(&self, source: Source) -> DType {
        match source {
            Source::Input(input) => self.inputs[input],
            Source::Prim(prim) => self.list[prim].dtype,
        }
    }
}
