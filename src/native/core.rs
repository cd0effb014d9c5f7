//! The core IR: a typed program over some thirty operations.
//!
//! `decompose` brings every ATen operation to these; the interpreter and the
//! code generator know nothing else. Casts, broadcasts and intermediate types
//! are explicit, so that both compute the same thing.
//!
//! Invariant: a node reads inputs and earlier nodes only; each value has one
//! writer; shapes follow from the operation and what it reads.

use kiln_proto::graph::DType;

use super::size::Size;

/// Index into [`Program::values`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct ValueId(pub usize);

/// A whole program.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Program {
    /// The values that each symbol may take; [`Size`]s name symbols by position.
    pub symbols: Vec<Range>,
    /// All tensors.
    pub values: Vec<Value>,
    /// In the order in which callers give them.
    pub inputs: Vec<Input>,
    /// In an order in which they can run; all are live.
    pub nodes: Vec<Node>,
    /// In the order in which callers get them; behind these what is left in `updates`.
    pub outputs: Vec<ValueId>,
    /// Positions of the inputs in which the program leaves something, ascending: the last
    /// outputs, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub updates: Vec<usize>,
}

/// Bounds of a symbol, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Least value.
    pub min: i64,
    /// Greatest value; `i64::MAX`: unbounded.
    pub max: i64,
}

/// A tensor: dense and row-major, unless it is an input.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Value {
    /// Of the elements: what a reader sees was rounded to it.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<Size>,
}

/// What the caller gives, or a constant.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Input {
    /// What it defines.
    pub value: ValueId,
    /// Position in the graph's inputs, where its kind and data are.
    pub position: usize,
    /// In elements, for each dimension.
    pub strides: Vec<Size>,
}

/// One operation.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Tensors that it reads, as the operation wants them.
    pub reads: Vec<ValueId>,
    /// What it defines.
    pub writes: ValueId,
    /// Index of the graph's node that it came from.
    pub origin: usize,
}

/// A number in the program.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Number {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(#[serde(with = "float")] f64),
    /// A whole number that depends on symbols.
    Size(Size),
}

/// An operand of a map.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Operand {
    /// Position in [`Node::reads`]; broadcast to the result's shape, from the right.
    Read(usize),
    /// The same number everywhere.
    Number(Number),
}

/// The arithmetic in which a map or reduction computes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Domain {
    /// `f32` on the GPU, or `f64` where that is the type of an operand or the result; `f64` in
    /// the interpreter. Operands are converted to it.
    Float,
    /// `i64`, wrapping; a result that is stored as `i32` keeps its low bits.
    Int,
    /// Truth values: zero is false.
    Bool,
}

/// A function of numbers, computed in a [`Domain`]. Comparisons and tests give
/// truth values.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[allow(missing_docs, reason = "named as in mathematics")]
pub enum Fun {
    // One operand.
    /// The operand itself: a cast, where the result's type is another. Float to
    /// int truncates; to bool, not zero.
    Id,
    Neg,
    Abs,
    Sign,
    Floor,
    Ceil,
    Trunc,
    /// To the nearest, ties to even.
    Round,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Exp,
    Exp2,
    Expm1,
    Log,
    Log2,
    Log10,
    Log1p,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Tanh,
    Asinh,
    Acosh,
    Atanh,
    Erf,
    Sigmoid,
    /// Logical, in any domain: equal to zero.
    Not,
    /// Bitwise; of truth values: logical.
    BitNot,
    IsNan,
    IsInf,
    // Two operands.
    Add,
    Sub,
    Mul,
    /// True division of floats.
    Div,
    /// Rounds down.
    FloorDiv,
    /// Rounds towards zero.
    TruncDiv,
    /// Of the divisor's sign.
    Remainder,
    /// Of the dividend's sign.
    Fmod,
    Pow,
    Atan2,
    /// NaN if one of them is.
    Min,
    /// NaN if one of them is.
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    // Three operands.
    /// The second where the first is not zero, else the third.
    Where,
}

