//! Many to one: sums, extremes, positions, softmax, norms, running sums.

use kiln_proto::graph::{Argument, DType};

use super::{
    arithmetic::truth,
    builder::{Builder, Known, is_float, precision, whole_up_to},
    data::Content,
};
use crate::size::Size;

impl Builder {
    /// Some of `rank` dimensions, ascending, and as arguments have them.
    fn dims(&mut self, rank: usize) -> (Vec<usize>, Vec<i64>) {
        let mut dims: Vec<usize> = (0..rank).collect();
        match self.rng.below(4) {
            // Most often the last one alone.
            0 | 1 => dims = dims.split_off(rank.saturating_sub(1)),
            2 => {
                self.rng.shuffle(&mut dims);
                dims.truncate(self.rng.below(rank.max(1)) + 1);
                dims.sort_unstable();
            }
            _ => {}
        }
        let given = dims.iter().map(|dim| self.counted(*dim, rank)).collect();
        (dims, given)
    }

    /// A dimension, now and then counted from the end.
    pub(super) fn counted(&mut self, dim: usize, rank: usize) -> i64 {
        let dim = dim as i64;
        if self.rng.one_in(3) { dim - rank as i64 } else { dim }
    }

    /// A dimension of `x`, the last one most often.
    pub(super) fn dim_of(&mut self, x: &Known) -> Option<(usize, i64)> {
        let rank = x.shape.len();
        let last = rank.checked_sub(1)?;
        let dim = if self.rng.one_in(2) { last } else { self.rng.below(rank) };
        Some((dim, self.counted(dim, rank)))
    }

    pub(super) fn reduction(&mut self) -> Option<()> {
        let op = *self.rng.pick(&[
            "sum.dim_IntList",
            "sum.dim_IntList",
            "sum.default",
            "mean.dim",
            "amax.default",
            "amin.default",
            "argmax.default",
            "argmin.default",
            "var.correction",
            "prod.dim_int",
            "any.dim",
            "all.dim",
            "any.default",
            "cumsum.default",
            "topk.default",
        ]);
        let x = self.operand();
        let rank = x.shape.len();
        match op {
            "cumsum.default" => return self.running_sum(&x),
            "topk.default" => return self.top(&x),
            _ => {}
        }
        let (mut dims, mut given) = self.dims(rank);
        let one = matches!(
            op,
            "argmax.default" | "argmin.default" | "prod.dim_int" | "any.dim" | "all.dim"
        );
        if op.ends_with(".default") && matches!(op, "sum.default" | "any.default") {
            dims = (0..rank).collect();
        } else if one {
            let (dim, name) = self.dim_of(&x)?;
            (dims, given) = (vec![dim], vec![name]);
        }
        if dims.is_empty() && !op.ends_with("m.default") && op != "any.default" {
            return None;
        }
        let keep = self.rng.one_in(2) && !matches!(op, "sum.default" | "any.default");
        let over: Vec<Size> = dims.iter().map(|dim| x.shape[*dim].clone()).collect();
        let count = self.count(&over) as f64;
        let least = over.iter().map(|size| self.least(size)).product::<i64>();
        let shape = reduced(&x.shape, &dims, keep);
        let mut args = vec![("self", Argument::Tensor(x.id))];
        match (op, one) {
            ("sum.default" | "any.default", _) => {}
            (_, true) => args.push(("dim", Argument::Int(given[0]))),
            _ => args.push(("dim", Argument::Ints(given))),
        }
        let (low, high, error) = match op {
            "any.dim" | "all.dim" | "any.default" => {
                if !x.is_exact() {
                    return None;
                }
                if keep {
                    args.push(("keepdim", Argument::Bool(true)));
                }
                return self.node(op, args, vec![truth(&x, shape)]);
            }
            "argmax.default" | "argmin.default" => {
                if !x.is_exact() || least == 0 || x.dtype == DType::Bool {
                    return None;
                }
                if keep {
                    args.push(("keepdim", Argument::Bool(true)));
                }
                let dtype = DType::I64;
                let result = Known { dtype, ..truth(&x, shape) };
                return self.node(op, args, vec![Known { high: count, ..result }]);
            }
            "amax.default" | "amin.default" if least > 0 && x.dtype != DType::Bool => {
                (x.low, x.high, x.error)
            }
            "sum.dim_IntList" | "sum.default" => {
                let most = x.most() * count;
                (if x.low >= 0.0 { 0.0 } else { -most }, most, x.error * count)
            }
            "mean.dim" if x.is_float() && least > 0 => (x.low, x.high, x.error),
            "var.correction" if x.is_float() && x.most() <= 100.0 && least > 0 => {
                let most = x.most();
                args.push(("correction", Argument::Int(if self.rng.one_in(3) { 0 } else { 1 })));
                // One element less in the divisor at most doubles it.
                let error = 8.0 * most * x.error + count * most * most * 2e-6;
                (0.0, 8.0 * most * most, error)
            }
            "prod.dim_int" if count <= 12.0 && x.most() <= 4.0 && x.dtype != DType::Bool => {
                let most = x.most().max(1.0).powf(count);
                (-most, most, count * most * x.error)
            }
            _ => return None,
        };
        if x.special && op == "var.correction" && least < 2 {
            return None;
        }
        let is_sum = op.starts_with("sum") || op.starts_with("prod");
        let dtype = if is_sum && !x.is_float() { DType::I64 } else { x.dtype };
        let most = low.abs().max(high.abs());
        let selects = op.starts_with("am");
        // A sum of squares in f32 alone would be exact, a product of many is not.
        let exact = selects || (x.whole && is_sum && most <= whole_up_to(dtype));
        let (ulp, _) = precision(dtype);
        let error = match exact || !is_float(dtype) {
            true => error,
            false => error + most * (ulp + (count + 8.0) * 2e-7),
        };
        if keep {
            args.push(("keepdim", Argument::Bool(true)));
        }
        let whole = x.whole && (is_sum || selects);
        let (low, high) = if x.special { (low.min(0.0), high.max(0.0)) } else { (low, high) };
        self.node(op, args, vec![Known { dtype, shape, low, high, error, whole, ..x }])
    }

