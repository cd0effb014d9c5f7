//! Many numbers to one: sums, means, extremes and where they are, truth.
//!
//! Invariant: floats are summed in the inner type and rounded once, where PyTorch rounds.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    one,
    promote::is_float,
    shapes::product,
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
        _ => return None,
    })
}

/// The dimensions that go: all, where none are named.
pub(super) fn reduced(args: &Args<'_>, x: ValueId) -> Result<Vec<usize>, Why> {
    let rank = args.b.rank(x);
    let dims = args.dims("dim", rank)?.unwrap_or_default();
    Ok(if dims.is_empty() || rank == 0 { (0..rank).collect() } else { dims })
}

pub(super) fn reduce(
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
    let x = if is_float(from) && from != DType::F64 && dtype == DType::F32 {
        x
    } else {
        args.b.cast(x, dtype)
    };
    one(reduce(args, how, x, &dims, dtype)?)
}

/// How many elements `dims` of `x` have.
pub(super) fn count(b: &Builder, x: ValueId, dims: &[usize]) -> Size {
    let shape = b.shape(x);
    product(dims.iter().map(|dim| &shape[*dim]))
}

/// A number of elements as a number to divide by.
pub(super) fn divisor(count: &Size) -> Number {
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
    let sum = reduce(args, Reduction::Sum, x, &dims, args.b.inner)?;
    let count = divisor(&count(args.b, x, &dims));
    one(args.b.map(Fun::Div, Domain::Float, &[sum.into(), count.into()], dtype)?)
}

fn extreme(args: &mut Args<'_>, how: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    args.b.never_empty(x, &dims);
    let dtype = args.b.dtype(x);
    one(reduce(args, how, x, &dims, dtype)?)
}

fn extreme_and_place(args: &mut Args<'_>, how: Reduction, place: Reduction) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    args.b.never_empty(x, &dims);
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
        args.b.never_empty(x, dims);
        return reduce(args, how, x, dims, DType::I64);
    }
    let x = args.b.reshape(x, vec![Size::from(1)]);
    args.b.reduce(how, x, &[0], DType::I64)
}

fn aminmax(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dims = reduced(args, x)?;
    args.b.never_empty(x, &dims);
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