/// How many numbers become one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Reduction {
    /// Of nothing: zero.
    Sum,
    /// Of nothing: one.
    Prod,
    /// NaN if one is. Of nothing: minus infinity, false, or the least `i64` as the type keeps it.
    Max,
    /// NaN if one is. Of nothing: infinity, true, or the greatest `i64` as the type keeps it.
    Min,
    /// One is not zero.
    Any,
    /// None is zero.
    All,
    /// Position of the greatest over the reduced dimensions in row-major order: the first, NaN counts as greatest.
    ArgMax,
    /// Position of the least: the first, NaN counts as least.
    ArgMin,
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Op {
    /// Element by element. The result is rounded to its type.
    Map {
        /// What is computed.
        fun: Fun,
        /// In which arithmetic.
        domain: Domain,
        /// As many as `fun` takes.
        args: Vec<Operand>,
    },
    /// Over `dims` (ascending, not kept) of one tensor. Floats accumulate in
    /// `f32` (GPU; `f64` where they are) or `f64` (interpreter), whole numbers in `i64`.
    Reduce {
        /// How.
        how: Reduction,
        /// Over which dimensions.
        dims: Vec<usize>,
    },
    /// Running sums along a dimension.
    CumSum {
        /// Which.
        dim: usize,
    },
    /// The `k` greatest or least along the last dimension, in order, the first
    /// position first among equals; NaN counts as greatest.
    TopK {
        /// How many: the last size of the result.
        k: usize,
        /// The greatest, else the least.
        largest: bool,
        /// Gives positions (i64) instead of values.
        positions: bool,
    },
    /// `[batch.., m, k] x [batch.., k, n]`, the batch sizes equal. Accumulates
    /// as a sum does, rounded once.
    MatMul,
    /// Rows in groups, each group by a matrix of its own: reads `[t, k]`, `[e, k, n]` and whole
    /// numbers `[e]`, where each group ends. A group begins where the one before it ended, and
    /// has no rows if it ends before that; rows behind the last one give zero. Accumulates as
    /// [`MatMul`](Self::MatMul) does.
    GroupedMatMul,
    /// `softmax(scale * q k^T + mask) v`: reads q `[b, h, s, d]`, k `[b, g, t, d]`,
    /// v `[b, g, t, e]` and perhaps a mask that broadcasts to `[b, h, s, t]`
    /// (bool: false hides; float: added). `g` divides `h`: head `i`
    /// of q reads head `i / (h / g)`. What is not seen does not count, whatever it is.
    Attention {
        /// Position `i` of q sees positions up to `i` of k.
        causal: bool,
        /// Factor of the products.
        #[serde(with = "float")]
        scale: f64,
        /// What a score becomes where a bool mask is false.
        #[serde(with = "float", default = "nothing", skip_serializing_if = "is_nothing")]
        hidden: f64,
        /// What a row gives whose scores are all minus infinity.
        #[serde(default, skip_serializing_if = "Empty::is_usual")]
        empty: Empty,
    },
    /// The same elements in row-major order under the result's shape.
    Reshape,
    /// Dimension `i` of the result is dimension `order[i]`.
    Permute(Vec<usize>),
    /// Broadcast to the result's shape, from the right.
    Expand,
    /// Elements `start`, `start + step`, ... along `dim`.
    Slice {
        /// Along which.
        dim: usize,
        /// The first.
        start: Size,
        /// At least one.
        step: i64,
    },
    /// Backwards along each of these.
    Flip(Vec<usize>),
    /// Element `i` of the result is element `(i - shift) mod size`.
    Roll {
        /// Along which.
        dim: usize,
        /// May be negative.
        shift: Size,
    },
    /// `before[dim]` elements more at the start of each dimension (never
    /// negative), and as many at the end as the result's shape says.
    Pad {
        /// For each dimension.
        before: Vec<Size>,
        /// What the new elements are.
        value: Number,
    },
    /// One after the other along `dim`.
    Cat {
        /// Along which.
        dim: usize,
    },
    /// Windows of `dim`, as a new last dimension: element `[.., i, .., j]` is
    /// element `i * step + j * dilation` of `dim`.
    Window {
        /// Along which.
        dim: usize,
        /// From window to window.
        step: i64,
        /// Within a window.
        dilation: i64,
    },
    /// Reads `[x, positions]`: `positions` has x's rank and the result's shape;
    /// the result at `i` is x at `i` with `i[dim]` replaced by `positions[i]`.
    Gather {
        /// Along which.
        dim: usize,
    },
    /// Reads `[x, positions..]`: one tensor of positions for each of `dims`
    /// (ascending), all of one shape P. The result is P, then x's other dimensions.
    Index {
        /// Which dimensions are indexed.
        dims: Vec<usize>,
        /// Negative positions count from the end.
        wrap: bool,
    },
    /// `start + i * step` along the only dimension.
    Iota {
        /// The first.
        start: Number,
        /// The difference of neighbours.
        step: Number,
    },
    /// One number everywhere.
    Full(Number),
}

/// What attention gives where there is nothing to attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Empty {
    /// NaN for a float mask, else zero.
    #[default]
    ByMask,
    /// Zero.
    Zero,
    /// NaN, as a softmax has it.
    Nan,
}

impl Empty {
    /// Whether that is zero, with a mask of that type or none.
    pub fn is_zero(self, mask: Option<DType>) -> bool {
        match self {
            Self::ByMask => mask.is_none_or(|dtype| dtype == DType::Bool),
            Self::Zero => true,
            Self::Nan => false,
        }
    }

    fn is_usual(&self) -> bool {
        *self == Self::ByMask
    }
}

impl Op {
    /// Attention as `scaled_dot_product_attention` has it.
    pub fn attention(causal: bool, scale: f64) -> Self {
        Self::Attention { causal, scale, hidden: nothing(), empty: Empty::ByMask }
    }
}

/// The score of what counts for nothing.
fn nothing() -> f64 {
    f64::NEG_INFINITY
}

fn is_nothing(score: &f64) -> bool {
    *score == nothing()
}

impl Reduction {
    /// Whether the result is a position.
    pub fn gives_positions(self) -> bool {
        matches!(self, Self::ArgMax | Self::ArgMin)
    }
}

impl Program {
    /// How many of the outputs callers get.
    pub fn returned(&self) -> usize {
        self.outputs.len().saturating_sub(self.updates.len())
    }

    /// The first updated input that is of another type or shape than what is left in it.
    pub(crate) fn misfit(&self) -> Option<usize> {
        let left = self.outputs.iter().skip(self.returned());
        let mut pairs = self.updates.iter().zip(left);
        let fits = |input: usize, left: ValueId| {
            let own = self.inputs.iter().find(|own| own.position == input);
            own.is_none_or(|own| {
                let (own, left) = (self.value(own.value), self.value(left));
                own.dtype == left.dtype && own.shape == left.shape
            })
        };
        pairs.find(|(input, left)| !fits(**input, **left)).map(|(input, _)| *input)
    }

    /// The value behind an id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }
}

/// Floats as text, which knows infinities and loses no bit.
mod float {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(float: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{float:?}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
