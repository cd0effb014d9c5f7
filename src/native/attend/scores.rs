//! From what a softmax is of, back to the product of queries and keys: the
//! factors and masks on the way.
//!
//! Invariant: what is found is `masks(scale * q k^T)`, the scale below all masks.

use std::cell::Cell;

use super::flow::{Flow, Side, is_float, sides};
use crate::{
    core::{Domain, Fun, Node, Op, ValueId},
    size::Size,
};

/// Most operations that are looked at: sums have two sides.
const MOST_STEPS: usize = 64;

pub(super) struct Scores {
    /// The product's node.
    pub(super) product: usize,
    pub(super) scale: f64,
    /// Innermost first.
    pub(super) layers: Vec<Layer>,
    /// The shapes that the scores have on the way.
    pub(super) shapes: Vec<Vec<Size>>,
    pub(super) inner: Vec<usize>,
}

/// What a mask does.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) what: What,
    /// Of the scores that it masks.
    pub(super) scores: ValueId,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// A tensor is added, or subtracted.
    Add { mask: ValueId, negative: bool },
    /// Some scores become a number.
    Hide(Test),
}

/// Scores stay where `of` is `keep`, and are `with` elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Test {
    pub(super) of: ValueId,
    pub(super) keep: bool,
    pub(super) with: f64,
}

/// The scores that `value` is.
pub(super) fn scores(flow: &Flow<'_>, value: ValueId) -> Option<Scores> {
    within(flow, value, &Cell::new(MOST_STEPS))
}

fn within(flow: &Flow<'_>, value: ValueId, left: &Cell<usize>) -> Option<Scores> {
    left.set(left.get().checked_sub(1)?);
    let (index, node) = flow.writer(value)?;
    let shape = flow.shape(value);
    if shape.len() < 2 || !is_float(flow.dtype(value)) {
        return None;
    }
    let mut found = match &node.op {
        Op::MatMul => Scores {
            product: index,
            scale: 1.0,
            layers: Vec::new(),
            shapes: Vec::new(),
            inner: Vec::new(),
        },
        Op::Reshape => {
            let from = flow.shape(node.reads[0]);
            if from.len() < 2 || from[from.len() - 2..] != shape[shape.len() - 2..] {
                return None;
            }
            within(flow, node.reads[0], left)?
        }
        Op::Map { fun, domain: Domain::Float, .. } => mapped(flow, value, node, *fun, left)?,
        _ => return None,
    };
    found.inner.push(index);
    found.shapes.push(shape.to_vec());
    Some(found)
}

fn mapped(
    flow: &Flow<'_>,
    value: ValueId,
    node: &Node,
    fun: Fun,
    left: &Cell<usize>,
) -> Option<Scores> {
    let sides = sides(node);
    let below = |side: &Side| {
        let below = side.tensor().filter(|below| flow.shape(*below) == flow.shape(value))?;
        within(flow, below, left)
    };
    let layered = |side: &Side, what: What| {
        let mut found = below(side)?;
        found.layers.push(Layer { what, scores: value });
        Some(found)
    };
    let added = |side: &Side, mask: &Side, negative: bool| {
        let mask = mask.tensor().filter(|mask| is_float(flow.dtype(*mask)))?;
        layered(side, What::Add { mask, negative })
    };
    match (fun, &sides[..]) {
        (Fun::Id, [x]) => below(x),
        (Fun::Mul, [a, b]) => match (flow.constant(a), flow.constant(b)) {
            (None, Some(factor)) => scaled(below(a)?, factor),
            (Some(factor), None) => scaled(below(b)?, factor),
            _ => None,
        },
        (Fun::Div, [x, by]) => scaled(below(x)?, 1.0 / flow.constant(by)?),
        (Fun::Add, [a, b]) => added(a, b, false).or_else(|| added(b, a, false)),
        (Fun::Sub, [a, b]) => added(a, b, true),
        (Fun::Where, [Side::Tensor(test), a, b]) if is_test(flow, *test) => {
            let hide = |keep, with| What::Hide(Test { of: *test, keep, with });
            match (flow.constant(a), flow.constant(b)) {
                (None, Some(with)) => layered(a, hide(true, with)),
                (Some(with), None) => layered(b, hide(false, with)),
                _ => None,
            }
        }
        _ => None,
    }
}

fn is_test(flow: &Flow<'_>, value: ValueId) -> bool {
    flow.dtype(value) == kiln_proto::graph::DType::Bool
}

/// A factor above a mask would be the mask's as well.
fn scaled(mut scores: Scores, factor: f64) -> Option<Scores> {
    scores.scale *= factor;
    scores.layers.is_empty().then_some(scores)
}
