//! Other arrangements of the same elements, and parts of them.
//!
//! Invariant: nothing is computed; what falls outside is clamped as Python does.

use kiln_proto::graph::{Argument, DType, Dim};

use super::{
    super::{
        core::{Domain, Fun, Number, Op},
        size::Size,
    },
    Args, Outputs, Rule, Why, one,
    shapes::{product, show},
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
        "meshgrid.default" | "meshgrid.indexing" => meshgrid,
        "as_strided.default" | "as_strided_copy.default" => as_strided,
        "unfold.default" | "unfold_copy.default" => unfold,
        "pixel_shuffle.default" => pixel_shuffle,
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

/// The positions of a grid, of whose lines each operand has those along one dimension.
fn meshgrid(args: &mut Args<'_>) -> Outputs {
    let values = args.tensors("tensors")?;
    let turned = args.text("indexing", "ij")? == "xy" && values.len() > 1;
    let mut shape = Vec::with_capacity(values.len());
    for value in &values {
        let line = args.b.shape(*value);
        if line.len() > 1 {
            return Err(Why::Wrong(format!("a grid of {}", show(&line))));
        }
        shape.push(product(&line));
    }
    if turned {
        shape.swap(0, 1);
    }
    let place = |at: usize| if turned && at < 2 { 1 - at } else { at };
    let grids = values.into_iter().enumerate().map(|(at, value)| {
        let mut deep = vec![Size::from(1); shape.len()];
        deep[place(at)].clone_from(&shape[place(at)]);
        let line = args.b.reshape(value, deep);
        Some(args.b.expand(line, shape.clone()))
    });
    Ok(grids.collect())
}

/// Elements of the memory that a tensor lies in, by other strides.
fn as_strided(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let Some(Argument::Tensor(of)) = args.node.arg("self") else { return Err("no tensor".into()) };
    let ty = &args.graph.value(*of).ty;
    let known = |dims: &[Dim]| dims.iter().map(Dim::known).collect::<Option<Vec<u64>>>();
    let numbers = |sizes: Vec<Size>| {
        sizes.iter().map(|size| u64::try_from(size.known()?).ok()).collect::<Option<Vec<u64>>>()
    };
    let (size, stride) = (numbers(args.shape("size")?), numbers(args.shape("stride")?));
    let (Some(shape), Some(lies), Some(size), Some(stride)) =
        (known(&ty.shape), known(&ty.strides), size, stride)
    else {
        return unsupported("strides or sizes that are not known");
    };
    let own = ty.offset.known().unwrap_or(0);
    let offset = u64::try_from(args.int("storage_offset", own as i64)?);
    let offset = offset.map_err(|e| e.to_string())?;
    if own != 0 || size.len() != stride.len() {
        return unsupported("a part of another tensor's memory");
    }
    // The elements in the order in which they lie.
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.sort_by_key(|dim| std::cmp::Reverse((lies[*dim], shape[*dim])));
    let dense = |order: &[usize], shape: &[u64], lies: &[u64]| {
        let mut wanted = 1u64;
        order.iter().rev().all(|dim| {
            let fits = shape[*dim] == 1 || lies[*dim] == wanted;
            wanted = wanted.saturating_mul(shape[*dim]);
            fits
        })
    };
    if !dense(&order, &shape, &lies) {
        return unsupported("a tensor with gaps in its memory");
    }
    let count = shape.iter().fold(1u64, |all, size| all.saturating_mul(*size));
    let steps = size.iter().zip(&stride);
    let last = steps.fold(offset, |at, (size, stride)| {
        at.saturating_add(size.saturating_sub(1).saturating_mul(*stride))
    });
    let sizes: Vec<Size> = size.iter().map(|size| Size::from(*size as i64)).collect();
    if last >= count && !size.contains(&0) {
        return Err(Why::Wrong(format!("element {last} of {count}")));
    }
    let line = args.b.permute(x, &order);
    let line = args.b.reshape(line, vec![Size::from(count as i64)]);
    let mut by: Vec<usize> = (0..size.len()).collect();
    by.sort_by_key(|dim| std::cmp::Reverse((stride[*dim], size[*dim])));
    let total = size.iter().fold(1u64, |all, size| all.saturating_mul(*size));
    if offset == 0 && total == count && dense(&by, &size, &stride) {
        let sorted = by.iter().map(|dim| sizes[*dim].clone()).collect();
        let sorted = args.b.reshape(line, sorted);
        let back: Vec<usize> =
            (0..by.len()).filter_map(|dim| by.iter().position(|d| *d == dim)).collect();
        return one(args.b.permute(sorted, &back));
    }
    let b = &mut *args.b;
    let op = Op::Full(Number::Int(offset as i64));
    let mut at = b.push(op, vec![], DType::I64, sizes.clone());
    for (dim, stride) in stride.iter().enumerate() {
        let along = b.positions(&sizes[dim], dim, sizes.len());
        let step = Number::Int(*stride as i64);
        let along = b.map(Fun::Mul, Domain::Int, &[along.into(), step.into()], DType::I64)?;
        at = b.map(Fun::Add, Domain::Int, &[at.into(), along.into()], DType::I64)?;
    }
    one(super::index::lookup(b, line, 0, at, false))
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
