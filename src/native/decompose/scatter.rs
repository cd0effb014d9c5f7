//! Elements written at positions: every element of the result looks for what was written to it.
//!
//! ```text
//! index_put(x, [t], v)[i]  =  v[k] of the last k with t[k] = i, where there is one; else x[i]
//! index_add(x, t, v)[i]    =  x[i] + the sum of v[k] over the k with t[k] = i
//! ```
//!
//! Invariant: the result does not depend on an order of writes: sums run in that of the
//! positions, and of several that are written to one place the last one stays.

mod counted;
mod indexed;
mod masked;

use kiln_proto::graph::DType;

use self::{
    counted::{bincount, histc},
    indexed::index_put,
    masked::{masked_put, masked_scatter, only_mask},
};
use super::{
    super::{
        core::{Domain, Fun, Number, Op, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder, domain},
    convolution::grown,
    elementwise::{held, stored},
    index::{lookup, whole_numbers},
    one,
    promote::{ends, is_float},
    shapes::{product, show},
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "scatter.src" | "scatter.value" => |args| scatter(args, How::Replace, true),
        "scatter.reduce" | "scatter.value_reduce" | "scatter_reduce.two" => scatter_reduce,
        "scatter_add.default" => |args| scatter(args, How::Sum, true),
        "index_put.default" | "_unsafe_index_put.default" | "index_put.hacked_twin" => index_put,
        "index_add.default" => index_add,
        "index_copy.default" => index_copy,
        "index_fill.int_Scalar" | "index_fill.int_Tensor" => index_fill,
        "masked_scatter.default" => masked_scatter,
        "histc.default" => histc,
        "bincount.default" => bincount,
        _ => return None,
    })
}

/// What becomes of several elements that are written to one place, and of what was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The last one stays.
    Replace,
    Sum,
    Prod,
    Mean,
    Max,
    Min,
}

impl How {
    fn of(name: &str) -> Result<Self, Why> {
        Ok(match name {
            "sum" | "add" => Self::Sum,
            "prod" | "multiply" => Self::Prod,
            "mean" => Self::Mean,
            "amax" => Self::Max,
            "amin" => Self::Min,
            other => return Err(Why::Wrong(format!("no way to combine: {other:?}"))),
        })
    }

    fn reduction(self) -> (Reduction, Fun) {
        match self {
            Self::Prod => (Reduction::Prod, Fun::Mul),
            Self::Max => (Reduction::Max, Fun::Max),
            Self::Min => (Reduction::Min, Fun::Min),
            _ => (Reduction::Sum, Fun::Add),
        }
    }

    /// What combines with anything to that, as `dtype` has it.
    fn neutral(self, dtype: DType) -> Number {
        let number = |number: i64| match is_float(dtype) {
            true => Number::Float(number as f64),
            false => Number::Int(number),
        };
        match self {
            Self::Prod => number(1),
            Self::Max => ends(dtype).0,
            Self::Min => ends(dtype).1,
            _ => number(0),
        }
    }
}

/// What is written: elements, or one number everywhere.
#[derive(Clone)]
enum Written {
    Each(ValueId),
    All(Arg),
}

/// The zero of `dtype`.
fn nothing(dtype: DType) -> Number {
    stored(How::Sum.neutral(dtype), dtype)
}

/// With one more in front of the dimension `dim` of `x`, of that value.
fn preceded(b: &mut Builder, x: ValueId, dim: usize, value: Number) -> ValueId {
    let mut pads = vec![(0, 0); b.rank(x) - dim];
    pads[0] = (1, 0);
    grown(b, x, &pads, value)
}

/// The positions (along `dim`) and what is written there (along `along`), of which there is
/// at least one: where a call may have none, one before them all is written nowhere. The
/// last of none, or the greatest, is nothing that could be told.
fn at_least_one(
    b: &mut Builder,
    (at, dim): (ValueId, usize),
    (written, along): (Written, usize),
) -> (ValueId, Written) {
    if !b.may_be_none(&b.shape(at)[dim]) {
        return (at, written);
    }
    let at = preceded(b, at, dim, Number::Int(-1));
    let written = match written {
        Written::Each(values) => {
            let none = nothing(b.dtype(values));
            Written::Each(preceded(b, values, along, none))
        }
        all @ Written::All(_) => all,
    };
    (at, written)
}

/// Where each place is written to: `hits` says of each place and each write whether that is
/// one to it; the writes are its last dimension.
struct Hits {
    hits: ValueId,
    /// Of places.
    shape: Vec<Size>,
    /// Number of writes.
    writes: Size,
}

impl Hits {
    /// Whether anything is written there.
    fn any(&self, b: &mut Builder) -> Result<ValueId, Why> {
        b.reduce(Reduction::Any, self.hits, &[self.shape.len()], DType::Bool)
    }