    fn running_sum(&mut self, x: &Known) -> Option<()> {
        let (dim, given) = self.dim_of(x)?;
        let count = self.greatest(&x.shape[dim]) as f64;
        let most = x.most() * count;
        let dtype = if x.is_float() { x.dtype } else { DType::I64 };
        let (ulp, _) = precision(dtype);
        let exact = x.whole && most <= whole_up_to(dtype);
        let rounding =
            if exact || !is_float(dtype) { 0.0 } else { most * (ulp + (count + 8.0) * 2e-7) };
        let error = x.error * count + rounding;
        let args = vec![("self", Argument::Tensor(x.id)), ("dim", Argument::Int(given))];
        let result = Known { dtype, low: -most, high: most, error, ..x.clone() };
        self.node("cumsum.default", args, vec![result])
    }

    fn top(&mut self, x: &Known) -> Option<()> {
        let (dim, given) = self.dim_of(x)?;
        let k = self.least(&x.shape[dim]).min(5);
        if !x.is_exact() || k == 0 || x.dtype == DType::Bool {
            return None;
        }
        let k = self.rng.int(1, k);
        let args = vec![
            ("self", Argument::Tensor(x.id)),
            ("k", Argument::Int(k)),
            ("dim", Argument::Int(given)),
            ("largest", Argument::Bool(!self.rng.one_in(3))),
        ];
        let mut shape = x.shape.clone();
        let high = self.greatest(&shape[dim]) as f64;
        shape[dim] = Size::from(k);
        let positions = Known { dtype: DType::I64, high, ..truth(x, shape.clone()) };
        self.node("topk.default", args, vec![Known { shape, ..x.clone() }, positions])
    }

    /// Softmax and norms.
    pub(super) fn normalised(&mut self) -> Option<()> {
        let x = self.float_operand()?;
        let (ulp, _) = precision(x.dtype);
        match self.rng.below(5) {
            0 | 1 => {
                let (dim, given) = self.dim_of(&x)?;
                let logarithm = self.rng.one_in(2);
                let count = self.greatest(&x.shape[dim]).max(1) as f64;
                let args = vec![("self", Argument::Tensor(x.id)), ("dim", Argument::Int(given))];
                let most = 2.0 * x.most() + count.ln() + 1.0;
                let near = 2.0 * x.error + 2.0 * x.most() * 4e-7 + count * 2e-7;
                let (op, low, high, error) = match logarithm {
                    true => ("log_softmax.int", -most, 0.0, near + most * (ulp + 1e-6)),
                    false => ("softmax.int", 0.0, 1.0, near + ulp),
                };
                self.node(op, args, vec![Known { low, high, error, whole: false, ..x }])
            }
            2 if x.shape.len() >= 2 => self.group_norm(&x),
            way => self.row_norm(&x, way == 3),
        }
    }

