//! Matrix products and attention: their operands as strided memory.
//!
//! Invariant: an operand's index is what its expression loads, for every batch,
//! row and column; what loads otherwise is stored first.

use std::collections::BTreeSet;

use kiln_proto::graph::DType;

use super::{Lazy, Lowering, numel, unflattened, without_ones};
use crate::{
    core::{Fun, Node, Op, Reduction, Value, ValueId},
    loops::{
        Attention, COLUMN, Def, Domain, Expr, Groups, Heads, Matrix, Product, ROW, Source,
        domain_of,
    },
    size::{Atom, Bounds, Size},
};

/// Rows up to which a product reads 8 bits as they lie.
const FEW: i64 = 8;
/// Rows of bytes that a tensor map copies begin at multiples of so many.
const ROWS_BEGIN_AT: i64 = 16;
/// Columns that keep a device busy where each is a sum of its own.
const COLUMNS_AT_LEAST: i64 = 16;

impl Lowering<'_> {
    pub(super) fn matmul(&mut self, node: &Node, out: &Value) -> Result<Lazy, String> {
        let [a, b] = node.reads[..] else { return Err("a product of two".to_owned()) };
        let dtype = self.read(a)?.dtype;
        if !domain_of(dtype).is_float() {
            return self.sum_of_products(a, b, out);
        }
        if self.is_row_by_computed(b, out) {
            if self.loaded(a).is_none() {
                self.store_for_reading(a)?;
            }
            return self.sum_of_products(a, b, out);
        }
        let k = self.program.value(a).shape.last().cloned().unwrap_or_default();
        let [a, b] = self.of_eights([a, b])?;
        let rank = out.shape.len();
        let (m, n) = (out.shape[rank - 2].clone(), out.shape[rank - 1].clone());
        let batch = out.shape[..rank - 2].to_vec();
        let b_matrix = self.matrix(b, &batch, rank - 1, rank - 2)?;
        // A batch against one matrix is one product with more rows.
        let product = match b_matrix.offset.has_var(ROW) || batch.iter().all(|size| size.is(1)) {
            false => self.rows_joined(a, &batch, &m)?.map(|a| Product {
                batch: Size::from(1),
                m: &numel(&batch) * &m,
                n: n.clone(),
                k: k.clone(),
                a,
                b: b_matrix.clone(),
                groups: None,
            }),
            true => None,
        };
        let product = match product {
            Some(product) => product,
            None => {
                let a = self.matrix(a, &batch, rank - 2, rank - 1)?;
                Product { batch: numel(&batch), m, n, k, a, b: b_matrix, groups: None }
            }
        };
        let total = numel(&out.shape);
        let temp = self.temp(out.dtype, total, Def::Product(Box::new(product)));
        Ok(self.dense(temp, out.dtype, &out.shape))
    }

    pub(super) fn grouped(&mut self, node: &Node, out: &Value) -> Result<Lazy, String> {
        let [a, b, ends] = node.reads[..] else { return Err("rows, matrices, groups".to_owned()) };
        let of_b = self.program.value(b).shape.clone();
        let [count, k, n] = &of_b[..] else { return Err("a matrix for each group".to_owned()) };
        let b = self.matrix(b, std::slice::from_ref(count), 2, 1)?;
        let mut of_a = self.matrix(a, &[], 0, 1)?;
        if of_a.outer.is(0) && !out.shape[0].is(1) {
            // One row in place of all is no matrix that a tensor map can copy.
            self.store_for_reading(a)?;
            of_a = self.matrix(a, &[], 0, 1)?;
        }
        if self.line(ends).is_none() {
            self.store_for_reading(ends)?;
        }
        let (source, offset, step) = self
            .line(ends)
            .ok_or_else(|| "a bug of `native`: a dense operand is not affine".to_owned())?;
        let groups = Groups { count: count.clone(), ends: source, offset, step };
        let product = Product {
            batch: Size::from(1),
            m: out.shape[0].clone(),
            n: n.clone(),
            k: k.clone(),
            a: of_a,
            b,
            groups: Some(groups),
        };
        let temp = self.temp(out.dtype, numel(&out.shape), Def::Product(Box::new(product)));
        Ok(self.dense(temp, out.dtype, &out.shape))
    }

    /// A value of one dimension in memory: where, the first element, and the step to the next.
    fn line(&self, value: ValueId) -> Option<(Source, Size, Size)> {
        let (source, index, _) = self.loaded(value)?;
        let (step, offset) = index.linear_in(&Atom::Var(0))?;
        let varying = [&step, &offset].into_iter().any(|size| size.any(&is_varying));
        (!varying).then_some((source, offset, step))
    }

    /// The operand as matrices over the flat batch: strides along the dimensions
    /// `outer` (m or n) and `reduced` (k).
    fn matrix(
        &mut self,
        value: ValueId,
        batch: &[Size],
        outer: usize,
        reduced: usize,
    ) -> Result<Matrix, String> {
        if let Some(matrix) = self.affine_matrix(value, batch, outer, reduced) {
            return Ok(matrix);
        }
        // As what it is made of lies, where that is one of the two ways that products read.
        let order = self.memory_order(&self.read(value)?);
        match order.last().is_some_and(|last| [outer, reduced].contains(last)) {
            true => self.store_in_order(value, &order)?,
            false => self.store_for_reading(value)?,
        }
        self.affine_matrix(value, batch, outer, reduced)
            .ok_or_else(|| "a bug of `native`: a dense operand is not affine".to_owned())
    }

    fn affine_matrix(
        &self,
        value: ValueId,
        batch: &[Size],
        outer: usize,
        reduced: usize,
    ) -> Option<Matrix> {
        let (source, index, _) = self.loaded(value)?;
        let (outer, index) = index.linear_in(&Atom::Var(outer))?;
        let (reduced, index) = index.linear_in(&Atom::Var(reduced))?;
        let total = [numel(batch)];
        let bounds = Bounds { symbols: &self.program.symbols, vars: &total };
        let vars = unflattened(&Size::var(ROW), batch, &bounds);
        let strides_vary = [&outer, &reduced].iter().any(|s| s.any(&is_varying));
        let inner = index.any(&|atom| {
            matches!(atom, Atom::Value(_)) || matches!(atom, Atom::Var(v) if *v >= batch.len())
        });
        if strides_vary || inner {
            return None;
        }
        let offset = index.substituted(&bounds, &|atom| match atom {
            Atom::Var(var) => vars.get(*var).cloned(),
            _ => None,
        });
        Some(Matrix { source, offset, outer, reduced })
    }

    /// The operand `a` with its batch and rows as one dimension, where that is affine.
    fn rows_joined(
        &mut self,
        value: ValueId,
        batch: &[Size],
        m: &Size,
    ) -> Result<Option<Matrix>, String> {
        for stored in [false, true] {
            if stored {
                if self.loaded(value).is_some() {
                    return Ok(None);
                }
                self.store_for_reading(value)?;
            }
            let Some((source, index, shape)) = self.loaded(value) else { continue };
            let rank = shape.len();
            let Some((reduced, index)) = index.linear_in(&Atom::Var(rank - 1)) else { continue };
            let rows = [batch, std::slice::from_ref(m)].concat();
            let total = [numel(&rows)];
            let bounds = Bounds { symbols: &self.program.symbols, vars: &total };
            let vars = unflattened(&Size::var(ROW), &rows, &bounds);
            let index = index.substituted(&bounds, &|atom| match atom {
                Atom::Var(var) => vars.get(*var).cloned(),
                _ => None,
            });
            let Some((outer, offset)) = index.linear_in(&Atom::Var(ROW)) else { continue };
            if ![&reduced, &outer, &offset].iter().any(|size| size.any(&is_varying)) {
                return Ok(Some(Matrix { source, offset, outer, reduced }));
            }
        }
        Ok(None)
    }

    /// Where a value is loaded from, if that is all there is to it.
    pub(super) fn loaded(&self, value: ValueId) -> Option<(Source, Size, Vec<Size>)> {
        let lazy = self.values[value.0].as_ref()?;
        match self.loops.exprs.get(lazy.expr) {
            Expr::Load { source, index, dtype } if *dtype == lazy.dtype => {
                Some((*source, index.clone(), lazy.shape.clone()))
            }
            _ => None,
        }
    }

    /// Stores a value densely; whoever reads it later reads that.
    pub(super) fn store_for_reading(&mut self, value: ValueId) -> Result<(), String> {
        let order: Vec<usize> = (0..self.read(value)?.shape.len()).collect();
        self.store_in_order(value, &order)
    }

    /// Stores a value with its dimensions in `order`, outermost first.
    fn store_in_order(&mut self, value: ValueId, order: &[usize]) -> Result<(), String> {
        let lazy = self.read(value)?;
        let own = std::mem::take(&mut self.origins[value.0]);
        let pending = std::mem::replace(&mut self.pending, own);
        self.values[value.0] = Some(self.stored_in_order(&lazy, order));
        self.pending = pending;
        Ok(())
    }

    /// Whether one row meets a matrix that lies nowhere, as of weights with scales, and that is
    /// made of what lies along what is summed: each of its elements is computed where it is
    /// needed, once.
    fn is_row_by_computed(&self, b: ValueId, out: &Value) -> bool {
        let rank = out.shape.len();
        let one = out.shape[..rank - 1].iter().all(|size| size.is(1));
        let Some(lazy) = self.values[b.0].as_ref() else { return false };
        if !one || self.uses[b.0] > 1 || self.loaded(b).is_some() {
            return false;
        }
        let enough = out.shape[rank - 1].known().is_some_and(|columns| columns >= COLUMNS_AT_LEAST);
        enough && self.memory_order(lazy).last() == Some(&(rank - 2))
    }

    /// Floats of 8 bits, which `_scaled_mm` alone multiplies, as they lie: where rows are few,
    /// which takes as long as the matrix is read, or where the target has an instruction. Else as
    /// halves, which have all their numbers.
    fn of_eights(&mut self, [a, b]: [ValueId; 2]) -> Result<[ValueId; 2], String> {
        let Value { dtype, shape } = self.program.value(a);
        let few = shape[0].known().is_some_and(|rows| rows <= FEW);
        let short = matches!(dtype, DType::F8E4M3 | DType::F8E5M2);
        if !short || few || self.multiplies_eights([a, b])? {
            return Ok([a, b]);
        }
        let [a, b] = [a, b].map(|value| self.read(value));
        Ok([self.widened(a?), self.widened(b?)])
    }

    /// Whether tensor cores of the target take them where they lie.
    fn multiplies_eights(&mut self, [a, b]: [ValueId; 2]) -> Result<bool, String> {
        let shape = &self.program.value(a).shape;
        let whole = shape.len() == 2 && shape[1].known().is_some_and(|k| k % ROWS_BEGIN_AT == 0);
        if !self.target.is_hopper_alone() || !whole || !self.lies_along(b, 1, 0) {
            return Ok(false);
        }
        if self.loaded(a).is_none() {
            self.store_for_reading(a)?;
        }
        Ok(self.lies_along(a, 0, 1))
    }

    /// A value that the program has not: `lazy` in halves.
    fn widened(&mut self, lazy: Lazy) -> ValueId {
        self.values.push(Some(Lazy { dtype: DType::F16, ..lazy }));
        self.uses.push(1);
        self.in_memory.push(true);
        self.origins.push(BTreeSet::default());
        ValueId(self.values.len() - 1)
    }

    /// Whether it is read as a matrix dense along `reduced`, whose rows a tensor map can find.
    fn lies_along(&self, value: ValueId, outer: usize, reduced: usize) -> bool {
        let given = |source| !self.loops.constants.contains(&source);
        self.affine_matrix(value, &[], outer, reduced).is_some_and(|matrix| {
            let begins = |size: &Size| size.power_of_two(ROWS_BEGIN_AT) == ROWS_BEGIN_AT;
            let Matrix { source, offset, outer, reduced } = matrix;
            given(source) && reduced.is(1) && !outer.is(0) && begins(&outer) && begins(&offset)
        })
    }

    /// Products element by element, then summed: of whole numbers, and where `b` lies nowhere.
    fn sum_of_products(&mut self, a: ValueId, b: ValueId, out: &Value) -> Result<Lazy, String> {
        let (a, b) = (self.read(a)?, self.read(b)?);
        let rank = out.shape.len();
        let k = a.shape[rank - 1].clone();
        let (rows, domain) = (numel(&out.shape), domain_of(out.dtype));
        let extents = [rows.clone(), k.clone()];
        let bounds = Bounds { symbols: &self.program.symbols, vars: &extents };
        let at = unflattened(&Size::var(ROW), &out.shape, &bounds);
        let (mut at_a, mut at_b) = (at.clone(), at);
        at_a[rank - 1] = Size::var(COLUMN);
        at_b[rank - 2] = Size::var(COLUMN);
        let mut factor = |read: &Lazy, at: &[Size]| {
            let at = without_ones(at, &read.shape);
            let exprs = &mut self.loops.exprs;
            let expr = exprs.substitute(read.expr, &bounds, &at, &mut |_, _, _| None);
            exprs.convert(expr, domain)
        };
        let factors = vec![factor(&a, &at_a), factor(&b, &at_b)];
        let fun = if domain == Domain::Bool { Fun::And } else { Fun::Mul };
        let how = if domain == Domain::Bool { Reduction::Any } else { Reduction::Sum };
        let of = self.loops.exprs.add(Expr::Apply(fun, domain, factors));
        let def = Def::Reduce { how, domain, rows: rows.clone(), columns: k, of };
        let temp = self.temp(out.dtype, rows, def);
        Ok(self.dense(temp, out.dtype, &out.shape))
    }

    pub(super) fn attention(&mut self, node: &Node, out: &Value) -> Result<Lazy, String> {
        let Op::Attention { causal, scale, hidden, empty } = node.op else {
            return Err("a bug of `native`: no attention".to_owned());
        };
        let [q, k, v] = node.reads[..3] else { return Err("three operands".to_owned()) };
        let shape = |value| self.program.value(value).shape.clone();
        let (qs, ks, vs) = (shape(q), shape(k), shape(v));
        let known = |size: &Size, what: &str| {
            size.known().ok_or_else(|| format!("the {what} must be known at compile time"))
        };
        let (heads, groups) =
            (known(&qs[1], "number of heads")?, known(&ks[1], "number of heads")?);
        let (d, e) = (known(&qs[3], "size of a head")?, known(&vs[3], "size of a head")?);
        let (batch, rows, keys) = (qs[0].clone(), qs[2].clone(), ks[2].clone());
        let (k_heads, k_group) = self.kv_heads(k, groups)?;
        let (v_heads, v_group) = self.kv_heads(v, groups)?;
        // Heads that were repeated are read where they were.
        let own = heads / groups.max(1);
        let group = if k_group == v_group { k_group * own } else { own };
        let [k_heads, v_heads] = match k_group == v_group {
            true => [k_heads, v_heads],
            false => [self.heads(k)?, self.heads(v)?],
        };
        let q = self.heads(q)?;
        let mask_type = node.reads.get(3).map(|mask| self.program.value(*mask).dtype);
        let mask = match node.reads.get(3) {
            Some(mask) => {
                let mask = self.read(*mask)?;
                let full = [batch.clone(), qs[1].clone(), rows.clone(), keys.clone()];
                Some(self.broadcast(&mask, &full)?.expr)
            }
            None => None,
        };
        let total = numel(&out.shape);
        // A caller wants it as it is; a model joins the heads of each row next.
        let by_head = self.program.outputs.contains(&node.writes);
        let def = Attention {
            by_head,
            batch: batch.clone(),
            heads,
            group,
            rows: rows.clone(),
            keys,
            d,
            e,
            causal,
            scale,
            q,
            k: k_heads,
            v: v_heads,
            mask,
            hidden,
            empty_zero: empty.is_zero(mask_type),
        };
        let temp = self.temp(out.dtype, total, Def::Attention(Box::new(def)));
        if by_head {
            return Ok(self.dense(temp, out.dtype, &out.shape));
        }
        let dense = [batch, rows, qs[1].clone(), vs[3].clone()];
        let stored = self.dense(temp, out.dtype, &dense);
        Ok(self.permuted(&stored, &[0, 2, 1, 3]))
    }

    fn heads(&mut self, value: ValueId) -> Result<Heads, String> {
        if let Some(heads) = self.affine_heads(value, 1) {
            return Ok(heads);
        }
        // In the order of what it is made of, so that one kernel can do both; but rows
        // must be dense.
        let lazy = self.read(value)?;
        let order = self.memory_order(&lazy);
        if order.last() == Some(&3) {
            self.store_in_order(value, &order)?;
        } else {
            self.store_for_reading(value)?;
        }
        self.affine_heads(value, 1)
            .ok_or_else(|| "a bug of `native`: a dense operand is not affine".to_owned())
    }

    /// Keys or values, of `heads` heads, and how many of these in a row are the same one.
    fn kv_heads(&mut self, value: ValueId, heads: i64) -> Result<(Heads, i64), String> {
        let repeats = (2..=heads).filter(|repeat| heads % repeat == 0).rev();
        for repeat in repeats {
            if let Some(found) = self.affine_heads(value, repeat) {
                return Ok((found, repeat));
            }
        }
        Ok((self.heads(value)?, 1))
    }

    /// The operand's strides, where head `h` is read at `floor(h / repeat)`.
    fn affine_heads(&mut self, value: ValueId, repeat: i64) -> Option<Heads> {
        let (source, index, shape) = self.loaded(value)?;
        let bounds = Bounds { symbols: &self.program.symbols, vars: &shape };
        let head = Size::var(1).div_in(&Size::from(repeat), &bounds);
        let (batch, index) = index.linear_in(&Atom::Var(0))?;
        let (row, index) = index.linear_in(&Atom::Var(2))?;
        let (inner, index) = index.linear_in(&Atom::Var(3))?;
        let (head, offset) = match shape[1].is(1) {
            true => (Size::default(), index),
            false => index.linear_in(head.atoms().next()?)?,
        };
        let strides = [batch, head, row];
        let varying = strides.iter().chain([&inner, &offset]).any(|size| size.any(&is_varying));
        let dense = inner.is(1) || shape[3].is(1);
        (!varying && dense).then_some(Heads { source, offset, strides })
    }
}

fn is_varying(atom: &Atom) -> bool {
    matches!(atom, Atom::Var(_) | Atom::Value(_))
}
