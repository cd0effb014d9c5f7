//! The builder's arrangements of elements.
//!
//! Invariant: an arrangement that changes nothing is its own operand.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Number, Op, ValueId},
        size::Size,
    },
    builder::Builder,
};

impl Builder {
    /// The same elements under another shape, of which the caller knows that it fits.
    pub(super) fn reshape(&mut self, value: ValueId, shape: Vec<Size>) -> ValueId {
        if self.program.value(value).shape == shape {
            return value;
        }
        let dtype = self.dtype(value);
        self.push(Op::Reshape, vec![value], dtype, shape)
    }

    pub(super) fn permute(&mut self, value: ValueId, order: &[usize]) -> ValueId {
        if order.iter().enumerate().all(|(i, dim)| i == *dim) {
            return value;
        }
        let from = self.shape(value);
        let shape = order.iter().map(|dim| from[*dim].clone()).collect();
        let dtype = self.dtype(value);
        self.push(Op::Permute(order.to_vec()), vec![value], dtype, shape)
    }

    /// With dimension `from` moved to `to`.
    pub(super) fn move_dim(&mut self, value: ValueId, from: usize, to: usize) -> ValueId {
        let mut order: Vec<usize> = (0..self.rank(value)).collect();
        let dim = order.remove(from);
        order.insert(to, dim);
        self.permute(value, &order)
    }

    pub(super) fn expand(&mut self, value: ValueId, shape: Vec<Size>) -> ValueId {
        if self.program.value(value).shape == shape {
            return value;
        }
        let dtype = self.dtype(value);
        self.push(Op::Expand, vec![value], dtype, shape)
    }

    /// `count` elements along `dim`, from `start` on, each `step`-th.
    pub(super) fn slice(
        &mut self,
        value: ValueId,
        dim: usize,
        start: Size,
        step: i64,
        count: Size,
    ) -> ValueId {
        let mut shape = self.shape(value);
        if start.is(0) && step == 1 && shape[dim] == count {
            return value;
        }
        shape[dim] = count;
        let dtype = self.dtype(value);
        self.push(Op::Slice { dim, start, step }, vec![value], dtype, shape)
    }

    /// With a dimension of one at `dim`.
    pub(super) fn unsqueeze(&mut self, value: ValueId, dim: usize) -> ValueId {
        let mut shape = self.shape(value);
        shape.insert(dim, Size::from(1));
        self.reshape(value, shape)
    }

    /// Without dimension `dim`, which has one.
    pub(super) fn squeeze(&mut self, value: ValueId, dim: usize) -> ValueId {
        let mut shape = self.shape(value);
        shape.remove(dim);
        self.reshape(value, shape)
    }

    /// One after the other along `dim`; all of one element type.
    pub(super) fn cat(&mut self, values: Vec<ValueId>, dim: usize) -> ValueId {
        if let [only] = values[..] {
            return only;
        }
        let mut shape = self.shape(values[0]);
        for value in &values[1..] {
            shape[dim] = &shape[dim] + &self.program.value(*value).shape[dim];
        }
        let dtype = self.dtype(values[0]);
        self.push(Op::Cat { dim }, values, dtype, shape)
    }

    /// `0, 1, ..` up to `count`, along `dim` of `rank` dimensions.
    pub(super) fn positions(&mut self, count: &Size, dim: usize, rank: usize) -> ValueId {
        let op = Op::Iota { start: Number::Int(0), step: Number::Int(1) };
        let line = self.push(op, vec![], DType::I64, vec![count.clone()]);
        let mut shape = vec![Size::from(1); rank];
        shape[dim] = count.clone();
        self.reshape(line, shape)
    }
}
