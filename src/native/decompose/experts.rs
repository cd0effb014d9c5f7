//! Rows that each have a matrix of their own: mixtures of experts.
//!
//! Invariant: rows behind the last group are zero.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Op, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Builder, domain},
    index::{lookup, whole_numbers},
    one,
    products::matmul,
    shapes::show,
    unsupported,
};

/// Rows for each matrix from which on all rows are multiplied by all matrices: fewer take
/// their own matrix each.
const FEW: i64 = 1;

/// Most bytes of the products of all rows by all matrices, where that is also more than
/// [`TIMES`] what is read and given.
const MOST_BYTES: i64 = 1 << 30;
/// See [`MOST_BYTES`].
const TIMES: i64 = 4;

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "_grouped_mm.default" | "grouped_mm.default" => |args| grouped(args, "self", "mat2"),
        _ => return None,
    })
}

/// The same under the name that `transformers` has for it.
pub(super) fn of_transformers(name: &str) -> Option<Rule> {
    (name == "grouped_mm_fallback.default").then_some(|args| grouped(args, "input", "weight"))
}

/// Rows (`[t, k]`, in groups that end at `offs`) by the matrix of their group (`[e, k, n]`).
fn grouped(args: &mut Args<'_>, rows: &str, matrices: &str) -> Outputs {
    let (x, w) = (args.tensor(rows)?, args.tensor(matrices)?);
    let (from, by) = (args.b.shape(x), args.b.shape(w));
    let (Some(offs), [t, k], [e, k2, n]) = (args.maybe_tensor("offs")?, &from[..], &by[..]) else {
        return unsupported(format!("groups of {} by {}", show(&from), show(&by)));
    };
    let offs_shape = args.b.shape(offs);
    if !args.b.same(k, k2) || !args.b.same_shape(&offs_shape, std::slice::from_ref(e)) {
        return Err(Why::Wrong(format!("{} in groups by {}", show(&from), show(&by))));
    }
    whole_numbers(args, offs)?;
    if args.maybe_tensor("bias")?.is_some() {
        return unsupported("a bias for each group");
    }
    let to = args.declared(0)?.0;
    let b = &mut *args.b;
    // A row is in the first group that does not end before it.
    let row = b.positions(t, 0, 2);
    let ends = b.unsqueeze(offs, 0);
    let ended = b.map(Fun::Le, Domain::Int, &[ends.into(), row.into()], DType::Bool)?;
    let ended = b.cast(ended, DType::I64);
    let group = b.reduce(Reduction::Sum, ended, &[1], DType::I64)?;
    let count = Number::Size(e.clone());
    let inside = b.map(Fun::Lt, Domain::Int, &[group.into(), count.into()], DType::Bool)?;
    let last = Number::Size(e - &Size::from(1));
    let group = b.map(Fun::Min, Domain::Int, &[group.into(), last.into()], DType::I64)?;
    let few = match (t.known(), e.known()) {
        (Some(t), Some(e)) => t <= e.saturating_mul(FEW),
        _ => false,
    };
    if !few {
        affordable(b, (x, w), (e, t, n), to)?;
    }
    let value = if few { by_row(b, x, w, group, to)? } else { by_all(b, x, w, group, (t, n), to)? };
    let inside = b.unsqueeze(inside, 1);
    let zero = super::elementwise::held(0.0.into(), to);
    one(b.map(Fun::Where, domain(to), &[inside.into(), value.into(), zero], to)?)
}

/// Refuses rows and matrices whose products take far more memory than themselves: many rows,
/// of which each needs one of many products. What the sizes of a call decide is the call's.
fn affordable(
    b: &Builder,
    (x, w): (ValueId, ValueId),
    (e, t, n): (&Size, &Size, &Size),
    to: DType,
) -> Result<(), Why> {
    let bytes = |shape: &[Size], dtype: DType| {
        let count =
            shape.iter().try_fold(1i64, |all, size| Some(all.saturating_mul(size.known()?)));
        Some(count?.saturating_mul(dtype.bytes() as i64))
    };
    let own = |value: ValueId| bytes(&b.shape(value), b.dtype(value));
    let products = bytes(&[e.clone(), t.clone(), n.clone()], to);
    let result = bytes(&[t.clone(), n.clone()], to);
    let (Some(products), Some(x), Some(w), Some(result)) = (products, own(x), own(w), result)
    else {
        return Ok(());
    };
    let touched = x.saturating_add(w).saturating_add(result);
    if products <= MOST_BYTES || products <= touched.saturating_mul(TIMES) {
        return Ok(());
    }
    let mib = products >> 20;
    unsupported(format!("{t} rows by each of {e} matrices: {mib} MiB of products"))
}

/// Each row with its own matrix: reads no matrix that no row has.
fn by_row(
    b: &mut Builder,
    x: ValueId,
    w: ValueId,
    group: ValueId,
    to: DType,
) -> Result<ValueId, Why> {
    let own = lookup(b, w, 0, group, false);
    let x = b.unsqueeze(x, 1);
    let value = matmul(b, x, own, to)?;
    Ok(b.squeeze(value, 1))
}

/// All rows by all matrices, of which each row takes its own product: every matrix is read
/// once, however many rows have it.
fn by_all(
    b: &mut Builder,
    x: ValueId,
    w: ValueId,
    group: ValueId,
    (t, n): (&Size, &Size),
    to: DType,
) -> Result<ValueId, Why> {
    let x = b.unsqueeze(x, 0);
    let all = matmul(b, x, w, to)?;
    let row = b.positions(t, 0, 1);
    let op = Op::Index { dims: vec![0, 1], wrap: false };
    Ok(b.push(op, vec![all, group, row], to, vec![t.clone(), n.clone()]))
}