    /// The last write to each place; less than zero: there is none.
    fn last(&self, b: &mut Builder) -> Result<ValueId, Why> {
        let rank = self.shape.len();
        let numbers = b.positions(&self.writes, rank, rank + 1);
        let none = Arg::from(-1i64);
        let args = [self.hits.into(), numbers.into(), none];
        let each = b.map(Fun::Where, Domain::Int, &args, DType::I64)?;
        b.reduce(Reduction::Max, each, &[rank], DType::I64)
    }

    /// How many writes there are to each place.
    fn count(&self, b: &mut Builder) -> Result<ValueId, Why> {
        let ones = b.cast(self.hits, DType::I64);
        b.reduce(Reduction::Sum, ones, &[self.shape.len()], DType::I64)
    }
}

/// `written` in place of `x` where `hit` says so.
fn chosen(b: &mut Builder, hit: ValueId, written: Arg, x: ValueId) -> Result<ValueId, Why> {
    let dtype = b.dtype(x);
    Ok(b.map(Fun::Where, domain(dtype), &[hit.into(), held(written, dtype), x.into()], dtype)?)
}

/// `x`, combined with what was written to each place, of which there are `count`.
fn combined(
    b: &mut Builder,
    x: ValueId,
    reduced: ValueId,
    count: Option<ValueId>,
    how: How,
    with_self: bool,
) -> Result<ValueId, Why> {
    let dtype = b.dtype(x);
    let d = domain(dtype);
    let (_, fun) = how.reduction();
    let inner = if is_float(dtype) { b.inner } else { dtype };
    let is_mean = how == How::Mean;
    let both = match with_self {
        true => b.map(fun, d, &[x.into(), reduced.into()], if is_mean { inner } else { dtype })?,
        false => reduced,
    };
    let Some(count) = count else { return Ok(b.cast(both, dtype)) };
    let all = match with_self {
        true => b.map(Fun::Add, Domain::Int, &[count.into(), 1i64.into()], DType::I64)?,
        false => count,
    };
    let mut value = both;
    if is_mean {
        let all = b.map(Fun::Max, Domain::Int, &[all.into(), 1i64.into()], DType::I64)?;
        let fun = if is_float(dtype) { Fun::Div } else { Fun::FloorDiv };
        value = b.map(fun, d, &[value.into(), all.into()], dtype)?;
    }
    let value = b.cast(value, dtype);
    match with_self {
        true => Ok(value),
        // What nothing is written to stays as it was.
        false => {
            let hit = b.map(Fun::Gt, Domain::Int, &[count.into(), 0i64.into()], DType::Bool)?;
            chosen(b, hit, value.into(), x)
        }
    }
}

/// With `written` (`[writes, rest..]`) at the places `at` (`[writes]`) of the first dimension
/// of `x` (`[places, rest..]`).
fn put(
    b: &mut Builder,
    x: ValueId,
    at: ValueId,
    written: Written,
    how: How,
) -> Result<ValueId, Why> {
    let shape = b.shape(x);
    if b.shape(at)[0].is(0) || shape[0].is(0) {
        return Ok(x);
    }
    let (at, written) = at_least_one(b, (at, 0), (written, 0));
    let writes = b.shape(at)[0].clone();
    let rest = shape.len() - 1;
    let places = b.positions(&shape[0], 0, 2);
    let at = b.unsqueeze(at, 0);
    let hits = b.map(Fun::Eq, Domain::Int, &[places.into(), at.into()], DType::Bool)?;
    let hits = Hits { hits, shape: vec![shape[0].clone()], writes: writes.clone() };
    let deep = |b: &mut Builder, value: ValueId, front: Vec<Size>| {
        let mut deep = front;
        deep.extend(std::iter::repeat_n(Size::from(1), rest));
        b.reshape(value, deep)
    };
    match (how, written) {
        (How::Replace, Written::All(number)) => {
            let hit = hits.any(b)?;
            let hit = deep(b, hit, vec![shape[0].clone()]);
            chosen(b, hit, number, x)
        }
        (How::Replace, Written::Each(values)) => {
            let last = hits.last(b)?;
            let hit = b.map(Fun::Ge, Domain::Int, &[last.into(), 0i64.into()], DType::Bool)?;
            let from = b.map(Fun::Max, Domain::Int, &[last.into(), 0i64.into()], DType::I64)?;
            let taken = lookup(b, values, 0, from, false);
            let hit = deep(b, hit, vec![shape[0].clone()]);
            chosen(b, hit, taken.into(), x)
        }
        (_, written) => {
            let dtype = b.dtype(x);
            let values = match written {
                Written::Each(values) => Arg::from(b.unsqueeze(values, 0)),
                Written::All(number) => held(number, dtype),
            };
            let hit = deep(b, hits.hits, vec![shape[0].clone(), writes]);
            let neutral = Arg::from(how.neutral(dtype));
            let inner = if is_float(dtype) { b.inner } else { dtype };
            let each = b.map(Fun::Where, domain(dtype), &[hit.into(), values, neutral], inner)?;
            let sum = b.reduce(how.reduction().0, each, &[1], inner)?;
            combined(b, x, sum, None, how, true)
        }
    }
}

