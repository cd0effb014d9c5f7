//! Many numbers to one: sums, means, extremes, variances, norms, softmax.
//!
//! Invariant: floats are summed in `f32` and rounded once, where PyTorch rounds.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    one,
    promote::{float_of, is_float},
    shapes::product,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "sum.default" | "sum.dim_IntList" => |args| total(args, Reduction::Sum),
        "prod.default" | "prod.dim_int" => |args| total(args, Reduction::Prod),
        "mean.default" | "mean.dim" => mean,
        "amax.default" | "max.default" => |args| extreme(args, Reduction::Max),
        "amin.default" | "min.default" => |args| extreme(args, Reduction::Min),
        "max.dim" => |args| extreme_and_place(args, Reduction::Max, Reduction::ArgMax),
        "min.dim" => |args| extreme_and_place(args, Reduction::Min, Reduction::ArgMin),
        "aminmax.default" => aminmax,
        "argmax.default" => |args| place(args, Reduction::ArgMax),
        "argmin.default" => |args| place(args, Reduction::ArgMin),
        "any.default" | "any.dim" | "any.dims" => |args| truth(args, Reduction::Any),
        "all.default" | "all.dim" | "all.dims" => |args| truth(args, Reduction::All),
        "count_nonzero.default" | "count_nonzero.dim_IntList" => count_nonzero,
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
        "softmax.int" | "_softmax.default" => |args| softmax(args, false),
        "log_softmax.int" | "_log_softmax.default" => |args| softmax(args, true),
        "_safe_softmax.default" => safe_softmax,
        _ => return None,
    })
}

/// The dimensions that go: all, where none are named.
fn reduced(args: &Args<'_>, x: ValueId) -> Result<Vec<usize>, Why> {
    let rank = args.b.rank(x);
    let dims = args.dims("dim", rank)?.unwrap_or_default();
    Ok(if dims.is_empty() || rank == 0 { (0..rank).collect() } else { dims })
}

fn reduce(
    args: &mut Args<'_>,
    how: Reduction,
    x: ValueId,
    dims: &[usize],
    dtype: DType,
) -> Result<ValueId, Why> {
    match args.flag("keepdim", false)? {
        true => args.b.reduce_keep(how, x, dims, dtype),
        false => args.b.reduce(how, x, dims, dtype),
    }
}

fn total(args: &mut Args<'_>, how: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let from = args.b.dtype(x);
    let dtype = match args.dtype()? {
        Some(dtype) => dtype,
        None if is_float(from) => from,
        None => DType::I64,
    };
    let dims = reduced(args, x)?;
    // Wider floats are what sums are kept in anyway; others are converted before.
    let x = if is_float(from) && dtype == DType::F32 { x } else { args.b.cast(x, dtype) };
    one(reduce(args, how, x, &dims, dtype)?)
}

/// How many elements `dims` of `x` have.
pub(super) fn count(b: &Builder, x: ValueId, dims: &[usize]) -> Size {
    let shape = b.shape(x);
    product(dims.iter().map(|dim| &shape[*dim]))
}

/// A number of elements as a number to divide by.
pub(super) fn divisor(count: Size) -> Number {
    count.known().map_or_else(|| Number::Size(count.clone()), |count| Number::Float(count as f64))
}

fn mean(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.dtype()?.unwrap_or(args.b.dtype(x));
    let dims = reduced(args, x)?;
    if !is_float(dtype) {
        return Err(Why::Wrong(format!("a mean as {dtype}")));
    }
    let x = if is_float(args.b.dtype(x)) { x } else { args.b.cast(x, dtype) };
    let sum = reduce(args, Reduction::Sum, x, &dims, DType::F32)?;
    let count = divisor(count(args.b, x, &dims));
    one(args.b.map(Fun::Div, Domain::Float, &[sum.into(), count.into()], dtype)?)
}

fn extreme(args: &mut Args<'_>, how: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    let dtype = args.b.dtype(x);
    one(reduce(args, how, x, &dims, dtype)?)
}

