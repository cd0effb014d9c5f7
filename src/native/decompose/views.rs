//! Other arrangements of the same elements, and parts of them.
//!
//! Invariant: nothing is computed; what falls outside is clamped as Python does.

use super::{
    super::{
        core::{Number, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why, one,
    promote::{Kind, promote},
    shapes::{dimension, product, show},
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "view.default"
        | "reshape.default"
        | "_unsafe_view.default"
        | "view_copy.default"
        | "_reshape_alias.default" => view,
        "flatten.using_ints" | "squeeze.default" | "unflatten.int" | "ravel.default"
        | "view_as.default" | "reshape_as.default" | "atleast_1d.default" => as_declared,
        "squeeze.dim" | "squeeze.dims" | "squeeze_copy.dim" | "squeeze_copy.dims" => squeeze,
        "unsqueeze.default" | "unsqueeze_copy.default" => unsqueeze,
        "permute.default" | "permute_copy.default" => permute,
        "transpose.int" | "transpose_copy.int" | "swapaxes.default" | "swapdims.default" => {
            transpose
        }
        "t.default" | "t_copy.default" | "numpy_T.default" => reverse,
        "mT.default" | "mH.default" | "adjoint.default" => matrix_transpose,
        "movedim.int" | "movedim.intlist" | "moveaxis.int" => movedim,
        "expand.default" | "expand_copy.default" | "broadcast_to.default" => expand,
        "expand_as.default" => expand_as,
        "broadcast_tensors.default" => broadcast_tensors,
        "slice.Tensor" | "slice_copy.Tensor" => slice,
        "narrow.default" | "narrow_copy.default" => narrow,
        "select.int" | "select_copy.int" => select,
        "split.Tensor"
        | "chunk.default"
        | "unsafe_split.Tensor"
        | "split.sizes"
        | "split.default"
        | "split_with_sizes.default"
        | "unsafe_chunk.default"
        | "split_with_sizes_copy.default"
        | "split_copy.Tensor" => split,
        "unbind.int" | "unbind_copy.int" => unbind,
        "cat.default" | "concat.default" | "concatenate.default" => cat,
        "stack.default" => stack,
        "constant_pad_nd.default" | "pad.default" => pad,
        "flip.default" => flip,
        "roll.default" => roll,
        "repeat.default" | "tile.default" => repeat,
        "repeat_interleave.self_int" => repeat_interleave,
        "unfold.default" | "unfold_copy.default" => unfold,
        "pixel_shuffle.default" => pixel_shuffle,
        "slice_scatter.default" => slice_scatter,
        "select_scatter.default" => select_scatter,
        _ => return None,
    })
}

/// The same elements under the shape that is given, one size of which may be left out.
fn view(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let name = if args.node.arg("shape").is_some() { "shape" } else { "size" };
    let Some(sizes) = args.sizes(name)? else {
        return unsupported("a view as another element type");
    };
    let (_, declared) = args.declared(0)?;
    let from = args.b.shape(x);
    let wrong = |to: &[Size]| Why::Wrong(format!("shape {} viewed as {}", show(&from), show(to)));
    if sizes.len() != declared.len() {
        return Err(wrong(&declared));
    }
    let total = product(&from);
    let given: Vec<Size> = sizes.iter().flatten().cloned().collect();
    let missing = sizes.len() - given.len();
    let (quotient, rest) = total.divide(&product(&given));
    let filled = sizes.iter().zip(&declared).map(|(size, declared)| match size {
        Some(size) => size.clone(),
        None if rest.is(0) && !quotient.is(0) => quotient.clone(),
        None => declared.clone(),
    });
    let shape: Vec<Size> = filled.collect();
    if missing > 1 || !args.b.same(&product(&shape), &total) {
        return Err(wrong(&shape));
    }
    one(args.b.reshape(x, shape))
}

/// The same elements under the declared shape, if it has as many.
fn as_declared(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let (_, shape) = args.declared(0)?;
    let from = args.b.shape(x);
    if !args.b.same(&product(&from), &product(&shape)) {
        let wrong = format!("shape {} viewed as {}", show(&from), show(&shape));
        return Err(Why::Wrong(wrong));
    }
    one(args.b.reshape(x, shape))
}

fn squeeze(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x);
    let dims = args.dims("dim", rank)?.ok_or("no dimensions")?;
    let from = args.b.shape(x).into_iter().enumerate();
    let kept = from.filter(|(dim, size)| !size.is(1) || !dims.contains(dim));
    let shape = kept.map(|(_, size)| size).collect();
    one(args.b.reshape(x, shape))
}

fn unsqueeze(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x) + 1)?;
    one(args.b.unsqueeze(x, dim))
}

fn permute(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x);
    let order = args.dims("dims", rank)?.ok_or("no dimensions")?;
    if order.len() != rank {
        return Err(Why::Wrong(format!("{} dimensions of {rank}", order.len())));
    }
    one(args.b.permute(x, &order))
}

