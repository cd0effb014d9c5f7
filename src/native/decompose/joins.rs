//! More than there was: tensors together, repeated, padded; and turned around.
//!
//! Invariant: elements are moved, and only padding is new.

use super::{
    super::{
        core::{Number, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why, one,
    promote::{Kind, promote},
    shapes::{dimension, product, show},
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "cat.default" | "concat.default" | "concatenate.default" => cat,
        "stack.default" => stack,
        "constant_pad_nd.default" | "pad.default" => pad,
        "flip.default" => flip,
        "roll.default" => roll,
        "repeat.default" | "tile.default" => repeat,
        "repeat_interleave.self_int" => repeat_interleave,
        _ => return None,
    })
}

/// All in the element type that they promote to.
fn of_one_type(args: &mut Args<'_>, values: Vec<ValueId>) -> Result<Vec<ValueId>, Why> {
    let kinds: Vec<Kind> = values.iter().map(|value| args.kind(&(*value).into())).collect();
    let dtype = promote(&kinds).ok_or("no tensors")?;
    Ok(values.into_iter().map(|value| args.b.cast(value, dtype)).collect())
}

fn cat(args: &mut Args<'_>) -> Outputs {
    let values = args.tensors("tensors")?;
    let mut values = of_one_type(args, values)?;
    // A tensor with nothing in its only dimension fits to any other.
    let is_nothing = |value: &ValueId| args.b.shape(*value) == [Size::default()];
    if let Some(some) = values.iter().position(|value| !is_nothing(value)) {
        let first = values[some];
        values.retain(|value| !is_nothing(value));
        debug_assert_eq!(values.first(), Some(&first));
    } else {
        values.truncate(1);
    }
    let shape = args.b.shape(values[0]);
    let dim = args.dim("dim", 0, shape.len())?;
    for value in &values[1..] {
        let mut other = args.b.shape(*value);
        if other.len() == shape.len() && !shape.is_empty() {
            other[dim] = shape[dim].clone();
        }
        if shape.is_empty() || !args.b.same_shape(&other, &shape) {
            let wrong = format!("shapes {} and {} one after the other", show(&shape), show(&other));
            return Err(Why::Wrong(wrong));
        }
    }
    one(args.b.cat(values, dim))
}

fn stack(args: &mut Args<'_>) -> Outputs {
    let values = args.tensors("tensors")?;
    let values = of_one_type(args, values)?;
    let shape = args.b.shape(values[0]);
    let dim = args.dim("dim", 0, shape.len() + 1)?;
    let mut parts = Vec::with_capacity(values.len());
    for value in values {
        if !args.b.same_shape(&args.b.shape(value), &shape) {
            return Err("tensors of different shapes in one stack".into());
        }
        parts.push(args.b.unsqueeze(value, dim));
    }
    one(args.b.cat(parts, dim))
}

/// Pairs of numbers from the last dimension on; negative ones cut off.
fn pad(args: &mut Args<'_>) -> Outputs {
    let mut x = args.tensor("self")?;
    let mode = args.text("mode", "constant")?;
    let pads = args.shape("pad")?;
    let rank = args.b.rank(x);
    if pads.len() % 2 != 0 || pads.len() / 2 > rank {
        return Err(Why::Wrong(format!("{} numbers for {rank} dimensions", pads.len())));
    }
    if mode != "constant" {
        return super::order::pad_from_within(args, x, &pads, mode);
    }
    let mut before = vec![Size::default(); rank];
    let mut shape = args.b.shape(x);
    for (i, pair) in pads.chunks_exact(2).enumerate() {
        let dim = rank - 1 - i;
        let cut = |pad: &Size| pad.known().map_or(0, |pad| (-pad).max(0));
        let (first, last) = (cut(&pair[0]), cut(&pair[1]));
        if first + last > 0 {
            let count = &shape[dim] - &Size::from(first + last);
            x = args.b.slice(x, dim, Size::from(first), 1, count.clone());
            shape[dim] = count;
        }
        let grown = |pad: &Size| if cut(pad) > 0 { Size::default() } else { pad.clone() };
        shape[dim] = &(&shape[dim] + &grown(&pair[0])) + &grown(&pair[1]);
        before[dim] = grown(&pair[0]);
    }
    if shape == args.b.shape(x) {
        return one(x);
    }
    let dtype = args.b.dtype(x);
    let value = args.maybe_number("value")?.unwrap_or(Number::Int(0));
    let value = super::elementwise::stored(value, dtype);
    one(args.b.push(Op::Pad { before, value }, vec![x], dtype, shape))
}

fn flip(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let mut dims = args.dims("dims", args.b.rank(x))?.ok_or("no dimensions")?;
    if dims.is_empty() || args.b.rank(x) == 0 {
        return one(x);
    }
    dims.sort_unstable();
    let (dtype, shape) = (args.b.dtype(x), args.b.shape(x));
    one(args.b.push(Op::Flip(dims), vec![x], dtype, shape))
}

fn roll(args: &mut Args<'_>) -> Outputs {
    let mut x = args.tensor("self")?;
    let shifts = args.shape("shifts")?;
    let (dtype, shape) = (args.b.dtype(x), args.b.shape(x));
    let given = args.ints("dims")?.unwrap_or_default();
    let mut dims =
        given.iter().map(|dim| dimension(*dim, shape.len())).collect::<Result<Vec<_>, _>>()?;
    if dims.is_empty() {
        x = args.b.reshape(x, vec![product(&shape)]);
        dims = vec![0];
    }
    if dims.len() != shifts.len() || args.b.rank(x) == 0 {
        return Err(Why::Wrong(format!("{} shifts of {} dimensions", shifts.len(), dims.len())));
    }
    for (dim, shift) in dims.into_iter().zip(shifts) {
        if !shift.is(0) {
            let shape = args.b.shape(x);
            x = args.b.push(Op::Roll { dim, shift }, vec![x], dtype, shape);
        }
    }
    one(args.b.reshape(x, shape))
}

/// Whole tensors one after the other, along each dimension.
fn repeat(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let name = if args.node.arg("dims").is_some() { "dims" } else { "repeats" };
    let mut repeats = args.shape(name)?;
    let mut shape = args.b.shape(x);
    while shape.len() < repeats.len() {
        shape.insert(0, Size::from(1));
    }
    while repeats.len() < shape.len() {
        if name == "repeats" {
            return Err("fewer repeats than dimensions".into());
        }
        repeats.insert(0, Size::from(1));
    }
    let one_each = shape.iter().flat_map(|size| [Size::from(1), size.clone()]).collect();
    let many_each = repeats.iter().zip(&shape).flat_map(|(n, size)| [n.clone(), size.clone()]);
    let many_each: Vec<Size> = many_each.collect();
    let whole = repeats.iter().zip(&shape).map(|(n, size)| n * size).collect();
    let x = args.b.reshape(x, one_each);
    let x = args.b.expand(x, many_each);
    one(args.b.reshape(x, whole))
}

/// Each element several times.
fn repeat_interleave(args: &mut Args<'_>) -> Outputs {
    let mut x = args.tensor("self")?;
    let times = args.maybe_size("repeats")?.ok_or("no number")?;
    if args.node.arg("dim").is_none() {
        let count = product(&args.b.shape(x));
        x = args.b.reshape(x, vec![count]);
    }
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let mut shape = args.b.shape(x);
    x = args.b.unsqueeze(x, dim + 1);
    let mut wide = args.b.shape(x);
    wide[dim + 1] = times.clone();
    x = args.b.expand(x, wide);
    shape[dim] = &shape[dim] * &times;
    one(args.b.reshape(x, shape))
}