/// Positions that may count from the end of `size`.
fn wrapped(b: &mut Builder, positions: ValueId, size: &Size) -> Result<ValueId, Why> {
    let size = Arg::from(Number::Size(size.clone()));
    let later = b.map(Fun::Add, Domain::Int, &[positions.into(), size], DType::I64)?;
    let below = b.map(Fun::Lt, Domain::Int, &[positions.into(), 0i64.into()], DType::Bool)?;
    let args = [below.into(), later.into(), positions.into()];
    Ok(b.map(Fun::Where, Domain::Int, &args, DType::I64)?)
}

/// What `dim` and `index` say, with that dimension of `x` in front; and `source` alike.
fn along(
    args: &mut Args<'_>,
    source: Option<&str>,
) -> Result<(ValueId, usize, ValueId, Option<ValueId>), Why> {
    let (x, at) = (args.tensor("self")?, args.tensor("index")?);
    whole_numbers(args, at)?;
    let rank = args.b.rank(x);
    if rank == 0 || args.b.rank(at) > 1 {
        return unsupported("positions of a scalar, or in more than one dimension");
    }
    let dim = args.dim("dim", 0, rank)?;
    let at = args.b.cast(at, DType::I64);
    let count = product(&args.b.shape(at));
    let at = args.b.reshape(at, vec![count.clone()]);
    let x = args.b.move_dim(x, dim, 0);
    let Some(name) = source else { return Ok((x, dim, at, None)) };
    let source = args.tensor(name)?;
    let mut wanted = args.b.shape(x);
    wanted[0] = count;
    if args.b.rank(source) != rank {
        return Err(Why::Wrong(format!("{} written", show(&args.b.shape(source)))));
    }
    let source = args.b.move_dim(source, dim, 0);
    if !args.b.same_shape(&args.b.shape(source), &wanted) {
        return Err(Why::Wrong(format!("{} written", show(&args.b.shape(source)))));
    }
    let dtype = args.b.dtype(x);
    let source = args.b.cast(source, dtype);
    Ok((x, dim, at, Some(source)))
}

fn index_add(args: &mut Args<'_>) -> Outputs {
    let (x, dim, at, source) = along(args, Some("source"))?;
    let mut source = source.ok_or("nothing is written")?;
    let dtype = args.b.dtype(x);
    if let Some(alpha) = args.maybe_number("alpha")?.filter(|alpha| *alpha != Number::Int(1)) {
        let inner = if is_float(dtype) { args.b.inner } else { dtype };
        source = args.b.map(Fun::Mul, domain(dtype), &[source.into(), alpha.into()], inner)?;
    }
    let value = put(args.b, x, at, Written::Each(source), How::Sum)?;
    one(args.b.move_dim(value, 0, dim))
}

fn index_copy(args: &mut Args<'_>) -> Outputs {
    let (x, dim, at, source) = along(args, Some("source"))?;
    let source = source.ok_or("nothing is written")?;
    let value = put(args.b, x, at, Written::Each(source), How::Replace)?;
    one(args.b.move_dim(value, 0, dim))
}

fn index_fill(args: &mut Args<'_>) -> Outputs {
    let (x, dim, at, _) = along(args, None)?;
    let size = args.b.shape(x)[0].clone();
    let at = wrapped(args.b, at, &size)?;
    let number = args.operand("value")?;
    let number = args.in_type(number, args.b.dtype(x));
    let value = put(args.b, x, at, Written::All(number), How::Replace)?;
    one(args.b.move_dim(value, 0, dim))
}

fn scatter_reduce(args: &mut Args<'_>) -> Outputs {
    let how = How::of(args.text("reduce", "sum")?)?;
    let with_self = args.flag("include_self", true)?;
    scatter(args, how, with_self)
}

