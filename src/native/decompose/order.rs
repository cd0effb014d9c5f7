//! Along a dimension: running sums, the greatest, sorting, differences, mirrored edges.
//!
//! Invariant: among equals the first comes first.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Fun, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::domain,
    one,
    promote::is_float,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "cumsum.default" => cumsum,
        "topk.default" => topk,
        "sort.default" | "sort.stable" => |args| sorted(args, false),
        "argsort.default" | "argsort.stable" => |args| sorted(args, true),
        "diff.default" => diff,
        "reflection_pad1d.default" | "reflection_pad2d.default" | "reflection_pad3d.default" => {
            |args| pad_as(args, "reflect")
        }
        "replication_pad1d.default" | "replication_pad2d.default" | "replication_pad3d.default" => {
            |args| pad_as(args, "replicate")
        }
        _ => return None,
    })
}

fn cumsum(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let from = args.b.dtype(x);
    let default = if is_float(from) { from } else { DType::I64 };
    let dtype = args.dtype()?.unwrap_or(default);
    let shape = args.b.shape(x);
    let dim = args.dim("dim", 0, shape.len())?;
    let x = if is_float(from) && from != DType::F64 && dtype == DType::F32 {
        x
    } else {
        args.b.cast(x, dtype)
    };
    if shape.is_empty() {
        return one(args.b.cast(x, dtype));
    }
    one(args.b.push(Op::CumSum { dim }, vec![x], dtype, shape))
}

/// The `k` first along `dim` in order, and where they are.
fn first(args: &mut Args<'_>, x: ValueId, dim: usize, k: usize, largest: bool) -> [ValueId; 2] {
    let rank = args.b.rank(x);
    let dtype = args.b.dtype(x);
    let last = args.b.move_dim(x, dim, rank - 1);
    let mut shape = args.b.shape(last);
    shape[rank - 1] = Size::from(k);
    [(false, dtype), (true, DType::I64)].map(|(positions, dtype)| {
        let op = Op::TopK { k, largest, positions };
        let found = args.b.push(op, vec![last], dtype, shape.clone());
        args.b.move_dim(found, rank - 1, dim)
    })
}

fn topk(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let shape = args.b.shape(x);
    let dim = args.dim("dim", -1, shape.len())?;
    let k = usize::try_from(args.int("k", 1)?).map_err(|e| e.to_string())?;
    if shape.is_empty() {
        return unsupported("the greatest of a scalar");
    }
    if shape[dim].known().is_some_and(|size| size < k as i64) {
        return Err(Why::Wrong(format!("the {k} greatest of {}", shape[dim])));
    }
    let largest = args.flag("largest", true)?;
    Ok(first(args, x, dim, k, largest).map(Some).to_vec())
}

fn sorted(args: &mut Args<'_>, positions_only: bool) -> Outputs {
    let x = args.tensor("self")?;
    let shape = args.b.shape(x);
    let dim = args.dim("dim", -1, shape.len())?;
    let Some(size) = shape.get(dim).and_then(Size::known) else {
        return unsupported("sorting along no dimension of fixed size");
    };
    let k = usize::try_from(size).map_err(|e| e.to_string())?;
    let largest = args.flag("descending", false)?;
    let [values, positions] = first(args, x, dim, k, largest);
    match positions_only {
        true => one(positions),
        false => Ok(vec![Some(values), Some(positions)]),
    }
}

/// Differences of neighbours along a dimension, perhaps several times over.
fn diff(args: &mut Args<'_>) -> Outputs {
    let mut x = args.tensor("self")?;
    let dim = args.dim("dim", -1, args.b.rank(x))?;
    let dtype = args.b.dtype(x);
    let (before, after) = (args.maybe_tensor("prepend")?, args.maybe_tensor("append")?);
    let parts: Vec<ValueId> = before.into_iter().chain([x]).chain(after).collect();
    if parts.iter().any(|part| args.b.rank(*part) == 0 || args.b.dtype(*part) != dtype) {
        return Err("parts that do not fit".into());
    }
    x = args.b.cat(parts, dim);
    for _ in 0..args.int("n", 1)?.min(64) {
        let count = &args.b.shape(x)[dim] - &Size::from(1);
        let later = args.b.slice(x, dim, Size::from(1), 1, count.clone());
        let sooner = args.b.slice(x, dim, Size::default(), 1, count);
        let fun = if dtype == DType::Bool { Fun::Ne } else { Fun::Sub };
        x = args.b.map(fun, domain(dtype), &[later.into(), sooner.into()], dtype)?;
    }
    one(x)
}

fn pad_as(args: &mut Args<'_>, mode: &str) -> Outputs {
    let x = args.tensor("self")?;
    let pads = args.shape("padding")?;
    pad_from_within(args, x, &pads, mode)
}

/// Pads by elements of the tensor itself; pairs from the last dimension on.
pub(super) fn pad_from_within(
    args: &mut Args<'_>,
    x: ValueId,
    pads: &[Size],
    mode: &str,
) -> Outputs {
    let mut x = x;
    let rank = args.b.rank(x);
    for (i, pair) in pads.chunks_exact(2).enumerate() {
        let dim = rank - 1 - i;
        let size = args.b.shape(x)[dim].clone();
        let (before, after) = (pair[0].clone(), pair[1].clone());
        if [&before, &after].iter().any(|pad| pad.known().is_none_or(|pad| pad < 0)) {
            return unsupported(format!("padding by {before} and {after} in mode {mode:?}"));
        }
        let edge = |args: &mut Args<'_>, start: Size, count: &Size, mirrored: bool| {
            let part = args.b.slice(x, dim, start, 1, count.clone());
            if !mirrored {
                return part;
            }
            let (dtype, shape) = (args.b.dtype(part), args.b.shape(part));
            args.b.push(Op::Flip(vec![dim]), vec![part], dtype, shape)
        };
        let one = Size::from(1);
        let mut parts = Vec::new();
        let ends = match mode {
            "reflect" => {
                let last = &(&size - &one) - &after;
                [edge(args, one, &before, true), edge(args, last, &after, true)]
            }
            "circular" => [
                edge(args, &size - &before, &before, false),
                edge(args, Size::default(), &after, false),
            ],
            "replicate" => {
                let mut wide = args.b.shape(x);
                [(Size::default(), &before), (&size - &one, &after)].map(|(start, count)| {
                    let end = args.b.slice(x, dim, start, 1, Size::from(1));
                    wide[dim] = count.clone();
                    args.b.expand(end, wide.clone())
                })
            }
            other => return unsupported(format!("padding in mode {other:?}")),
        };
        for (part, count) in [(ends[0], &before), (x, &size), (ends[1], &after)] {
            if !count.is(0) {
                parts.push(part);
            }
        }
        x = args.b.cat(parts, dim);
    }
    one(x)
}
