//! Variances, norms and sums of exponentials.
//!
//! Invariant: variances are sums of squared distances from the mean, never
//! differences of sums.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Op, Reduction, ValueId},
        size::{Bounds, Size},
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    one,
    promote::{float_of, is_float},
    reductions::{count, divisor, reduce, reduced},
    shapes::product,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "var.default" | "var.dim" | "var.correction" => |args| variance(args, false, false),
        "std.default" | "std.dim" | "std.correction" => |args| variance(args, true, false),
        "var_mean.default" | "var_mean.dim" | "var_mean.correction" => {
            |args| variance(args, false, true)
        }
        "std_mean.default" | "std_mean.dim" | "std_mean.correction" => {
            |args| variance(args, true, true)
        }
        "linalg_vector_norm.default" => |args| norm(args, "ord"),
        "norm.Scalar"
        | "norm.ScalarOpt_dim"
        | "norm.ScalarOpt_dim_dtype"
        | "norm.ScalarOpt_dtype" => |args| norm(args, "p"),
        "logsumexp.default" => logsumexp,
        _ => return None,
    })
}

/// Mean and sum of squared distances from it, in `f32`, over `dims`, which are kept.
pub(super) fn moments(
    b: &mut Builder,
    x: ValueId,
    dims: &[usize],
) -> Result<(ValueId, ValueId, ValueId), Why> {
    let n = divisor(&count(b, x, dims));
    let sum = b.reduce_keep(Reduction::Sum, x, dims, b.inner)?;
    let mean = b.f(Fun::Div, &[sum.into(), n.into()])?;
    let apart = b.f(Fun::Sub, &[x.into(), mean.into()])?;
    let squared = b.f(Fun::Mul, &[apart.into(), apart.into()])?;
    let spread = b.reduce_keep(Reduction::Sum, squared, dims, b.inner)?;
    Ok((mean, apart, spread))
}

fn variance(args: &mut Args<'_>, root: bool, with_mean: bool) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    if !is_float(dtype) {
        return Err(Why::Wrong(format!("a variance of {dtype}")));
    }
    let dims = reduced(args, x)?;
    let unbiased = if args.flag("unbiased", true)? { 1.0 } else { 0.0 };
    let correction = args.float("correction", unbiased)?;
    let n = count(args.b, x, &dims);
    let left = match n.known() {
        Some(n) => Number::Float((n as f64 - correction).max(0.0)),
        None if correction.fract() == 0.0 => {
            let left = &n - &Size::from(correction as i64);
            let bounds = Bounds { symbols: &args.b.program.symbols, vars: &[] };
            match bounds.is_nonnegative(&left) {
                true => Number::Size(left),
                false => Number::Size(left.max_of(&Size::default())),
            }
        }
        None => return unsupported("a correction that is no whole number"),
    };
    let (mean, _, spread) = moments(args.b, x, &dims)?;
    let mut shape = args.b.shape(x);
    if args.flag("keepdim", false)? {
        dims.iter().for_each(|dim| shape[*dim] = Size::from(1));
    } else {
        let kept = shape.into_iter().enumerate().filter(|(dim, _)| !dims.contains(dim));
        shape = kept.map(|(_, size)| size).collect();
    }
    let spread = args.b.reshape(spread, shape.clone());
    let quotient = [spread.into(), left.into()];
    let value = match root {
        false => args.b.map(Fun::Div, Domain::Float, &quotient, dtype)?,
        true => {
            let variance = args.b.f(Fun::Div, &quotient)?;
            args.b.map(Fun::Sqrt, Domain::Float, &[variance.into()], dtype)?
        }
    };
    let mut outputs = vec![Some(value)];
    if with_mean {
        let mean = args.b.reshape(mean, shape);
        outputs.push(Some(args.b.cast(mean, dtype)));
    }
    Ok(outputs)
}

fn norm(args: &mut Args<'_>, order: &str) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = match args.dtype()? {
        Some(dtype) => dtype,
        None => float_of(args.b.dtype(x)),
    };
    let own = args.b.dtype(x);
    let x = if own == dtype || (dtype == DType::F32 && own != DType::F64) {
        x
    } else {
        args.b.cast(x, dtype)
    };
    let dims = reduced(args, x)?;
    let order = args.float(order, 2.0)?;
    let size = args.b.f(Fun::Abs, &[x.into()])?;
    let root = if order == 2.0 { Fun::Sqrt } else { Fun::Id };
    let value = match order {
        f64::INFINITY | f64::NEG_INFINITY => {
            args.b.never_empty(x, &dims);
            let how = if order > 0.0 { Reduction::Max } else { Reduction::Min };
            return one(reduce(args, how, size, &dims, dtype)?);
        }
        0.0 => {
            let there = args.b.test(Fun::Ne, &[x.into(), 0.0.into()])?;
            let there = args.b.cast(there, args.b.inner);
            return one(reduce(args, Reduction::Sum, there, &dims, dtype)?);
        }
        1.0 => return one(reduce(args, Reduction::Sum, size, &dims, dtype)?),
        2.0 => args.b.f(Fun::Mul, &[x.into(), x.into()])?,
        order => args.b.f(Fun::Pow, &[size.into(), order.into()])?,
    };
    let sum = reduce(args, Reduction::Sum, value, &dims, args.b.inner)?;
    if root == Fun::Sqrt {
        return one(args.b.map(Fun::Sqrt, Domain::Float, &[sum.into()], dtype)?);
    }
    let operands = [sum.into(), (1.0 / order).into()];
    one(args.b.map(Fun::Pow, Domain::Float, &operands, dtype)?)
}

fn logsumexp(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = float_of(args.b.dtype(x));
    let x = if is_float(args.b.dtype(x)) { x } else { args.b.cast(x, DType::F32) };
    let dims = reduced(args, x)?;
    if dims.iter().any(|dim| args.b.shape(x)[*dim].is(0)) {
        // The logarithm of no sum.
        let shape = args.declared(0)?.1;
        return one(args.b.push(Op::Full(Number::Float(f64::NEG_INFINITY)), vec![], dtype, shape));
    }
    let most = args.b.reduce_keep(Reduction::Max, x, &dims, args.b.dtype(x))?;
    // Infinities would leave nothing to subtract from.
    let endless = args.b.test(Fun::IsInf, &[most.into()])?;
    let most = args.b.f(Fun::Where, &[endless.into(), 0.0.into(), most.into()])?;
    let below = args.b.f(Fun::Sub, &[x.into(), most.into()])?;
    let exp = args.b.f(Fun::Exp, &[below.into()])?;
    let sum = args.b.reduce_keep(Reduction::Sum, exp, &dims, args.b.inner)?;
    let log = args.b.f(Fun::Log, &[sum.into()])?;
    let value = args.b.map(Fun::Add, Domain::Float, &[log.into(), most.into()], dtype)?;
    let shape = args.declared(0)?.1;
    let same = product(&args.b.shape(value)) == product(&shape);
    one(if same { args.b.reshape(value, shape) } else { value })
}
