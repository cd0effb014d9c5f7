//! A softmax over the last dimension, as `decompose` leaves it.
//!
//! Invariant: what is found is `exp(x - max) / sum`, or that with zero in rows
//! of nothing but minus infinity; nothing else counts as a softmax.

use super::flow::{Flow, Side};
use crate::core::{Fun, Node, Op, Reduction, ValueId};

pub(super) struct Softmax {
    /// What it is of.
    pub(super) of: ValueId,
    /// Rows of nothing but minus infinity are zero.
    pub(super) safe: bool,
}

/// The softmax that `value` is; its nodes are added to `inner`.
pub(super) fn softmax(flow: &Flow<'_>, value: ValueId, inner: &mut Vec<usize>) -> Option<Softmax> {
    if let Some(of) = plain(flow, value, inner) {
        return Some(Softmax { of, safe: false });
    }
    let (index, sides) = flow.map(value, Fun::Where)?;
    let [Side::Tensor(none), zero, Side::Tensor(soft)] = &sides[..] else { return None };
    if flow.constant(zero) != Some(0.0) {
        return None;
    }
    inner.push(index);
    let soft = flow.uncast(*soft, inner);
    let of = plain(flow, soft, inner)?;
    nothing_left(flow, *none, of, inner)?;
    Some(Softmax { of, safe: true })
}

fn plain(flow: &Flow<'_>, value: ValueId, inner: &mut Vec<usize>) -> Option<ValueId> {
    let (divided, sides) = flow.map(value, Fun::Div)?;
    let [Side::Tensor(exp), Side::Tensor(sum)] = sides[..] else { return None };
    let (raised, sides) = flow.map(exp, Fun::Exp)?;
    let [Side::Tensor(below)] = sides[..] else { return None };
    let (taken, sides) = flow.map(below, Fun::Sub)?;
    let [Side::Tensor(x), Side::Tensor(most)] = sides[..] else { return None };
    inner.extend([divided, raised, taken]);
    let summed = kept(flow, sum, Reduction::Sum, inner)?;
    let greatest = kept(flow, most, Reduction::Max, inner)?;
    (summed == exp && greatest == x).then_some(x)
}

/// What `value` is the reduction of, over the last dimension, which is kept.
fn kept(
    flow: &Flow<'_>,
    value: ValueId,
    how: Reduction,
    inner: &mut Vec<usize>,
) -> Option<ValueId> {
    let (shaped, Node { op: Op::Reshape, reads, .. }) = flow.writer(value)? else { return None };
    let (reduced, Node { op: Op::Reduce { how: found, dims }, reads, .. }) =
        flow.writer(reads[0])?
    else {
        return None;
    };
    let (of, to) = (flow.shape(reads[0]), flow.shape(value));
    let last = of.len().checked_sub(1)?;
    inner.extend([shaped, reduced]);
    let same = to.len() == of.len() && to[..last] == of[..last];
    (same && *found == how && *dims == [last]).then_some(reads[0])
}

/// Succeeds if `value` says which rows of `x` are all minus infinity.
fn nothing_left(flow: &Flow<'_>, value: ValueId, x: ValueId, inner: &mut Vec<usize>) -> Option<()> {
    if let Some(most) = lowest(flow, value, inner) {
        return (kept(flow, most, Reduction::Max, inner)? == x).then_some(());
    }
    // None that is not, or all that are.
    let all = match flow.map(value, Fun::Not) {
        Some((index, sides)) => {
            inner.push(index);
            let some = kept(flow, sides[0].tensor()?, Reduction::Any, inner)?;
            let (index, sides) = flow.map(some, Fun::Not)?;
            inner.push(index);
            sides[0].tensor()?
        }
        None => kept(flow, value, Reduction::All, inner)?,
    };
    (lowest(flow, all, inner)? == x).then_some(())
}

/// What is compared with minus infinity.
fn lowest(flow: &Flow<'_>, value: ValueId, inner: &mut Vec<usize>) -> Option<ValueId> {
    let (index, sides) = flow.map(value, Fun::Eq)?;
    let [Side::Tensor(x), limit] = &sides[..] else { return None };
    if flow.constant(limit) != Some(f64::NEG_INFINITY) {
        return None;
    }
    inner.push(index);
    Some(*x)
}
