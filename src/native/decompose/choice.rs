//! One element or another: where, masks, bounds, what is no number.
//!
//! Invariant: numbers that are chosen are as a tensor of the result's type holds them.

use half::{bf16, f16};
use kiln_proto::graph::DType;

use super::{
    super::core::{Domain, Fun},
    Args, Outputs, Rule,
    builder::{Arg, domain},
    elementwise::{held, pair, promoted},
    one,
    promote::is_float,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "where.self" | "where.ScalarOther" | "where.ScalarSelf" | "where.Scalar" => choose,
        "masked_fill.Scalar" | "masked_fill.Tensor" => masked_fill,
        "clamp.default" | "clamp.Tensor" | "clip.default" | "clip.Tensor" => clamp,
        "clamp_min.default" | "clamp_min.Tensor" => clamp,
        "clamp_max.default" | "clamp_max.Tensor" => clamp,
        "fmax.default" => |args| ignoring_nan(args, Fun::Max),
        "fmin.default" => |args| ignoring_nan(args, Fun::Min),
        "isfinite.default" => is_finite,
        "nan_to_num.default" => nan_to_num,
        _ => return None,
    })
}

fn choose(args: &mut Args<'_>) -> Outputs {
    let condition = args.tensor("condition")?;
    let (mut operands, dtype) = pair(args, "other")?;
    operands.insert(0, condition.into());
    one(args.b.map(Fun::Where, domain(dtype), &operands, dtype)?)
}

fn masked_fill(args: &mut Args<'_>) -> Outputs {
    let (x, mask) = (args.tensor("self")?, args.tensor("mask")?);
    let value = args.operand("value")?;
    let dtype = args.b.dtype(x);
    let value = held(args.in_type(value, dtype), dtype);
    one(args.b.map(Fun::Where, domain(dtype), &[mask.into(), value, x.into()], dtype)?)
}

fn clamp(args: &mut Args<'_>) -> Outputs {
    let x = Arg::from(args.tensor("self")?);
    let bounds = [args.maybe_operand("min")?, args.maybe_operand("max")?];
    let mut all = vec![x];
    all.extend(bounds.iter().flatten().cloned());
    if all.len() == 1 {
        return Err("no bound is given".into());
    }
    let (all, dtype) = promoted(args, all)?;
    let mut all = all.into_iter();
    let mut value = all.next().ok_or("no operand")?;
    for (fun, bound) in [Fun::Max, Fun::Min].into_iter().zip(bounds) {
        if bound.is_some() {
            let bound = all.next().ok_or("no bound")?;
            value = args.b.map(fun, domain(dtype), &[value, held(bound, dtype)], dtype)?.into();
        }
    }
    done(&value)
}

fn done(arg: &Arg) -> Outputs {
    match arg {
        Arg::Tensor(value) => one(*value),
        Arg::Number(_) => Err("no tensor".into()),
    }
}

fn ignoring_nan(args: &mut Args<'_>, fun: Fun) -> Outputs {
    let (operands, dtype) = pair(args, "other")?;
    let d = domain(dtype);
    if d != Domain::Float {
        return one(args.b.map(fun, d, &operands, dtype)?);
    }
    let [a, b] = [operands[0].clone(), operands[1].clone()];
    let both = args.b.map(fun, d, &operands, dtype)?;
    let no_b = args.b.test(Fun::IsNan, std::slice::from_ref(&b))?;
    let with_b = args.b.map(Fun::Where, d, &[no_b.into(), a.clone(), both.into()], dtype)?;
    let no_a = args.b.test(Fun::IsNan, &[a])?;
    one(args.b.map(Fun::Where, d, &[no_a.into(), b, with_b.into()], dtype)?)
}

fn is_finite(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let size = args.b.map(Fun::Abs, domain(args.b.dtype(x)), &[x.into()], args.b.dtype(x))?;
    let limit = Arg::from(f64::INFINITY);
    // NaN is not less than infinity either.
    one(args.b.test(Fun::Lt, &[size.into(), limit])?)
}

fn nan_to_num(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    if !is_float(dtype) {
        return one(x);
    }
    let most = match dtype {
        DType::F16 => f16::MAX.to_f64(),
        DType::BF16 => bf16::MAX.to_f64(),
        DType::F64 => f64::MAX,
        _ => f64::from(f32::MAX),
    };
    let mut value = x;
    let ends = [("posinf", f64::INFINITY, most), ("neginf", f64::NEG_INFINITY, -most)];
    for (name, end, default) in ends {
        let new = args.float(name, default)?;
        let there = args.b.test(Fun::Eq, &[x.into(), end.into()])?;
        let operands = [there.into(), new.into(), value.into()];
        value = args.b.map(Fun::Where, Domain::Float, &operands, dtype)?;
    }
    let nan = args.float("nan", 0.0)?;
    let there = args.b.test(Fun::IsNan, &[x.into()])?;
    one(args.b.map(Fun::Where, Domain::Float, &[there.into(), nan.into(), value.into()], dtype)?)
}
