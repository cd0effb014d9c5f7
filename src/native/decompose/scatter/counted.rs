//! How many elements lie where.
//!
//! Invariant: an element is counted once or, outside of all intervals, not at all.

use kiln_proto::graph::DType;

use super::super::{
    Args, Outputs, Why, builder::Arg, index::flat, one, promote::is_float, unsupported,
};
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
    let number = b.cast(line, b.inner);
    let apart = b.f(Fun::Sub, &[number.into(), least.into()])?;
    // In PyTorch's order: rounded otherwise, what lies on a border falls on its other side.
    let many = b.f(Fun::Mul, &[apart.into(), (bins as f64).into()])?;
    let place = b.f(Fun::Div, &[many.into(), (most - least).into()])?;
    let place = b.map(Fun::Floor, Domain::Float, &[place.into()], b.inner)?;
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

/// How often each whole number is there, or the sum of the weights that stand beside it.
pub(super) fn bincount(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let (dtype, shape) = args.declared(0).map_err(|_| depends())?;
    let [Some(bins)] = shape.iter().map(Size::known).collect::<Vec<_>>()[..] else {
        return Err(depends());
    };
    if is_float(args.b.dtype(x)) || args.b.rank(x) != 1 {
        return Err("whole numbers in one dimension are counted".into());
    }
    if args.int("minlength", 0)? > bins {
        return Err(Why::Wrong(format!("{bins} counts, at least {}", args.int("minlength", 0)?)));
    }
    let weights = args.maybe_tensor("weights")?;
    let b = &mut *args.b;
    let numbers = b.positions(&Size::from(bins), 0, 2);
    let x = b.unsqueeze(x, 0);
    let hits = b.map(Fun::Eq, Domain::Int, &[numbers.into(), x.into()], DType::Bool)?;
    let Some(weights) = weights else {
        let ones = b.cast(hits, DType::I64);
        let count = b.reduce(Reduction::Sum, ones, &[1], DType::I64)?;
        return one(b.cast(count, dtype));
    };
    let weights = b.cast(weights, dtype);
    let weights = b.unsqueeze(weights, 0);
    let each = [hits.into(), weights.into(), Arg::from(0.0)];
    let each = b.map(Fun::Where, Domain::Float, &each, dtype)?;
    one(b.reduce(Reduction::Sum, each, &[1], dtype)?)
}

fn depends() -> Why {
    let why = "how many counts there are depends on the values: fix the result's size, as by \
               torch._check(y.shape[0] == 8)";
    Why::Unsupported(why.to_owned())
}
