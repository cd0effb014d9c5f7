//! Products of matrices.
//!
//! Invariant: a product and what is added to it are rounded once, together.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Fun, Number, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder, domain},
    elementwise::promoted,
    one,
    promote::is_float,
    shapes::{product, show},
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "linear.default" => linear,
        "mm.default" | "bmm.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor("mat2")?);
            plain(args, a, b)
        },
        "matmul.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor("other")?);
            plain(args, a, b)
        },
        "mv.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor("vec")?);
            plain(args, a, b)
        },
        "dot.default" | "vdot.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor(right_of_dot(args))?);
            plain(args, a, b)
        },
        "addmm.default" => |args| added(args, "mat1", "mat2"),
        "baddbmm.default" => |args| added(args, "batch1", "batch2"),
        "addmv.default" => |args| added(args, "mat", "vec"),
        "outer.default" | "ger.default" => outer,
        _ => return None,
    })
}

fn right_of_dot(args: &Args<'_>) -> &'static str {
    if args.node.arg("other").is_some() { "other" } else { "tensor" }
}

fn plain(args: &mut Args<'_>, a: ValueId, b: ValueId) -> Outputs {
    let dtype = args.b.dtype(a);
    one(matmul(args.b, a, b, dtype)?)
}

/// The product of any ranks, with broadcasting, as `dtype`.
pub(super) fn matmul(
    b: &mut Builder,
    left: ValueId,
    right: ValueId,
    dtype: DType,
) -> Result<ValueId, Why> {
    let (x, y) = (b.shape(left), b.shape(right));
    let wrong = || Why::Wrong(format!("a product of shapes {} and {}", show(&x), show(&y)));
    if b.dtype(left) != b.dtype(right) {
        let (x, y) = (b.dtype(left), b.dtype(right));
        return Err(Why::Wrong(format!("a product of {x} and {y}")));
    }
    if b.dtype(left) == DType::Bool {
        return unsupported("a product of truth values");
    }
    if x.is_empty() || y.is_empty() {
        return Err(wrong());
    }
    // Vectors are matrices with one row or column.
    let mut left = left;
    let mut right = right;
    if x.len() == 1 {
        left = b.unsqueeze(left, 0);
    }
    if y.len() == 1 {
        right = b.unsqueeze(right, 1);
    }
    let (xs, ys) = (b.shape(left), b.shape(right));
    let (Some((xb, [m, k])), Some((yb, [k2, n]))) =
        (xs.split_last_chunk::<2>(), ys.split_last_chunk::<2>())
    else {
        return Err(wrong());
    };
    if !b.same(k, k2) {
        return Err(wrong());
    }
    let batch = b.broadcast(xb, yb).map_err(|_| wrong())?;
    let mut shape = batch.clone();
    if x.len() > 1 {
        shape.push(m.clone());
    }
    if y.len() > 1 {
        shape.push(n.clone());
    }
    let value = if yb.is_empty() && !xb.is_empty() {
        // A batch against one matrix is one product with more rows.
        let rows = &product(xb) * m;
        let flat = b.reshape(left, vec![rows.clone(), k.clone()]);
        b.push(Op::MatMul, vec![flat, right], dtype, vec![rows, n.clone()])
    } else {
        let with = |last: [&Size; 2]| [batch.as_slice(), &last.map(Clone::clone)].concat();
        let left = b.expand(left, with([m, k]));
        let right = b.expand(right, with([k, n]));
        b.push(Op::MatMul, vec![left, right], dtype, with([m, n]))
    };
    Ok(b.reshape(value, shape))
}

/// The type of what is summed before it is rounded.
fn inner(dtype: DType) -> DType {
    if is_float(dtype) && dtype != DType::F64 { DType::F32 } else { dtype }
}

fn linear(args: &mut Args<'_>) -> Outputs {
    let (x, weight) = (args.tensor("input")?, args.tensor("weight")?);
    let dtype = args.b.dtype(x);
    let weight = match args.b.rank(weight) {
        1 => weight,
        2 => args.b.permute(weight, &[1, 0]),
        rank => return Err(Why::Wrong(format!("a weight with {rank} dimensions"))),
    };
    match args.maybe_tensor("bias")? {
        None => one(matmul(args.b, x, weight, dtype)?),
        Some(bias) => {
            let product = matmul(args.b, x, weight, inner(dtype))?;
            one(plus(args, product, bias.into(), dtype)?)
        }
    }
}

/// `product + other`, of the product's shape.
fn plus(args: &mut Args<'_>, product: ValueId, other: Arg, dtype: DType) -> Result<ValueId, Why> {
    let sum = args.b.map(Fun::Add, domain(dtype), &[product.into(), other], dtype)?;
    let (a, b) = (args.b.shape(sum), args.b.shape(product));
    if !args.b.same_shape(&a, &b) {
        return Err(Why::Wrong(format!("{} added to {}", show(&a), show(&b))));
    }
    Ok(sum)
}

/// `beta * self + alpha * (left @ right)`
fn added(args: &mut Args<'_>, left: &str, right: &str) -> Outputs {
    let (a, b) = (args.tensor(left)?, args.tensor(right)?);
    let dtype = args.b.dtype(a);
    let x = args.tensor("self")?;
    let alpha = args.maybe_number("alpha")?.unwrap_or(Number::Int(1));
    let beta = args.maybe_number("beta")?.unwrap_or(Number::Int(1));
    let is = |number: &Number, x: f64| match number {
        Number::Int(int) => *int as f64 == x,
        Number::Float(float) => *float == x,
        _ => false,
    };
    // What nothing is added to is rounded once as it is.
    let alone = is(&alpha, 1.0) && is(&beta, 0.0);
    let mut product = matmul(args.b, a, b, if alone { dtype } else { inner(dtype) })?;
    if alone {
        return one(product);
    }
    let d = domain(dtype);
    if !is(&alpha, 1.0) {
        product = args.b.map(Fun::Mul, d, &[product.into(), alpha.into()], inner(dtype))?;
    }
    let mut x = Arg::from(x);
    if is(&beta, 0.0) {
        // Not even NaN gets through.
        return one(args.b.cast(product, dtype));
    }
    if !is(&beta, 1.0) {
        x = args.b.map(Fun::Mul, d, &[x, beta.into()], inner(dtype))?.into();
    }
    one(plus(args, product, x, dtype)?)
}

fn outer(args: &mut Args<'_>) -> Outputs {
    let (a, b) = (args.tensor("self")?, args.tensor("vec2")?);
    let (operands, dtype) = promoted(args, vec![a.into(), b.into()])?;
    let [Arg::Tensor(a), b] = &operands[..] else { return Err("no tensors".into()) };
    let a = args.b.unsqueeze(*a, 1);
    one(args.b.map(Fun::Mul, domain(dtype), &[a.into(), b.clone()], dtype)?)
}
