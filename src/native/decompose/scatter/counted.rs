//! How many elements lie where.
//!
//! Invariant: an element is counted once or, outside of all intervals, not at all.

use kiln_proto::graph::DType;

use super::super::{Args, Outputs, Why, builder::Arg, index::flat, one, unsupported};
use crate::{
    core::{Domain, Fun, Reduction},
    size::Size,
};

/// How many elements lie in each of some equal intervals.
pub(super) fn histc(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let bins = args.int("bins", 100)?;
    let (least, most) = (args.float("min", 0.0)?, args.float("max", 0.0)?);
    if bins < 1 || least > most {
        return Err(Why::Wrong(format!("{bins} intervals from {least} to {most}")));
    }
    if least == most {
        return unsupported("intervals between what is least and greatest");
    }
    let dtype = args.b.dtype(x);
    let line = flat(args.b, x);
    let b = &mut *args.b;
    let number = b.cast(line, DType::F32);
    let apart = b.f(Fun::Sub, &[number.into(), least.into()])?;
    // In PyTorch's order: rounded otherwise, what lies on a border falls on its other side.
    let many = b.f(Fun::Mul, &[apart.into(), (bins as f64).into()])?;
    let place = b.f(Fun::Div, &[many.into(), (most - least).into()])?;
    let place = b.map(Fun::Floor, Domain::Float, &[place.into()], DType::F32)?;
    // The greatest belongs to the last one.
    let place = b.f(Fun::Min, &[place.into(), ((bins - 1) as f64).into()])?;
    let above = b.test(Fun::Ge, &[number.into(), least.into()])?;
    let below = b.test(Fun::Le, &[number.into(), most.into()])?;
    let inside = b.map(Fun::And, Domain::Bool, &[above.into(), below.into()], DType::Bool)?;
    let place = b.cast(place, DType::I64);
    let none = Arg::from(-1i64);
    let place = b.map(Fun::Where, Domain::Int, &[inside.into(), place.into(), none], DType::I64)?;
    let intervals = b.positions(&Size::from(bins), 0, 2);
    let place = b.unsqueeze(place, 0);
    let hits = b.map(Fun::Eq, Domain::Int, &[intervals.into(), place.into()], DType::Bool)?;
    let ones = b.cast(hits, DType::I64);
    let count = b.reduce(Reduction::Sum, ones, &[1], DType::I64)?;
    one(b.cast(count, dtype))
}