fn extreme_and_place(args: &mut Args<'_>, how: Reduction, place: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    let dtype = args.b.dtype(x);
    let value = reduce(args, how, x, &dims, dtype)?;
    let place = position(args, place, x, &dims)?;
    Ok(vec![Some(value), Some(place)])
}

/// Where the extreme is; of a scalar at zero.
fn position(
    args: &mut Args<'_>,
    how: Reduction,
    x: ValueId,
    dims: &[usize],
) -> Result<ValueId, Why> {
    if !dims.is_empty() {
        return reduce(args, how, x, dims, DType::I64);
    }
    let x = args.b.reshape(x, vec![Size::from(1)]);
    args.b.reduce(how, x, &[0], DType::I64)
}

fn aminmax(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    let dtype = args.b.dtype(x);
    let least = reduce(args, Reduction::Min, x, &dims, dtype)?;
    Ok(vec![Some(least), Some(reduce(args, Reduction::Max, x, &dims, dtype)?)])
}

fn place(args: &mut Args<'_>, how: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    one(position(args, how, x, &dims)?)
}

fn truth(args: &mut Args<'_>, how: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let mut dims = reduced(args, x)?;
    if args.b.rank(x) == 0 {
        let x = args.b.reshape(x, vec![Size::from(1)]);
        return one(args.b.reduce(how, x, &[0], DType::Bool)?);
    }
    if args.ints("dim")?.is_some_and(|dims| dims.is_empty()) && args.node.op.ends_with(".dims") {
        // An empty list means what it says here: nothing goes.
        dims.clear();
        return one(args.b.map(Fun::Id, Domain::Bool, &[x.into()], DType::Bool)?);
    }
    one(reduce(args, how, x, &dims, DType::Bool)?)
}

fn count_nonzero(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    let there = args.b.cast(x, DType::Bool);
    one(args.b.reduce(Reduction::Sum, there, &dims, DType::I64)?)
}

/// Mean and sum of squared distances from it, in `f32`, over `dims`, which are kept.
pub(super) fn moments(
    b: &mut Builder,
    x: ValueId,
    dims: &[usize],
) -> Result<(ValueId, ValueId, ValueId), Why> {
    let n = divisor(count(b, x, dims));
    let sum = b.reduce_keep(Reduction::Sum, x, dims, DType::F32)?;
    let mean = b.f(Fun::Div, &[sum.into(), n.into()])?;
    let apart = b.f(Fun::Sub, &[x.into(), mean.into()])?;
    let squared = b.f(Fun::Mul, &[apart.into(), apart.into()])?;
    let spread = b.reduce_keep(Reduction::Sum, squared, dims, DType::F32)?;
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
            Number::Size((&n - &Size::from(correction as i64)).max_of(&Size::default()))
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
    let x = if args.b.dtype(x) == dtype || dtype == DType::F32 { x } else { args.b.cast(x, dtype) };
    let dims = reduced(args, x)?;
    let order = args.float(order, 2.0)?;
    let size = args.b.f(Fun::Abs, &[x.into()])?;
    let root = if order == 2.0 { Fun::Sqrt } else { Fun::Id };
    let value = match order {
        f64::INFINITY => return one(reduce(args, Reduction::Max, size, &dims, dtype)?),
        f64::NEG_INFINITY => return one(reduce(args, Reduction::Min, size, &dims, dtype)?),
        0.0 => {
            let there = args.b.test(Fun::Ne, &[x.into(), 0.0.into()])?;
            let there = args.b.cast(there, DType::F32);
            return one(reduce(args, Reduction::Sum, there, &dims, dtype)?);
        }
        1.0 => return one(reduce(args, Reduction::Sum, size, &dims, dtype)?),
        2.0 => args.b.f(Fun::Mul, &[x.into(), x.into()])?,
        order => args.b.f(Fun::Pow, &[size.into(), order.into()])?,
    };
    let sum = reduce(args, Reduction::Sum, value, &dims, DType::F32)?;
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
    let most = args.b.reduce_keep(Reduction::Max, x, &dims, args.b.dtype(x))?;
    // Infinities would leave nothing to subtract from.
    let endless = args.b.test(Fun::IsInf, &[most.into()])?;
    let most = args.b.f(Fun::Where, &[endless.into(), 0.0.into(), most.into()])?;
    let below = args.b.f(Fun::Sub, &[x.into(), most.into()])?;
    let exp = args.b.f(Fun::Exp, &[below.into()])?;
    let sum = args.b.reduce_keep(Reduction::Sum, exp, &dims, DType::F32)?;
    let log = args.b.f(Fun::Log, &[sum.into()])?;
    let value = args.b.map(Fun::Add, Domain::Float, &[log.into(), most.into()], dtype)?;
    let shape = args.declared(0)?.1;
    let same = product(&args.b.shape(value)) == product(&shape);
    one(if same { args.b.reshape(value, shape) } else { value })
}

