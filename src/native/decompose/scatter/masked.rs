//! Elements written where a mask says so.
//!
//! Invariant: every element of the result is the old one or a written one, as its own bit of
//! the mask says.

use kiln_proto::graph::DType;

use super::{
    super::{
        Args, Outputs, Why,
        builder::{Arg, domain},
        index::{flat, lookup},
        one,
        shapes::{product, show},
        unsupported,
    },
    How, chosen, nothing, preceded,
};
use crate::{
    core::{Domain, Fun, Number, Op, ValueId},
    size::Size,
};

/// The mask, where the first index is one and the only one.
pub(super) fn only_mask(args: &Args<'_>, given: &[Option<ValueId>]) -> Option<ValueId> {
    let mut some = given.iter().flatten();
    let mask = given.first().copied().flatten()?;
    some.next();
    (some.next().is_none() && args.b.dtype(mask) == DType::Bool).then_some(mask)
}

/// One number where a mask says so.
pub(super) fn masked_put(
    args: &mut Args<'_>,
    x: ValueId,
    mask: ValueId,
    values: ValueId,
    how: How,
) -> Outputs {
    let (shape, of) = (args.b.shape(x), args.b.shape(mask));
    if of.len() > shape.len() || !args.b.same_shape(&of, &shape[..of.len()]) {
        return Err(Why::Wrong(format!("a mask {} of {}", show(&of), show(&shape))));
    }
    // More than one for each place of the mask: which is which depends on its values.
    let written = args.b.shape(values);
    let own = written.len() + of.len() > shape.len() && written.iter().any(|size| !size.is(1));
    if own {
        return unsupported("different elements written where a mask says so");
    }
    let mut deep = of;
    deep.resize(shape.len(), Size::from(1));
    let mask = args.b.reshape(mask, deep);
    let values = match written.len() > shape.len() {
        true => args.b.reshape(values, Vec::new()),
        false => values,
    };
    let values = match how {
        How::Replace => values,
        _ => {
            let dtype = args.b.dtype(x);
            args.b.map(Fun::Add, domain(dtype), &[x.into(), values.into()], dtype)?
        }
    };
    one(chosen(args.b, mask, values.into(), x)?)
}

/// The elements of `source` one after the other, where a mask says so.
pub(super) fn masked_scatter(args: &mut Args<'_>) -> Outputs {
    let (x, mask, source) = (args.tensor("self")?, args.tensor("mask")?, args.tensor("source")?);
    let (shape, dtype) = (args.b.shape(x), args.b.dtype(x));
    if args.b.dtype(mask) != DType::Bool || args.b.dtype(source) != dtype {
        return Err("no mask, or elements of another type".into());
    }
    let b = &mut *args.b;
    let mask = b.expand(mask, shape.clone());
    let mut source = flat(b, source);
    if product(&shape).is(0) || b.shape(source)[0].is(0) {
        return one(x);
    }
    // One is read for places that the mask leaves out, too: of none there would be none.
    let before = i64::from(b.may_be_none(&b.shape(source)[0]));
    if before == 1 {
        source = preceded(b, source, 0, nothing(dtype));
    }
    let line = flat(b, mask);
    let ones = b.cast(line, DType::I64);
    let all = b.shape(ones);
    let seen = b.push(Op::CumSum { dim: 0 }, vec![ones], DType::I64, all);
    let first = Arg::from(1 - before);
    let from = b.map(Fun::Sub, Domain::Int, &[seen.into(), first], DType::I64)?;
    let from = b.map(Fun::Max, Domain::Int, &[from.into(), 0i64.into()], DType::I64)?;
    // Where there are fewer than places the last one stands for the rest: none is read behind it.
    let last = Arg::from(Number::Size(&b.shape(source)[0] - &Size::from(1)));
    let from = b.map(Fun::Min, Domain::Int, &[from.into(), last], DType::I64)?;
    let taken = lookup(b, source, 0, from, false);
    let taken = b.reshape(taken, shape);
    one(chosen(b, mask, taken.into(), x)?)
}
