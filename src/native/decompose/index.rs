//! Elements by position: lookups, gathers, indices.
//!
//! Invariant: positions are in range, or counted from the end where PyTorch
//! counts so; what depends on the values of a mask is refused.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    one,
    shapes::show,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "embedding.default" => embedding,
        "index.Tensor" | "_unsafe_index.Tensor" => index,
        "index_select.default" => index_select,
        "gather.default" => gather,
        "take_along_dim.default" => take_along_dim,
        "take.default" => take,
        "one_hot.default" => one_hot,
        _ => return None,
    })
}

/// Rows of `x` along `dim`, at `positions` of any shape; the new dimensions
/// stand where `dim` was.
pub(super) fn lookup(
    b: &mut Builder,
    x: ValueId,
    dim: usize,
    positions: ValueId,
    wrap: bool,
) -> ValueId {
    let (from, places) = (b.shape(x), b.shape(positions));
    let rest = from.iter().enumerate().filter(|(d, _)| *d != dim).map(|(_, size)| size.clone());
    let shape: Vec<Size> = places.iter().cloned().chain(rest).collect();
    let dtype = b.dtype(x);
    let op = Op::Index { dims: vec![dim], wrap };
    let found = b.push(op, vec![x, positions], dtype, shape);
    let order = placed(places.len(), dim, from.len() - 1);
    b.permute(found, &order)
}

/// The order that puts the first `new` dimensions after the first `before` of
/// the `rest` that follow them.
fn placed(new: usize, before: usize, rest: usize) -> Vec<usize> {
    let (lead, tail) = (new..new + before, new + before..new + rest);
    lead.chain(0..new).chain(tail).collect()
}

pub(super) fn whole_numbers(args: &Args<'_>, positions: ValueId) -> Result<(), Why> {
    match args.b.dtype(positions) {
        DType::I64 | DType::I32 => Ok(()),
        DType::Bool => unsupported("a mask as index: the size of its result depends on its values"),
        other => Err(Why::Wrong(format!("positions of {other}"))),
    }
}

fn embedding(args: &mut Args<'_>) -> Outputs {
    let (weight, indices) = (args.tensor("weight")?, args.tensor("indices")?);
    whole_numbers(args, indices)?;
    if args.b.rank(weight) == 0 {
        return Err("a table without rows".into());
    }
    one(lookup(args.b, weight, 0, indices, false))
}

fn index_select(args: &mut Args<'_>) -> Outputs {
    let (x, mut positions) = (args.tensor("self")?, args.tensor("index")?);
    whole_numbers(args, positions)?;
    if args.b.rank(positions) == 0 {
        positions = args.b.unsqueeze(positions, 0);
    }
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    if args.b.rank(x) == 0 {
        return one(x);
    }
    one(lookup(args.b, x, dim, positions, false))
}

fn index(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let given = args.maybe_tensors("indices")?;
    let from = args.b.shape(x);
    if given.len() > from.len() {
        return Err(Why::Wrong(format!("{} indices of {} dimensions", given.len(), from.len())));
    }
    let indexed: Vec<(usize, ValueId)> =
        given.into_iter().enumerate().filter_map(|(dim, value)| Some((dim, value?))).collect();
    let Some((first, _)) = indexed.first().copied() else { return one(x) };
    let mut places = Vec::new();
    for (_, positions) in &indexed {
        whole_numbers(args, *positions)?;
        places = args.b.broadcast(&places, &args.b.shape(*positions))?;
    }
    let dims: Vec<usize> = indexed.iter().map(|(dim, _)| *dim).collect();
    let mut reads = vec![x];
    for (_, positions) in indexed {
        reads.push(args.b.expand(positions, places.clone()));
    }
    let rest = from.iter().enumerate().filter(|(dim, _)| !dims.contains(dim));
    let shape: Vec<Size> = places.iter().cloned().chain(rest.map(|(_, s)| s.clone())).collect();
    let adjacent = dims.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    let rest = from.len() - dims.len();
    let dtype = args.b.dtype(x);
    let found = args.b.push(Op::Index { dims, wrap: true }, reads, dtype, shape);
    // Indices that are not next to each other put the new dimensions first.
    let order = placed(places.len(), if adjacent { first } else { 0 }, rest);
    one(args.b.permute(found, &order))
}

fn gather(args: &mut Args<'_>) -> Outputs {
    let (x, positions) = (args.tensor("self")?, args.tensor("index")?);
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    one(gathered(args, x, dim, positions)?)
}

/// `x` at `positions` along `dim`; both have as many dimensions.
pub(super) fn gathered(
    args: &mut Args<'_>,
    x: ValueId,
    dim: usize,
    positions: ValueId,
) -> Result<ValueId, Why> {
    whole_numbers(args, positions)?;
    let (from, shape) = (args.b.shape(x), args.b.shape(positions));
    if from.is_empty() {
        return Ok(x);
    }
    if from.len() != shape.len() {
        return Err(Why::Wrong(format!("{} gathered from {}", show(&shape), show(&from))));
    }
    let outside = |i: usize| i != dim && !args.b.may_fit(&shape[i], &from[i]);
    if (0..shape.len()).any(outside) {
        return Err(Why::Wrong(format!("{} gathered from {}", show(&shape), show(&from))));
    }
    let dtype = args.b.dtype(x);
    Ok(args.b.push(Op::Gather { dim }, vec![x, positions], dtype, shape))
}

fn take_along_dim(args: &mut Args<'_>) -> Outputs {
    let (mut x, mut positions) = (args.tensor("self")?, args.tensor("indices")?);
    if args.node.arg("dim").is_none() {
        x = flat(args.b, x);
        positions = flat(args.b, positions);
    }
    let dim = args.dim("dim", 0, args.b.rank(x))?;
    let (from, to) = (args.b.shape(x), args.b.shape(positions));
    if from.len() != to.len() || from.is_empty() {
        return Err("tensors of different ranks".into());
    }
    let with = |shape: &[Size], size: &Size| {
        let mut shape = shape.to_vec();
        shape[dim] = size.clone();
        shape
    };
    let both = args.b.broadcast(&with(&from, &Size::from(1)), &with(&to, &Size::from(1)))?;
    let x = args.b.expand(x, with(&both, &from[dim]));
    let positions = args.b.expand(positions, with(&both, &to[dim]));
    one(gathered(args, x, dim, positions)?)
}

pub(super) fn flat(b: &mut Builder, x: ValueId) -> ValueId {
    let count = super::shapes::product(&b.shape(x));
    b.reshape(x, vec![count])
}

fn take(args: &mut Args<'_>) -> Outputs {
    let (x, positions) = (args.tensor("self")?, args.tensor("index")?);
    whole_numbers(args, positions)?;
    let x = flat(args.b, x);
    one(lookup(args.b, x, 0, positions, true))
}

fn one_hot(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let classes = args.int("num_classes", -1)?;
    if classes < 0 {
        return unsupported("one_hot without a number of classes: it depends on the values");
    }
    let rank = args.b.rank(x);
    let x = args.b.unsqueeze(x, rank);
    let classes = args.b.positions(&Size::from(classes), rank, rank + 1);
    let there = args.b.map(Fun::Eq, Domain::Int, &[x.into(), classes.into()], DType::Bool)?;
    one(args.b.cast(there, DType::I64))
}