    fn row_norm(&mut self, x: &Known, centred: bool) -> Option<()> {
        let rank = x.shape.len();
        let over = if self.rng.one_in(4) { 2 } else { 1 };
        let rows = rank.checked_sub(over)?;
        let shape = x.shape[rows..].to_vec();
        let fixed: Option<Vec<i64>> = shape.iter().map(Size::known).collect();
        let fixed = fixed.filter(|sizes| !sizes.contains(&0))?;
        // Large, so that rows of equal elements do not blow up what rounding did.
        let eps = *self.rng.pick(&[0.5, 0.25, 0.125]);
        let mut args =
            vec![("input", Argument::Tensor(x.id)), ("normalized_shape", Argument::Ints(fixed))];
        let mut most = 1.0;
        let mut added = 0.0;
        if !self.rng.one_in(4) {
            let weight = self.factor(x.dtype, shape.clone());
            most *= weight.most();
            args.push(("weight", Argument::Tensor(weight.id)));
            if centred && !self.rng.one_in(3) {
                let bias = self.factor(x.dtype, shape.clone());
                added = bias.most();
                args.push(("bias", Argument::Tensor(bias.id)));
            }
        }
        args.push(("eps", Argument::Float(eps)));
        let op = if centred { "layer_norm.default" } else { "rms_norm.default" };
        let result = self.norm_result(x, eps, self.count(&shape) as f64, most, added);
        self.node(op, args, vec![result])
    }

    fn group_norm(&mut self, x: &Known) -> Option<()> {
        let channels = x.shape[1].known().filter(|c| *c > 0)?;
        if x.shape.iter().any(|size| self.least(size) == 0) {
            return None;
        }
        let groups: Vec<i64> = (1..=channels).filter(|g| channels % g == 0).collect();
        let groups = *self.rng.pick(&groups);
        let mut args =
            vec![("input", Argument::Tensor(x.id)), ("num_groups", Argument::Int(groups))];
        let (mut most, mut added) = (1.0, 0.0);
        if self.rng.one_in(2) {
            let shape = vec![Size::from(channels)];
            let (weight, bias) = (self.factor(x.dtype, shape.clone()), self.factor(x.dtype, shape));
            (most, added) = (weight.most(), bias.most());
            args.push(("weight", Argument::Tensor(weight.id)));
            args.push(("bias", Argument::Tensor(bias.id)));
        }
        args.push(("eps", Argument::Float(0.25)));
        let row = self.count(&x.shape[1..]) as f64;
        let result = self.norm_result(x, 0.25, row, most, added);
        self.node("group_norm.default", args, vec![result])
    }

    /// What a norm of rows of `count` gives, times `most`, and `added`.
    fn norm_result(&self, x: &Known, eps: f64, count: f64, most: f64, added: f64) -> Known {
        let (ulp, _) = precision(x.dtype);
        let bound = count.sqrt() * most + added;
        // The slope is at most 1 / sqrt(eps); a variance from sums of squares
        // loses what the mean has.
        let slope = 2.0 / eps.sqrt();
        let squares = x.most() * x.most() * (count + 8.0) * 2e-7 / eps;
        let error = most * (slope * (x.error + x.most() * 1e-6) + count.sqrt() * squares)
            + 2.0 * bound * (ulp + 1e-6);
        Known { low: -bound, high: bound, error, whole: false, ..x.clone() }
    }

    /// A weight or bias, without NaN.
    pub(super) fn factor(&mut self, dtype: DType, shape: Vec<Size>) -> Known {
        self.input(dtype, shape, Content::Floats { low: -1.5, high: 1.5, special: false })
    }
}

/// `shape` without `dims`, or with ones there.
fn reduced(shape: &[Size], dims: &[usize], keep: bool) -> Vec<Size> {
    let sizes =
        shape.iter().enumerate().filter_map(|(dim, size)| match (dims.contains(&dim), keep) {
            (false, _) => Some(size.clone()),
            (true, true) => Some(Size::from(1)),
            (true, false) => None,
        });
    sizes.collect()
}