fn transpose(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x);
    let both = match args.node.arg("axis0") {
        Some(_) => ["axis0", "axis1"],
        None => ["dim0", "dim1"],
    };
    let (a, b) = (args.dim(both[0], 0, rank)?, args.dim(both[1], 0, rank)?);
    if rank == 0 {
        return one(x);
    }
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(a, b);
    one(args.b.permute(x, &order))
}

fn reverse(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let order: Vec<usize> = (0..args.b.rank(x)).rev().collect();
    if args.node.op.starts_with("aten.t") && order.len() > 2 {
        return Err(Why::Wrong(format!("a tensor with {} dimensions", order.len())));
    }
    one(args.b.permute(x, &order))
}

fn matrix_transpose(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x);
    let mut order: Vec<usize> = (0..rank).collect();
    if rank < 2 {
        return Err("no matrix".into());
    }
    order.swap(rank - 2, rank - 1);
    one(args.b.permute(x, &order))
}

fn movedim(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x);
    let from = args.dims("source", rank)?.ok_or("no dimensions")?;
    let to = args.dims("destination", rank)?.ok_or("no dimensions")?;
    let mut rest = (0..rank).filter(|dim| !from.contains(dim));
    let order: Option<Vec<usize>> = (0..rank)
        .map(|place| match to.iter().position(|dim| *dim == place) {
            Some(at) => from.get(at).copied(),
            None => rest.next(),
        })
        .collect();
    one(args.b.permute(x, &order.filter(|order| order.len() == rank).ok_or("uneven dimensions")?))
}

fn expand(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let sizes = args.sizes("size")?.ok_or("no sizes")?;
    let from = args.b.shape(x);
    let new = sizes.len().checked_sub(from.len()).ok_or("fewer dimensions")?;
    let mut shape = Vec::with_capacity(sizes.len());
    for (i, size) in sizes.into_iter().enumerate() {
        let old = i.checked_sub(new).map(|i| &from[i]);
        shape.push(match (old, size) {
            (Some(old), None) => old.clone(),
            (Some(old), Some(size)) if old.is(1) || args.b.same(old, &size) => size,
            (None, Some(size)) => size,
            (_, size) => {
                let to = size.map(|size| size.to_string()).unwrap_or_default();
                let wrong = format!("shape {} expanded to {to:?} in dimension {i}", show(&from));
                return Err(Why::Wrong(wrong));
            }
        });
    }
    one(args.b.expand(x, shape))
}

fn expand_as(args: &mut Args<'_>) -> Outputs {
    let (x, other) = (args.tensor("self")?, args.tensor("other")?);
    let shape = args.b.shape(other);
    if args.b.broadcast(&args.b.shape(x), &shape)?.len() != shape.len() {
        return Err("more dimensions".into());
    }
    one(args.b.expand(x, shape))
}

fn broadcast_tensors(args: &mut Args<'_>) -> Outputs {
    let values = args.tensors("tensors")?;
    let mut shape = Vec::new();
    for value in &values {
        shape = args.b.broadcast(&shape, &args.b.shape(*value))?;
    }
    Ok(values.into_iter().map(|value| Some(args.b.expand(value, shape.clone()))).collect())
}

/// An end of a slice within a dimension: Python's clamping, where it can be told.
fn clamped(end: &Size, size: &Size) -> Size {
    let zero = Size::default();
    match (end.known(), size.known()) {
        (Some(i64::MAX), _) => size.clone(),
        (Some(end), Some(size)) => {
            let end = if end < 0 { end.saturating_add(size) } else { end };
            Size::from(end.clamp(0, size))
        }
        // From the end of what is not known: the exporter guards that it is there.
        (Some(end), None) if end < 0 => size + &Size::from(end),
        (Some(0), None) => zero,
        _ => end.clone(),
    }
}

fn slice(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x).get(dim).ok_or("a slice of a scalar")?.clone();
    let step = args.int("step", 1)?;
    if step < 1 {
        return Err(Why::Wrong(format!("a step of {step}")));
    }
    let start = clamped(&args.maybe_size("start")?.unwrap_or_default(), &size);
    let end = clamped(&args.maybe_size("end")?.unwrap_or(Size::from(i64::MAX)), &size);
    let span = &(&end - &start) + &Size::from(step - 1);
    let count = match span.known() {
        Some(span) => Size::from(span.div_euclid(step).max(0)),
        None => span.div_floor(&Size::from(step)),
    };
    // Where sizes are symbols the exporter knows more of what was clamped; a
    // start past the end then leaves nothing.
    let declared = args.declared(0)?.1.get(dim).cloned().ok_or("a dimension is missing")?;
    let both_known = count.known().is_some() && size.known().is_some();
    let count = if both_known { count } else { declared };
    one(args.b.slice(x, dim, start, step, count))
}

fn narrow(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x)[dim].clone();
    let start = clamped(&args.maybe_size("start")?.unwrap_or_default(), &size);
    let count = args.maybe_size("length")?.ok_or("no length")?;
    fits(&start, &count, &size)?;
    one(args.b.slice(x, dim, start, 1, count))
}

