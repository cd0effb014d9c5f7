//! Operations that only move: an index of the result to an index of what is read.
//!
//! Invariant: for every index of the result's shape, the index that is read is
//! inside of the operand's shape, or guarded.

use super::{Lazy, Lowering, flattened, unflattened, without_ones};
use crate::{
    core::{Fun, Node, Number, Op, Value},
    loops::{Domain, Expr, Id, domain_of},
    size::{Atom, Bounds, Size},
};

impl Lowering<'_> {
    /// `read` at the indices that `at` gives for those of `shape`.
    pub(super) fn viewed(&mut self, read: &Lazy, shape: &[Size], at: &[Size]) -> Lazy {
        let at = without_ones(at, &read.shape);
        let bounds = Bounds { symbols: &self.program.symbols, vars: shape };
        let expr = self.loops.exprs.substitute(read.expr, &bounds, &at, &mut |_, _, _| None);
        Lazy { expr, dtype: read.dtype, shape: shape.to_vec() }
    }

    /// `read` broadcast to `shape`, from the right.
    pub(super) fn broadcast(&mut self, read: &Lazy, shape: &[Size]) -> Result<Lazy, String> {
        let wrong = || "shapes do not broadcast".to_owned();
        let new = shape.len().checked_sub(read.shape.len()).ok_or_else(wrong)?;
        let mut at = Vec::with_capacity(read.shape.len());
        for (dim, size) in read.shape.iter().enumerate() {
            at.push(match () {
                () if *size == shape[dim + new] => Size::var(dim + new),
                () if size.is(1) => Size::default(),
                () => return Err(wrong()),
            });
        }
        Ok(self.viewed(read, shape, &at))
    }

    /// `read` under another shape, in the same order.
    pub(super) fn reshaped(&mut self, read: &Lazy, shape: &[Size]) -> Lazy {
        let vars: Vec<Size> = (0..shape.len()).map(Size::var).collect();
        let bounds = Bounds { symbols: &self.program.symbols, vars: shape };
        let flat = flattened(&without_ones(&vars, shape), shape);
        let at = unflattened(&flat, &read.shape, &bounds);
        self.viewed(read, shape, &at)
    }

    pub(super) fn permuted(&mut self, read: &Lazy, order: &[usize]) -> Lazy {
        let shape: Vec<Size> = order.iter().map(|dim| read.shape[*dim].clone()).collect();
        let mut at = vec![Size::default(); order.len()];
        for (place, dim) in order.iter().enumerate() {
            at[*dim] = Size::var(place);
        }
        self.viewed(read, &shape, &at)
    }

    pub(super) fn view_op(&mut self, node: &Node, out: &Value) -> Result<Lazy, String> {
        let read = self.read(node.reads[0])?;
        let shape = &out.shape;
        let mut at: Vec<Size> = (0..read.shape.len()).map(Size::var).collect();
        match &node.op {
            Op::Reshape => return Ok(self.reshaped(&read, shape)),
            Op::Expand => return self.broadcast(&read, shape),
            Op::Permute(order) => return Ok(self.permuted(&read, order)),
            Op::Slice { dim, start, step } => {
                at[*dim] = start + &(&Size::var(*dim) * &Size::from(*step));
            }
            Op::Flip(dims) => {
                for dim in dims {
                    at[*dim] = &(&shape[*dim] - &Size::from(1)) - &Size::var(*dim);
                }
            }
            Op::Roll { dim, shift } => {
                let bounds = Bounds { symbols: &self.program.symbols, vars: shape };
                let size = &shape[*dim];
                if !size.is(0) {
                    // Not negative, whatever the shift is.
                    let back = (size - &shift.mod_in(size, &bounds)).mod_in(size, &bounds);
                    at[*dim] = (&Size::var(*dim) + &back).mod_in(size, &bounds);
                }
            }
            Op::Window { dim, step, dilation } => {
                let within = &Size::var(shape.len() - 1) * &Size::from(*dilation);
                at[*dim] = &(&Size::var(*dim) * &Size::from(*step)) + &within;
            }
            other => return Err(format!("a bug of `native`: {other:?} is no view")),
        }
        Ok(self.viewed(&read, shape, &at))
    }

    /// Several operands, or one and a number, each where a guard says so.
    pub(super) fn joined(&mut self, node: &Node, out: &Value) -> Result<Lazy, String> {
        let shape = &out.shape;
        let expr = match &node.op {
            Op::Cat { dim } => self.cat(node, *dim, shape)?,
            Op::Pad { before, value } => self.padded(node, before, value, out)?,
            other => return Err(format!("a bug of `native`: {other:?} joins nothing")),
        };
        Ok(Lazy { expr, dtype: out.dtype, shape: shape.clone() })
    }

    fn cat(&mut self, node: &Node, dim: usize, shape: &[Size]) -> Result<Id, String> {
        let mut start = Size::default();
        let mut parts = Vec::with_capacity(node.reads.len());
        for read in &node.reads {
            let read = self.read(*read)?;
            let mut at: Vec<Size> = (0..shape.len()).map(Size::var).collect();
            at[dim] = &at[dim] - &start;
            let end = &start + &read.shape[dim];
            if !read.shape[dim].is(0) {
                parts.push((end.clone(), self.viewed(&read, shape, &at).expr));
            }
            start = end;
        }
        let Some((_, mut joined)) = parts.pop() else {
            // Nothing to read at all: no element is ever computed.
            let number = Number::Int(0);
            return Ok(self.number(&number, domain_of(self.program.value(node.writes).dtype)));
        };
        let bounds = Bounds { symbols: &self.program.symbols, vars: shape };
        while let Some((end, part)) = parts.pop() {
            let cond = self.loops.exprs.below(&Size::var(dim), &end, &bounds);
            joined = self.loops.exprs.guard(cond, part, joined);
        }
        Ok(joined)
    }

    fn padded(
        &mut self,
        node: &Node,
        before: &[Size],
        value: &Number,
        out: &Value,
    ) -> Result<Id, String> {
        let read = self.read(node.reads[0])?;
        let value = self.number(value, domain_of(out.dtype));
        let value = self.rounded(value, out.dtype);
        let at: Vec<Size> =
            before.iter().enumerate().map(|(dim, before)| &Size::var(dim) - before).collect();
        let mut padded = self.viewed(&read, &out.shape, &at).expr;
        let bounds = Bounds { symbols: &self.program.symbols, vars: &out.shape };
        let exprs = &mut self.loops.exprs;
        for (dim, before) in before.iter().enumerate() {
            let end = before + &read.shape[dim];
            let cond = exprs.below(&Size::var(dim), &end, &bounds);
            padded = exprs.guard(cond, padded, value);
            let cond = exprs.below(&(before - &Size::from(1)), &Size::var(dim), &bounds);
            padded = exprs.guard(cond, padded, value);
        }
        Ok(padded)
    }

    /// Reads at positions that are read themselves.
    pub(super) fn indexed(&mut self, node: &Node, out: &Value) -> Result<Lazy, String> {
        let read = self.read(node.reads[0])?;
        let shape = &out.shape;
        let at = match &node.op {
            Op::Gather { dim } => {
                let positions = self.read(node.reads[1])?;
                let mut at: Vec<Size> = (0..shape.len()).map(Size::var).collect();
                at[*dim] = self.loops.exprs.as_size(positions.expr);
                at
            }
            Op::Index { dims, wrap } => {
                let mut at = vec![Size::default(); read.shape.len()];
                let mut rank = 0;
                for (dim, positions) in dims.iter().zip(&node.reads[1..]) {
                    let positions = self.read(*positions)?;
                    rank = positions.shape.len();
                    let position = match wrap {
                        true => self.wrapped(positions.expr, &read.shape[*dim]),
                        false => positions.expr,
                    };
                    at[*dim] = self.loops.exprs.as_size(position);
                }
                let others = (0..read.shape.len()).filter(|dim| !dims.contains(dim));
                for (place, dim) in others.enumerate() {
                    at[dim] = Size::var(rank + place);
                }
                at
            }
            other => return Err(format!("a bug of `native`: {other:?} indexes nothing")),
        };
        // The positions of dimensions with one element can only be zero.
        Ok(self.viewed(&read, shape, &at))
    }

    fn wrapped(&mut self, position: Id, size: &Size) -> Id {
        let exprs = &mut self.loops.exprs;
        let index = exprs.as_size(position);
        if !index.any(&|atom| matches!(atom, Atom::Value(_)))
            && index.known().is_none_or(|i| i >= 0)
        {
            return position;
        }
        let zero = exprs.add(Expr::Number(Domain::Int, 0));
        let negative = exprs.add(Expr::Apply(Fun::Lt, Domain::Int, vec![position, zero]));
        let from_end = exprs.add(Expr::Index(&index + size));
        exprs.add(Expr::Apply(Fun::Where, Domain::Int, vec![negative, from_end, position]))
    }
}
