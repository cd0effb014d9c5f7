//! Products of matrices, and attention.

use kiln_proto::graph::{Argument, DType};

use super::{
    builder::{Builder, Known, precision, whole_up_to},
    data::Content,
};
use crate::size::Size;

impl Builder {
    pub(super) fn product(&mut self) -> Option<()> {
        let x = self.float_operand()?;
        let rank = x.shape.len();
        match self.rng.below(6) {
            0 if rank >= 1 => self.linear(&x),
            1 if rank == 2 => self.matrices(&x, "mm.default", "mat2"),
            2 if rank == 2 => self.added(&x, "addmm.default", "mat1", "mat2"),
            3 if rank == 3 => self.matrices(&x, "bmm.default", "mat2"),
            4 if rank == 3 => self.added(&x, "baddbmm.default", "batch1", "batch2"),
            5 => self.attention(),
            _ if rank >= 1 => self.matmul(&x),
            _ => None,
        }
    }

    /// The right side of a product: what is there, or a new input.
    fn right(&mut self, x: &Known, shape: Vec<Size>) -> Known {
        let found = self.known.iter().filter(|k| {
            k.dtype == x.dtype && k.shape == shape && k.most() <= 1e3 && k.error <= 0.05 * k.most()
        });
        let found: Vec<Known> = found.cloned().collect();
        match found.is_empty() || self.rng.one_in(2) {
            true => self.floats_of(x.dtype, shape),
            false => self.rng.pick(&found).clone(),
        }
    }

    fn columns(&mut self) -> Size {
        Size::from(*self.rng.pick(&[1, 2, 3, 5, 8, 8, 16, 17, 24]))
    }

    /// What a product over `inner` looks like, with `added` to it.
    fn product_result(
        &self,
        x: &Known,
        y: &Known,
        inner: &Size,
        shape: Vec<Size>,
    ) -> Option<Known> {
        // Zeros in a tile's padding times infinity, and the like, are for the
        // kernels to get right; nearly zero times infinity is nobody's.
        if (x.special && !y.is_exact()) || (y.special && !x.is_exact()) {
            return None;
        }
        let count = self.greatest(inner) as f64;
        let most = count * x.most() * y.most();
        let (ulp, _) = precision(x.dtype);
        let whole = x.whole && y.whole;
        let rounding = match whole && most <= whole_up_to(x.dtype) && x.is_exact() && y.is_exact() {
            true => 0.0,
            false => most * (ulp + (count + 8.0) * 2e-7),
        };
        let error = count * (x.error * y.most() + y.error * x.most()) + rounding;
        let special = x.special || y.special;
        let (low, high) = (-most, most);
        Some(Known { id: x.id, dtype: x.dtype, shape, low, high, error, whole, special })
    }

    fn linear(&mut self, x: &Known) -> Option<()> {
        let (inner, columns) = (x.shape.last()?.clone(), self.columns());
        let weight = self.right(x, vec![columns.clone(), inner.clone()]);
        let mut shape = x.shape.clone();
        *shape.last_mut()? = columns.clone();
        let mut result = self.product_result(x, &weight, &inner, shape)?;
        let mut args =
            vec![("input", Argument::Tensor(x.id)), ("weight", Argument::Tensor(weight.id))];
        if self.rng.one_in(2) {
            let bias = self.factor(x.dtype, vec![columns]);
            args.push(("bias", Argument::Tensor(bias.id)));
            result = plus(result, &bias);
        }
        self.node("linear.default", args, vec![result])
    }

    fn matrices(&mut self, x: &Known, op: &str, name: &str) -> Option<()> {
        let rank = x.shape.len();
        let (mut shape, columns) = (x.shape.clone(), self.columns());
        let inner = shape[rank - 1].clone();
        (shape[rank - 2], shape[rank - 1]) = (inner.clone(), columns.clone());
        let y = self.right(x, shape);
        let mut shape = x.shape.clone();
        shape[rank - 1] = columns;
        let result = self.product_result(x, &y, &inner, shape)?;
        let args = vec![("self", Argument::Tensor(x.id)), (name, Argument::Tensor(y.id))];
        self.node(op, args, vec![result])
    }

    fn added(&mut self, x: &Known, op: &str, left: &str, right: &str) -> Option<()> {
        let rank = x.shape.len();
        let (mut shape, columns) = (x.shape.clone(), self.columns());
        let inner = shape[rank - 1].clone();
        (shape[rank - 2], shape[rank - 1]) = (inner.clone(), columns.clone());
        let y = self.right(x, shape);
        let mut shape = x.shape.clone();
        shape[rank - 1] = columns;
        let start = if rank == 2 { self.rng.below(2) } else { 0 };
        let bias = self.factor(x.dtype, shape[start..].to_vec());
        let mut result = self.product_result(x, &y, &inner, shape)?;
        let mut args = vec![
            ("self", Argument::Tensor(bias.id)),
            (left, Argument::Tensor(x.id)),
            (right, Argument::Tensor(y.id)),
        ];
        if self.rng.one_in(3) {
            args.push(("beta", Argument::Float(0.5)));
            args.push(("alpha", Argument::Float(2.0)));
            result = Known {
                low: 2.0 * result.low,
                high: 2.0 * result.high,
                error: 2.0 * result.error,
                whole: false,
                ..result
            };
        }
        let result = plus(result, &bias);
        self.node(op, args, vec![result])
    }