/// What softmax needs of `x` along `dim`: distance from the greatest, its
/// exponential, the sum of those.
pub(super) fn exponentials(b: &mut Builder, x: ValueId, dim: usize) -> Result<[ValueId; 3], Why> {
    let most = b.reduce_keep(Reduction::Max, x, &[dim], b.dtype(x))?;
    let below = b.f(Fun::Sub, &[x.into(), most.into()])?;
    let exp = b.f(Fun::Exp, &[below.into()])?;
    let sum = b.reduce_keep(Reduction::Sum, exp, &[dim], DType::F32)?;
    Ok([below, exp, sum])
}

fn softmax(args: &mut Args<'_>, log: bool) -> Outputs {
    let x = args.tensor("self")?;
    let wide = args.flag("half_to_float", false)?;
    let asked = if wide { Some(DType::F32) } else { args.dtype()? };
    let dtype = asked.unwrap_or(args.b.dtype(x));
    let dim = args.dim("dim", -1, args.b.rank(x))?;
    let x = match dtype {
        DType::F32 if is_float(args.b.dtype(x)) => x,
        _ => args.b.cast(x, dtype),
    };
    one(softmax_of(args, x, dim, dtype, log)?)
}

/// Softmax or its logarithm, as `dtype`.
pub(super) fn softmax_of(
    args: &mut Args<'_>,
    x: ValueId,
    dim: usize,
    dtype: DType,
    log: bool,
) -> Result<ValueId, Why> {
    if !is_float(dtype) {
        return Err(Why::Wrong(format!("a softmax of {dtype}")));
    }
    let shape = args.b.shape(x);
    if shape.is_empty() {
        let x = args.b.reshape(x, vec![Size::from(1)]);
        let value = softmax_of(args, x, 0, dtype, log)?;
        return Ok(args.b.reshape(value, shape));
    }
    if shape.iter().any(|size| size.is(0)) {
        return Ok(args.b.cast(x, dtype));
    }
    let [below, exp, sum] = exponentials(args.b, x, dim)?;
    if log {
        let log = args.b.f(Fun::Log, &[sum.into()])?;
        return Ok(args.b.map(Fun::Sub, Domain::Float, &[below.into(), log.into()], dtype)?);
    }
    Ok(args.b.map(Fun::Div, Domain::Float, &[exp.into(), sum.into()], dtype)?)
}

/// Softmax, but zero where all is minus infinity.
fn safe_softmax(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.dtype()?.unwrap_or(args.b.dtype(x));
    let dim = args.dim("dim", -1, args.b.rank(x))?;
    let soft = softmax_of(args, x, dim, DType::F32, false)?;
    let most = args.b.reduce_keep(Reduction::Max, x, &[dim], args.b.dtype(x))?;
    let none = args.b.test(Fun::Eq, &[most.into(), f64::NEG_INFINITY.into()])?;
    let operands = [none.into(), 0.0.into(), soft.into()];
    one(args.b.map(Fun::Where, Domain::Float, &operands, dtype)?)
}
