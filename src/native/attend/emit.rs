//! New nodes in the place of an old one.
//!
//! Invariant: what would change nothing is not emitted.

use kiln_proto::graph::DType;

use crate::{
    core::{Domain, Fun, Node, Op, Operand, Program, Value, ValueId},
    size::Size,
};

pub(super) struct Emit<'a> {
    pub(super) program: &'a mut Program,
    /// In order.
    pub(super) nodes: Vec<Node>,
    /// Of the graph: where they come from.
    pub(super) origin: usize,
}

impl Emit<'_> {
    pub(super) fn value(&self, value: ValueId) -> &Value {
        self.program.value(value)
    }

    pub(super) fn node(
        &mut self,
        op: Op,
        reads: Vec<ValueId>,
        dtype: DType,
        shape: Vec<Size>,
    ) -> ValueId {
        self.program.values.push(Value { dtype, shape });
        let writes = ValueId(self.program.values.len() - 1);
        self.write(op, reads, writes);
        writes
    }

    /// A node that writes what was there before.
    pub(super) fn write(&mut self, op: Op, reads: Vec<ValueId>, writes: ValueId) {
        self.nodes.push(Node { op, reads, writes, origin: self.origin });
    }

    pub(super) fn reshaped(&mut self, value: ValueId, shape: &[Size]) -> ValueId {
        let Value { dtype, shape: own } = self.value(value).clone();
        match own == shape {
            true => value,
            false => self.node(Op::Reshape, vec![value], dtype, shape.to_vec()),
        }
    }

    /// A float in another type.
    pub(super) fn cast(&mut self, value: ValueId, dtype: DType) -> ValueId {
        let Value { dtype: own, shape } = self.value(value).clone();
        if own == dtype {
            return value;
        }
        let args = vec![Operand::Read(0)];
        let op = Op::Map { fun: Fun::Id, domain: Domain::Float, args };
        self.node(op, vec![value], dtype, shape)
    }
}