    fn matmul(&mut self, x: &Known) -> Option<()> {
        let inner = x.shape.last()?.clone();
        let rank = x.shape.len();
        let columns = self.columns();
        // A vector, a matrix, or as many matrices.
        let (shape, result) = match self.rng.below(3) {
            0 => (vec![inner.clone()], x.shape[..rank - 1].to_vec()),
            1 => {
                let mut result = x.shape[..rank - 1].to_vec();
                result.push(columns.clone());
                (vec![inner.clone(), columns], result)
            }
            _ if rank >= 3 => {
                let mut shape = x.shape.clone();
                (shape[rank - 2], shape[rank - 1]) = (inner.clone(), columns.clone());
                if self.rng.one_in(3) {
                    shape[0] = Size::from(1);
                }
                let mut result = x.shape.clone();
                result[rank - 1] = columns;
                (shape, result)
            }
            _ => return None,
        };
        let y = self.right(x, shape);
        let result = self.product_result(x, &y, &inner, result)?;
        let args = vec![("self", Argument::Tensor(x.id)), ("other", Argument::Tensor(y.id))];
        self.node("matmul.default", args, vec![result])
    }

    fn attention(&mut self) -> Option<()> {
        let dtype = self.favourite;
        let fixed = |n: i64| Size::from(n);
        let batch = match self.symbols.is_empty() || self.rng.one_in(2) {
            true => fixed(self.rng.int(1, 2)),
            false => Size::symbol(0),
        };
        let groups = self.rng.int(1, 2);
        let shared = *self.rng.pick(&[1, 1, 2, 3]);
        let heads = groups * shared;
        let rows = match self.symbols.len() {
            2 => Size::symbol(1),
            _ => fixed(*self.rng.pick(&[1, 3, 7, 17, 20])),
        };
        let causal = self.rng.one_in(3);
        let keys = match causal || self.rng.one_in(2) {
            true => rows.clone(),
            false => fixed(*self.rng.pick(&[1, 5, 16, 19])),
        };
        let size = fixed(*self.rng.pick(&[4, 8, 16, 24]));
        let wide = if self.rng.one_in(4) { fixed(8) } else { size.clone() };
        let calm = Content::Floats { low: -2.0, high: 2.0, special: false };
        let shape =
            |h: i64, n: &Size, d: &Size| vec![batch.clone(), fixed(h), n.clone(), d.clone()];
        let q = shape(heads, &rows, &size);
        if !self.fits(&q) || !self.fits(&shape(heads, &rows, &keys)) {
            return None;
        }
        let result_shape = shape(heads, &rows, &wide);
        let q = self.input(dtype, q, calm.clone());
        let k = self.input(dtype, shape(groups, &keys, &size), calm.clone());
        let v = self.input(dtype, shape(groups, &keys, &wide), calm.clone());
        let mut args = vec![
            ("query", Argument::Tensor(q.id)),
            ("key", Argument::Tensor(k.id)),
            ("value", Argument::Tensor(v.id)),
        ];
        let mut most = 4.0 * self.greatest(&size) as f64;
        if !causal && self.rng.one_in(2) {
            let lead = if self.rng.one_in(2) { batch } else { fixed(1) };
            let heads = if self.rng.one_in(2) { fixed(heads) } else { fixed(1) };
            let shape = vec![lead, heads, rows, keys];
            let mask = match self.rng.one_in(2) {
                true => self.input(DType::Bool, shape, Content::Whole { low: 0, high: 1 }),
                false => self.input(dtype, shape, calm),
            };
            most += 2.0;
            args.push(("attn_mask", Argument::Tensor(mask.id)));
        }
        if causal {
            args.push(("is_causal", Argument::Bool(true)));
        }
        if self.rng.one_in(2) {
            args.push(("scale", Argument::Float(0.25)));
        }
        if shared > 1 {
            args.push(("enable_gqa", Argument::Bool(true)));
        }
        let (ulp, _) = precision(dtype);
        // Products are rounded to the type in decomposed forms, weights in fused ones.
        let error = v.most() * (2.0 * most * (ulp + 1e-6) + 2.0 * ulp);
        let (low, high) = (v.low, v.high);
        let result =
            Known { shape: result_shape, low: low.min(0.0), high, error, whole: false, ..v };
        self.node("scaled_dot_product_attention.default", args, vec![result])
    }
}

/// With a bias.
fn plus(x: Known, bias: &Known) -> Known {
    let (ulp, _) = precision(x.dtype);
    let (low, high) = (x.low + bias.low, x.high + bias.high);
    let most = x.most() + bias.most();
    let error = x.error + bias.error + most * (2.0 * ulp + 1e-6);
    Known { low, high, error, whole: false, special: x.special || bias.special, ..x }
}