/// Whether `count` elements from `start` on are there, where that can be told.
fn fits(start: &Size, count: &Size, size: &Size) -> Result<(), Why> {
    let past = (start + count).known().zip(size.known()).is_some_and(|(end, size)| end > size);
    if past || count.known().is_some_and(|count| count < 0) {
        return Err(Why::Wrong(format!("{count} elements from {start} on, of {size}")));
    }
    Ok(())
}

fn select(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x).get(dim).ok_or("a part of a scalar")?.clone();
    let index = args.maybe_size("index")?.ok_or("no index")?;
    let start = match index.known() {
        Some(index) if index < 0 => &size + &Size::from(index),
        _ => index,
    };
    if start.known().is_some_and(|start| start < 0) {
        return Err(Why::Wrong(format!("element {start} of {size}")));
    }
    fits(&start, &Size::from(1), &size)?;
    let part = args.b.slice(x, dim, start, 1, Size::from(1));
    one(args.b.squeeze(part, dim))
}

/// Parts of the sizes that the exporter declared, one after the other.
fn split(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x).get(dim).ok_or("parts of a scalar")?.clone();
    let mut start = Size::default();
    let mut parts = Vec::with_capacity(args.node.outputs.len());
    for output in 0..args.node.outputs.len() {
        let count =
            args.declared(output)?.1.get(dim).cloned().ok_or("a part has no such dimension")?;
        parts.push(Some(args.b.slice(x, dim, start.clone(), 1, count.clone())));
        start = &start + &count;
    }
    if !args.b.same(&start, &size) {
        return Err(Why::Wrong(format!("parts of {start} elements, of {size}")));
    }
    Ok(parts)
}

fn unbind(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let count = args.node.outputs.len();
    if args.b.shape(x).get(dim).and_then(Size::known) != Some(count as i64) {
        return Err(Why::Wrong(format!("{count} parts of another number")));
    }
    let mut parts = Vec::with_capacity(count);
    for index in 0..count {
        let part = args.b.slice(x, dim, Size::from(index), 1, Size::from(1));
        parts.push(Some(args.b.squeeze(part, dim)));
    }
    Ok(parts)
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

/// Windows of a dimension, as a new last dimension.
fn unfold(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dimension", 0, args.b.rank(x))?;
    let (size, step) = (args.int("size", 1)?, args.int("step", 1)?);
    one(super::convolution::windows(args.b, x, dim, size, step, 1)?)
}

fn pixel_shuffle(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let factor = Size::from(args.int("upscale_factor", 1)?);
    let shape = args.b.shape(x);
    let Some((lead, [c, h, w])) = shape.split_last_chunk::<3>() else {
        return Err("no image".into());
    };
    let channels = c.div_floor(&(&factor * &factor));
    let n = lead.len();
    let parts = [lead, &[channels.clone(), factor.clone(), factor.clone(), h.clone(), w.clone()]];
    let x = args.b.reshape(x, parts.concat());
    let mut order: Vec<usize> = (0..n).collect();
    order.extend([n, n + 3, n + 1, n + 4, n + 2]);
    let x = args.b.permute(x, &order);
    one(args.b.reshape(x, [lead, &[channels, h * &factor, w * &factor]].concat()))
}

/// With other elements from `start` on along a dimension.
fn slice_scatter(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x).get(dim).ok_or("a part of a scalar")?.clone();
    if args.int("step", 1)? != 1 {
        return unsupported("every other element replaced");
    }
    let start = clamped(&args.maybe_size("start")?.unwrap_or_default(), &size);
    let src = args.tensor("src")?;
    let end = &start + args.b.shape(src).get(dim).ok_or("too few dimensions")?;
    replaced(args, x, src, dim, start, &end)
}

fn select_scatter(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x).get(dim).ok_or("a part of a scalar")?.clone();
    let index = args.maybe_size("index")?.ok_or("no index")?;
    let start = if index.known().is_some_and(|i| i < 0) { &size + &index } else { index };
    let src = args.tensor("src")?;
    let src = args.b.unsqueeze(src, dim);
    let end = &start + &Size::from(1);
    replaced(args, x, src, dim, start, &end)
}

/// `src` in place of the elements from `start` to `end`.
fn replaced(
    args: &mut Args<'_>,
    x: ValueId,
    src: ValueId,
    dim: usize,
    start: Size,
    end: &Size,
) -> Outputs {
    let size = args.b.shape(x)[dim].clone();
    let src = args.b.cast(src, args.b.dtype(x));
    fits(&start, &(end - &start), &size)?;
    let before = args.b.slice(x, dim, Size::default(), 1, start.clone());
    let after = args.b.slice(x, dim, end.clone(), 1, &size - end);
    let mut parts = vec![(before, start), (src, Size::from(1)), (after, &size - end)];
    parts.retain(|(_, count)| !count.is(0));
    one(args.b.cat(parts.into_iter().map(|(part, _)| part).collect(), dim))
}
