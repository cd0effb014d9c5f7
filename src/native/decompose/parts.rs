//! Parts of a tensor, and other elements in their place.
//!
//! Invariant: what falls outside is clamped as Python does.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, domain},
    index::lookup,
    one,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
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
        "slice_scatter.default" => slice_scatter,
        "select_scatter.default" => select_scatter,
        _ => return None,
    })
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
    let last = &start + &(&(&count - &Size::from(1)) * &Size::from(step));
    if !count.is(0) {
        fits(args, &last, &Size::from(1), &size)?;
    }
    one(args.b.slice(x, dim, start, step, count))
}

fn narrow(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x)[dim].clone();
    let start = clamped(&args.maybe_size("start")?.unwrap_or_default(), &size);
    let count = args.maybe_size("length")?.ok_or("no length")?;
    fits(args, &start, &count, &size)?;
    one(args.b.slice(x, dim, start, 1, count))
}

/// Whether `count` elements from `start` on are there, where that can be told.
fn fits(args: &Args<'_>, start: &Size, count: &Size, size: &Size) -> Result<(), Why> {
    let past = !args.b.may_fit(&(start + count), size);
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
    fits(args, &start, &Size::from(1), &size)?;
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

/// With other elements from `start` on along a dimension.
fn slice_scatter(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let size = args.b.shape(x).get(dim).ok_or("a part of a scalar")?.clone();
    let step = args.int("step", 1)?;
    if step < 1 {
        return Err(Why::Wrong(format!("a step of {step}")));
    }
    let start = clamped(&args.maybe_size("start")?.unwrap_or_default(), &size);
    let src = args.tensor("src")?;
    let count = args.b.shape(src).get(dim).ok_or("too few dimensions")?.clone();
    if step != 1 && !count.is(0) {
        return spread(args, x, src, dim, start, step);
    }
    let end = &start + &count;
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

/// `src` in place of each `step`-th element from `start` on.
fn spread(
    args: &mut Args<'_>,
    x: ValueId,
    src: ValueId,
    dim: usize,
    start: Size,
    step: i64,
) -> Outputs {
    let (shape, rank, dtype) = (args.b.shape(x), args.b.rank(x), args.b.dtype(x));
    let src = args.b.cast(src, dtype);
    let count = args.b.shape(src)[dim].clone();
    let last = &(&count - &Size::from(1)) * &Size::from(step);
    fits(args, &(&start + &last), &Size::from(1), &shape[dim])?;
    let mut wanted = shape.clone();
    wanted[dim].clone_from(&count);
    if !args.b.same_shape(&args.b.shape(src), &wanted) {
        return Err("elements of another shape".into());
    }
    let int = |b: &mut super::Builder, fun, args: &[Arg]| b.map(fun, Domain::Int, args, DType::I64);
    let b = &mut *args.b;
    let at = b.positions(&shape[dim], 0, 1);
    let from = int(b, Fun::Sub, &[at.into(), Number::Size(start).into()])?;
    let rest = int(b, Fun::Remainder, &[from.into(), step.into()])?;
    let which = int(b, Fun::FloorDiv, &[from.into(), step.into()])?;
    let end = Arg::from(Number::Size(count.clone()));
    let tests = [
        b.map(Fun::Eq, Domain::Int, &[rest.into(), 0i64.into()], DType::Bool)?,
        b.map(Fun::Ge, Domain::Int, &[from.into(), 0i64.into()], DType::Bool)?,
        b.map(Fun::Lt, Domain::Int, &[which.into(), end], DType::Bool)?,
    ];
    let two = b.map(Fun::And, Domain::Bool, &[tests[0].into(), tests[1].into()], DType::Bool)?;
    let hit = b.map(Fun::And, Domain::Bool, &[two.into(), tests[2].into()], DType::Bool)?;
    let most = Arg::from(Number::Size(&count - &Size::from(1)));
    let which = int(b, Fun::Max, &[which.into(), 0i64.into()])?;
    let which = int(b, Fun::Min, &[which.into(), most])?;
    let taken = lookup(b, src, dim, which, false);
    let mut deep = vec![Size::from(1); rank];
    deep[dim].clone_from(&shape[dim]);
    let hit = b.reshape(hit, deep);
    one(b.map(Fun::Where, domain(dtype), &[hit.into(), taken.into(), x.into()], dtype)?)
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
    fits(args, &start, &(end - &start), &size)?;
    let before = args.b.slice(x, dim, Size::default(), 1, start.clone());
    let after = args.b.slice(x, dim, end.clone(), 1, &size - end);
    let mut parts = vec![(before, start), (src, Size::from(1)), (after, &size - end)];
    parts.retain(|(_, count)| !count.is(0));
    one(args.b.cat(parts.into_iter().map(|(part, _)| part).collect(), dim))
}