/// Each element of `src` at the place that its own position names, along `dim`.
fn scatter(args: &mut Args<'_>, how: How, with_self: bool) -> Outputs {
    let (x, at) = (args.tensor("self")?, args.tensor("index")?);
    whole_numbers(args, at)?;
    let (shape, many) = (args.b.shape(x), args.b.shape(at));
    let dtype = args.b.dtype(x);
    if shape.is_empty() || shape.len() != many.len() {
        return unsupported(format!("{} scattered to {}", show(&many), show(&shape)));
    }
    let dim = args.dim("dim", 0, shape.len())?;
    let mut written = match args.maybe_tensor("src")? {
        Some(src) => Written::Each(src),
        None => Written::All(args.number("value")?.into()),
    };
    if many.iter().any(|size| size.is(0)) {
        return one(x);
    }
    if let Written::Each(src) = &mut written {
        let from = args.b.shape(*src);
        let fits = from.len() == many.len()
            && many.iter().zip(&from).all(|(want, has)| args.b.may_fit(want, has));
        if !fits || args.b.dtype(*src) != dtype {
            return Err(Why::Wrong(format!("{} scattered by {}", show(&from), show(&many))));
        }
        for (d, want) in many.iter().enumerate() {
            *src = args.b.slice(*src, d, Size::default(), 1, want.clone());
        }
    }
    // What lies beyond the positions in other dimensions stays as it is.
    let mut part = x;
    for (d, want) in many.iter().enumerate().filter(|(d, _)| *d != dim) {
        if !args.b.may_fit(want, &shape[d]) {
            return Err(Why::Wrong(format!("{} scattered to {}", show(&many), show(&shape))));
        }
        if !args.b.same(want, &shape[d]) {
            part = args.b.slice(part, d, Size::default(), 1, want.clone());
        }
    }
    let last = shape.len() - 1;
    let b = &mut *args.b;
    let inside = b.move_dim(part, dim, last);
    let at = b.cast(at, DType::I64);
    let at = b.move_dim(at, dim, last);
    let value = rows(b, inside, at, written, dim, how, with_self)?;
    let mut value = b.move_dim(value, last, dim);
    for d in (0..shape.len()).filter(|d| *d != dim) {
        if b.same(&many[d], &shape[d]) {
            continue;
        }
        // The dimensions after this one are those of the part still.
        let mut beyond = x;
        for (later, want) in many.iter().enumerate().skip(d + 1).filter(|(l, _)| *l != dim) {
            if !b.same(want, &shape[later]) {
                beyond = b.slice(beyond, later, Size::default(), 1, want.clone());
            }
        }
        let left = &shape[d] - &many[d];
        let beyond = b.slice(beyond, d, many[d].clone(), 1, left);
        value = b.cat(vec![value, beyond], d);
    }
    one(value)
}

/// The same along the last dimension, of rows that are as many everywhere.
fn rows(
    b: &mut Builder,
    x: ValueId,
    at: ValueId,
    written: Written,
    dim: usize,
    how: How,
    with_self: bool,
) -> Result<ValueId, Why> {
    let (shape, dtype) = (b.shape(x), b.dtype(x));
    let last = shape.len() - 1;
    let (at, written) = at_least_one(b, (at, last), (written, dim));
    let writes = b.shape(at)[last].clone();
    let places = b.positions(&shape[last], last, last + 2);
    let positions = b.unsqueeze(at, last);
    let hits = b.map(Fun::Eq, Domain::Int, &[places.into(), positions.into()], DType::Bool)?;
    let hits = Hits { hits, shape: shape.clone(), writes };
    let turned = |b: &mut Builder, src: ValueId| b.move_dim(src, dim, last);
    match (how, written) {
        (How::Replace, Written::All(number)) => {
            let hit = hits.any(b)?;
            chosen(b, hit, number, x)
        }
        (How::Replace, Written::Each(src)) => {
            let src = turned(b, src);
            let newest = hits.last(b)?;
            let hit = b.map(Fun::Ge, Domain::Int, &[newest.into(), 0i64.into()], DType::Bool)?;
            let from = b.map(Fun::Max, Domain::Int, &[newest.into(), 0i64.into()], DType::I64)?;
            let taken = b.push(Op::Gather { dim: last }, vec![src, from], dtype, shape);
            chosen(b, hit, taken.into(), x)
        }
        (_, written) => {
            let values = match written {
                Written::Each(src) => {
                    let src = turned(b, src);
                    Arg::from(b.unsqueeze(src, last))
                }
                Written::All(number) => held(number, dtype),
            };
            let neutral = Arg::from(how.neutral(dtype));
            let inner = if is_float(dtype) { b.inner } else { dtype };
            let args = [hits.hits.into(), values, neutral];
            let each = b.map(Fun::Where, domain(dtype), &args, inner)?;
            let sum = b.reduce(how.reduction().0, each, &[last + 1], inner)?;
            let counted = how == How::Mean || !with_self;
            let count = if counted { Some(hits.count(b)?) } else { None };
            combined(b, x, sum, count, how, with_self)
        }
    }
}
