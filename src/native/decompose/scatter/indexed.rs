//! Elements written at positions of several dimensions at once.
//!
//! Invariant: what has one of its positions out of range is written nowhere.

use kiln_proto::graph::DType;

use super::{
    super::{
        Args, Outputs, Why,
        builder::{Arg, Builder},
        index::whole_numbers,
        one,
        shapes::{product, show},
        unsupported,
    },
    How, Written, masked_put, only_mask, put, wrapped,
};
use crate::{
    core::{Domain, Fun, Number, ValueId},
    size::Size,
};

/// Whether positions are those of elements, of which there are `size`.
fn within(b: &mut Builder, positions: ValueId, size: &Size) -> Result<ValueId, Why> {
    let size = Arg::from(Number::Size(size.clone()));
    let low = b.map(Fun::Ge, Domain::Int, &[positions.into(), 0i64.into()], DType::Bool)?;
    let high = b.map(Fun::Lt, Domain::Int, &[positions.into(), size], DType::Bool)?;
    Ok(b.map(Fun::And, Domain::Bool, &[low.into(), high.into()], DType::Bool)?)
}

pub(super) fn index_put(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let values = args.tensor("values")?;
    let (dtype, shape) = (args.b.dtype(x), args.b.shape(x));
    let how = if args.flag("accumulate", false)? { How::Sum } else { How::Replace };
    let values = args.b.cast(values, dtype);
    let given = args.maybe_tensors("indices")?;
    if let Some(mask) = only_mask(args, &given) {
        return masked_put(args, x, mask, values, how);
    }
    if given.len() > shape.len() {
        return Err(Why::Wrong(format!("{} indices of {} dimensions", given.len(), shape.len())));
    }
    let indexed: Vec<(usize, ValueId)> =
        given.into_iter().enumerate().filter_map(|(dim, value)| Some((dim, value?))).collect();
    if indexed.is_empty() {
        return unsupported("elements written to no position");
    }
    let mut places = Vec::new();
    for (_, positions) in &indexed {
        whole_numbers(args, *positions)?;
        places = args.b.broadcast(&places, &args.b.shape(*positions))?;
    }
    let dims: Vec<usize> = indexed.iter().map(|(dim, _)| *dim).collect();
    let others: Vec<usize> = (0..shape.len()).filter(|dim| !dims.contains(dim)).collect();
    let rest: Vec<Size> = others.iter().map(|dim| shape[*dim].clone()).collect();
    let size_of = |dim: usize| shape[dim].clone();
    // Where the new dimensions stand in what is written: see `index`.
    let adjacent = dims.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    let before = if adjacent { dims[0] } else { 0 };
    let whole: Vec<Size> =
        [&rest[..before], &places[..], &rest[before..]].into_iter().flatten().cloned().collect();
    let both = args.b.broadcast(&args.b.shape(values), &whole)?;
    if !args.b.same_shape(&both, &whole) {
        return Err(Why::Wrong(format!("{} written", show(&args.b.shape(values)))));
    }
    let values = args.b.expand(values, whole);
    let front: Vec<usize> = (before..before + places.len())
        .chain(0..before)
        .chain(before + places.len()..places.len() + rest.len())
        .collect();
    let values = args.b.permute(values, &front);
    let count = product(&places);
    let values = args.b.reshape(values, [std::slice::from_ref(&count), &rest[..]].concat());
    // One number for each place.
    let (mut at, mut all, mut inside) = (None, Size::from(1), None);
    for (dim, positions) in indexed.iter().rev() {
        let positions = args.b.cast(*positions, DType::I64);
        let positions = args.b.expand(positions, places.clone());
        let own = wrapped(args.b, positions, &size_of(*dim))?;
        if indexed.len() > 1 {
            let own = within(args.b, own, &size_of(*dim))?;
            inside = Some(match inside {
                None => own,
                Some(all) => {
                    let both = [ValueId::into(all), own.into()];
                    args.b.map(Fun::And, Domain::Bool, &both, DType::Bool)?
                }
            });
        }
        let steps = Arg::from(Number::Size(all.clone()));
        let own = args.b.map(Fun::Mul, Domain::Int, &[own.into(), steps], DType::I64)?;
        at = Some(match at {
            None => own,
            Some(at) => {
                args.b.map(Fun::Add, Domain::Int, &[ValueId::into(at), own.into()], DType::I64)?
            }
        });
        all = &all * &size_of(*dim);
    }
    let mut at = at.ok_or("no positions")?;
    // One that is out of range beside others is no place, though their sum may be one.
    if let Some(inside) = inside {
        let choice = [ValueId::into(inside), at.into(), Arg::from(-1i64)];
        at = args.b.map(Fun::Where, Domain::Int, &choice, DType::I64)?;
    }
    let at = args.b.reshape(at, vec![count]);
    let order: Vec<usize> = dims.iter().chain(&others).copied().collect();
    let turned = args.b.permute(x, &order);
    let between = args.b.shape(turned);
    let flat = args.b.reshape(turned, [std::slice::from_ref(&all), &rest[..]].concat());
    let value = put(args.b, flat, at, Written::Each(values), how)?;
    let value = args.b.reshape(value, between);
    let back: Vec<usize> =
        (0..order.len()).filter_map(|dim| order.iter().position(|d| *d == dim)).collect();
    one(args.b.permute(value, &back))
}
