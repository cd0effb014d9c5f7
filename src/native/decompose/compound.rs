//! Functions of each element that are made of several.
//!
//! Invariant: all steps in the inner type (`f32`, or `f64` of that), the last one rounds.

use kiln_proto::graph::DType;

use super::{
    super::core::{Domain, Fun, Number, ValueId},
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder, domain},
    elementwise::{pair, promoted},
    one,
    promote::{float_of, is_float},
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "frac.default" => frac,
        "erfc.default" => erfc,
        "logit.default" => logit,
        "addcmul.default" => |args| add_of(args, Fun::Mul),
        "addcdiv.default" => |args| add_of(args, Fun::Div),
        "lerp.Scalar" | "lerp.Tensor" => lerp,
        "hypot.default" => hypot,
        "logaddexp.default" => logaddexp,
        "xlogy.Tensor" | "xlogy.Scalar_Other" => xlogy,
        _ => return None,
    })
}

fn frac(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let whole = args.b.f(Fun::Trunc, &[x.into()])?;
    let dtype = args.b.dtype(x);
    one(args.b.map(Fun::Sub, Domain::Float, &[x.into(), whole.into()], dtype)?)
}

fn erfc(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let erf = args.b.f(Fun::Erf, &[x.into()])?;
    let dtype = float_of(args.b.dtype(x));
    one(args.b.map(Fun::Sub, Domain::Float, &[1.0.into(), erf.into()], dtype)?)
}

fn logit(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = float_of(args.b.dtype(x));
    let mut value = Arg::from(x);
    if args.maybe_number("eps")?.is_some() {
        let eps = args.float("eps", 0.0)?;
        let low = args.b.f(Fun::Max, &[value, eps.into()])?;
        value = args.b.f(Fun::Min, &[low.into(), (1.0 - eps).into()])?.into();
    }
    let rest = args.b.f(Fun::Sub, &[1.0.into(), value.clone()])?;
    let odds = args.b.f(Fun::Div, &[value, rest.into()])?;
    one(args.b.map(Fun::Log, Domain::Float, &[odds.into()], dtype)?)
}

/// `self + value * (tensor1 fun tensor2)`
fn add_of(args: &mut Args<'_>, fun: Fun) -> Outputs {
    let operands = vec![args.operand("self")?, args.operand("tensor1")?, args.operand("tensor2")?];
    let (operands, dtype) = promoted(args, operands)?;
    let value = args.maybe_number("value")?.unwrap_or(Number::Int(1));
    let d = domain(dtype);
    let inner = if is_float(dtype) { args.b.inner } else { dtype };
    let both = args.b.map(fun, d, &operands[1..], inner)?;
    let scaled = match value {
        Number::Int(1) => both,
        value => args.b.map(Fun::Mul, d, &[both.into(), value.into()], inner)?,
    };
    one(args.b.map(Fun::Add, d, &[operands[0].clone(), scaled.into()], dtype)?)
}

fn lerp(args: &mut Args<'_>) -> Outputs {
    let (a, b) = (args.tensor("self")?, args.tensor("end")?);
    let weight = args.operand("weight")?;
    let dtype = args.b.dtype(a);
    let span = args.b.f(Fun::Sub, &[b.into(), a.into()])?;
    let part = args.b.f(Fun::Mul, &[weight, span.into()])?;
    one(args.b.map(Fun::Add, Domain::Float, &[a.into(), part.into()], dtype)?)
}

fn hypot(args: &mut Args<'_>) -> Outputs {
    let (operands, dtype) = pair(args, "other")?;
    let [a, b] = [operands[0].clone(), operands[1].clone()];
    one(length(args.b, a, b, dtype)?)
}

/// The square root of the sum of both squares, by the share of the lesser in the greater:
/// the squares themselves may be beyond what `f32` holds, or less.
pub(super) fn length(b: &mut Builder, x: Arg, y: Arg, dtype: DType) -> Result<ValueId, Why> {
    let (x, y) = (b.f(Fun::Abs, &[x])?, b.f(Fun::Abs, &[y])?);
    let both: [Arg; 2] = [x.into(), y.into()];
    let (most, least) = (b.f(Fun::Max, &both)?, b.f(Fun::Min, &both)?);
    let some = b.test(Fun::Gt, &[most.into(), 0.0.into()])?;
    let by = b.f(Fun::Where, &[some.into(), most.into(), 1.0.into()])?;
    let share = b.f(Fun::Div, &[least.into(), by.into()])?;
    let square = b.f(Fun::Mul, &[share.into(), share.into()])?;
    let sum = b.f(Fun::Add, &[square.into(), 1.0.into()])?;
    let root = b.f(Fun::Sqrt, &[sum.into()])?;
    let finite = b.f(Fun::Mul, &[most.into(), root.into()])?;
    // Beside an infinite one even what is no number counts for nothing.
    let endless = [b.test(Fun::IsInf, &both[..1])?, b.test(Fun::IsInf, &both[1..])?];
    let endless = endless.map(Arg::from);
    let endless = b.map(Fun::Or, Domain::Bool, &endless, DType::Bool)?;
    let chosen = [endless.into(), f64::INFINITY.into(), finite.into()];
    Ok(b.map(Fun::Where, Domain::Float, &chosen, dtype)?)
}

fn logaddexp(args: &mut Args<'_>) -> Outputs {
    let (operands, dtype) = pair(args, "other")?;
    let most = args.b.f(Fun::Max, &operands)?;
    let apart = args.b.f(Fun::Sub, &operands)?;
    let apart = args.b.f(Fun::Abs, &[apart.into()])?;
    let apart = args.b.f(Fun::Neg, &[apart.into()])?;
    let rest = args.b.f(Fun::Exp, &[apart.into()])?;
    let rest = args.b.f(Fun::Log1p, &[rest.into()])?;
    let sum = args.b.f(Fun::Add, &[most.into(), rest.into()])?;
    // Of two equal infinities the difference is none.
    let equal = args.b.test(Fun::Eq, &operands)?;
    let endless = args.b.test(Fun::IsInf, &operands[..1])?;
    let both = args.b.map(Fun::And, Domain::Bool, &[equal.into(), endless.into()], DType::Bool)?;
    let chosen = [both.into(), operands[0].clone(), sum.into()];
    one(args.b.map(Fun::Where, Domain::Float, &chosen, float_of(dtype))?)
}

fn xlogy(args: &mut Args<'_>) -> Outputs {
    let (operands, dtype) = pair(args, "other")?;
    let [x, y] = [operands[0].clone(), operands[1].clone()];
    let log = args.b.f(Fun::Log, std::slice::from_ref(&y))?;
    let product = args.b.f(Fun::Mul, &[x.clone(), log.into()])?;
    let zero = args.b.test(Fun::Eq, &[x, 0.0.into()])?;
    let inner = args.b.f(Fun::Where, &[zero.into(), 0.0.into(), product.into()])?;
    let nan = args.b.test(Fun::IsNan, std::slice::from_ref(&y))?;
    let operands = [nan.into(), y, inner.into()];
    one(args.b.map(Fun::Where, Domain::Float, &operands, float_of(dtype))?)
}
