//! Queries, keys and values without what attention does itself: factors, wider
//! types, other orders of their dimensions.
//!
//! Invariant: an operand's views over its base are the operand, but for its
//! factor and type.

use kiln_proto::graph::DType;

use super::{
    emit::Emit,
    flow::{DEEPEST, Flow, is_float, sides},
};
use crate::{
    core::{Domain, Fun, Op, ValueId},
    size::Size,
};

/// A tensor as views of another.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub(super) base: ValueId,
    pub(super) dtype: DType,
    /// What the base was multiplied with.
    pub(super) factor: f64,
    /// From the base on: each with the shape that it gives.
    views: Vec<(Op, Vec<Size>)>,
    /// The base's own shape.
    shape: Vec<Size>,
    /// Nodes of the graph between the base and the operand.
    pub(super) origins: Vec<usize>,
}

impl Operand {
    /// Looks through `value`, through factors only where they are `scaled` elsewhere.
    pub(super) fn of(flow: &Flow<'_>, value: ValueId, scaled: bool) -> Self {
        let (mut base, mut factor) = (value, 1.0);
        let (mut views, mut origins) = (Vec::new(), Vec::new());
        for _ in 0..DEEPEST {
            let Some((_, node)) = flow.writer(base) else { break };
            let shape = flow.shape(base).to_vec();
            base = match &node.op {
                op @ (Op::Reshape | Op::Permute(_) | Op::Expand | Op::Slice { .. }) => {
                    views.push((op.clone(), shape));
                    node.reads[0]
                }
                Op::Map { fun, domain: Domain::Float, .. } => {
                    let Some((below, by)) = factored(flow, base, *fun, &sides(node), scaled) else {
                        break;
                    };
                    factor *= by;
                    below
                }
                _ => break,
            };
            origins.push(node.origin);
        }
        views.reverse();
        let (dtype, shape) = (flow.dtype(base), flow.shape(base).to_vec());
        Self { base, dtype, factor, views, shape, origins }
    }

    /// The shapes that it has on the way, its own first.
    pub(super) fn shapes(&self) -> impl Iterator<Item = Vec<Size>> {
        let views = self.views.iter().rev().map(|(_, shape)| shape);
        views.chain([&self.shape]).cloned()
    }

    /// Its value in `dtype` and as `four` dimensions; `swapped`: the last two
    /// are the other way round.
    pub(super) fn emit(
        mut self,
        emit: &mut Emit<'_>,
        dtype: DType,
        four: &[Size; 4],
        swapped: bool,
    ) -> ValueId {
        let [b, h, rows, width] = four.clone();
        let own = if swapped { [b, h, width, rows] } else { four.clone() };
        self.undo(|op| matches!(op, Op::Reshape), &own);
        let mut value = self.base;
        for (op, shape) in &self.views {
            value = emit.node(op.clone(), vec![value], self.dtype, shape.clone());
        }
        value = emit.reshaped(value, &own);
        if swapped {
            let order = Op::Permute(vec![0, 1, 3, 2]);
            value = emit.node(order, vec![value], self.dtype, four.to_vec());
        }
        emit.cast(value, dtype)
    }

    /// Drops the last view if it is one of those and comes from that shape.
    fn undo(&mut self, which: fn(&Op) -> bool, from: &[Size]) {
        let before = match self.views.len() {
            0 => return,
            1 => &self.shape,
            count => &self.views[count - 2].1,
        };
        if which(&self.views[self.views.len() - 1].0) && *before == from {
            self.views.pop();
        }
    }
}

/// What is below a factor or a wider type, and the factor.
fn factored(
    flow: &Flow<'_>,
    value: ValueId,
    fun: Fun,
    sides: &[super::flow::Side],
    scaled: bool,
) -> Option<(ValueId, f64)> {
    let (below, by) = match (fun, sides) {
        (Fun::Id, [x]) => (x.tensor()?, 1.0),
        (Fun::Mul, [a, b]) if scaled => match (flow.constant(a), flow.constant(b)) {
            (None, Some(factor)) => (a.tensor()?, factor),
            (Some(factor), None) => (b.tensor()?, factor),
            _ => return None,
        },
        (Fun::Div, [x, by]) if scaled => (x.tensor()?, 1.0 / flow.constant(by)?),
        _ => return None,
    };
    let (from, to) = (flow.dtype(below), flow.dtype(value));
    let widens = from == to || (is_float(from) && to == DType::F32);
    (widens && is_float(from) && flow.shape(below) == flow.shape(value)).then_some((below, by))
}
