//! Other arrangements of the same elements, and parts of them.
//!
//! Invariant: nothing is computed; what falls outside is clamped as Python does.

use super::{
    super::size::Size,
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
