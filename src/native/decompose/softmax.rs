//! Softmax and its logarithm.
//!
//! Invariant: in the inner type (`f32`, or `f64` of that) from the greatest element on, rounded
//! once.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    one,
    promote::is_float,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "softmax.int" | "_softmax.default" => |args| softmax(args, false),
        "log_softmax.int" | "_log_softmax.default" => |args| softmax(args, true),
        "_safe_softmax.default" => safe_softmax,
        _ => return None,
    })
}

/// What softmax needs of `x` along `dim`: distance from the greatest, its
/// exponential, the sum of those.
pub(super) fn exponentials(b: &mut Builder, x: ValueId, dim: usize) -> Result<[ValueId; 3], Why> {
    let most = b.reduce_keep(Reduction::Max, x, &[dim], b.dtype(x))?;
    let below = b.f(Fun::Sub, &[x.into(), most.into()])?;
    let exp = b.f(Fun::Exp, &[below.into()])?;
    let sum = b.reduce_keep(Reduction::Sum, exp, &[dim], b.inner)?;
    Ok([below, exp, sum])
}

fn softmax(args: &mut Args<'_>, log: bool) -> Outputs {
    let x = args.tensor("self")?;
    let wide = args.flag("half_to_float", false)?;
    let asked = if wide { Some(DType::F32) } else { args.dtype()? };
    let dtype = asked.unwrap_or(args.b.dtype(x));
    let dim = args.dim("dim", -1, args.b.rank(x))?;
    let own = args.b.dtype(x);
    let x = match dtype {
        DType::F32 if is_float(own) && own != DType::F64 => x,
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
    let soft = softmax_of(args, x, dim, args.b.inner, false)?;
    let most = args.b.reduce_keep(Reduction::Max, x, &[dim], args.b.dtype(x))?;
    let none = args.b.test(Fun::Eq, &[most.into(), f64::NEG_INFINITY.into()])?;
    let operands = [none.into(), 0.0.into(), soft.into()];
    one(args.b.map(Fun::Where, Domain::Float, &operands, dtype)?)
}
