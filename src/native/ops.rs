//! The operations that `native` knows, by the names torch.export gives them.
//!
//! Invariant: one table. An operation that is here is inferred, lowered and
//! keyed; one that is not is refused by name.

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unary {
    Neg,
    Exp,
    Sqrt,
    Rsqrt,
    Sigmoid,
    Silu,
    Reciprocal,
}

/// A function of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
}

/// A product of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// `input @ weight.T + bias`
    Linear,
    /// Two matrices, exactly.
    Mm,
    /// Two batches of matrices.
    Bmm,
    /// Any ranks, with broadcasting.
    Matmul,
    /// `beta * self + alpha * (mat1 @ mat2)`
    Addmm,
}

/// Another arrangement of the same elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrange {
    /// `view`, `reshape`
    Reshape,
    Permute,
    Transpose,
    /// `t`
    Flip,
    Unsqueeze,
    Squeeze,
    Expand,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Unary(Unary),
    /// `other` is a tensor or a scalar.
    Binary(Binary),
    /// Over dimensions.
    Mean,
    /// To another element type.
    Cast,
    Product(Product),
    Arrange(Arrange),
    /// The same elements: aliases and copies.
    Same,
    /// A check that holds at export; checked again here, computes nothing.
    Check,
}

/// What the operation `name` (without `torch.ops.`) does.
pub(super) fn lookup(name: &str) -> Option<Op> {
    let name = name.strip_prefix("aten.")?;
    Some(match name {
        "neg.default" => Op::Unary(Unary::Neg),
        "exp.default" => Op::Unary(Unary::Exp),
        "sqrt.default" => Op::Unary(Unary::Sqrt),
        "rsqrt.default" => Op::Unary(Unary::Rsqrt),
        "sigmoid.default" => Op::Unary(Unary::Sigmoid),
        "silu.default" => Op::Unary(Unary::Silu),
        "reciprocal.default" => Op::Unary(Unary::Reciprocal),
        "add.Tensor" | "add.Scalar" => Op::Binary(Binary::Add),
        "sub.Tensor" | "sub.Scalar" => Op::Binary(Binary::Sub),
        "mul.Tensor" | "mul.Scalar" => Op::Binary(Binary::Mul),
        "div.Tensor" | "div.Scalar" => Op::Binary(Binary::Div),
        "pow.Tensor_Scalar" | "pow.Tensor_Tensor" => Op::Binary(Binary::Pow),
        "mean.dim" | "mean.default" => Op::Mean,
        "to.dtype" | "to.dtype_layout" | "_to_copy.default" => Op::Cast,
        "linear.default" => Op::Product(Product::Linear),
        "mm.default" => Op::Product(Product::Mm),
        "bmm.default" => Op::Product(Product::Bmm),
        "matmul.default" => Op::Product(Product::Matmul),
        "addmm.default" => Op::Product(Product::Addmm),
        "view.default" | "reshape.default" | "_unsafe_view.default" => {
            Op::Arrange(Arrange::Reshape)
        }
        "permute.default" => Op::Arrange(Arrange::Permute),
        "transpose.int" => Op::Arrange(Arrange::Transpose),
        "t.default" => Op::Arrange(Arrange::Flip),
        "unsqueeze.default" => Op::Arrange(Arrange::Unsqueeze),
        "squeeze.default" | "squeeze.dim" | "squeeze.dims" => Op::Arrange(Arrange::Squeeze),
        "expand.default" => Op::Arrange(Arrange::Expand),
        "alias.default"
        | "clone.default"
        | "contiguous.default"
        | "detach.default"
        | "lift_fresh_copy.default" => Op::Same,
        "_assert_tensor_metadata.default" => Op::Check,
        _ => return None,
    })
}
