//! The same elements elsewhere: views, slices, joins, look-ups; and new ones.

use kiln_proto::graph::{Argument, DType, Dim};

use super::{
    arithmetic::truth,
    builder::{Builder, Known, dim, formula, precision},
    data::Content,
};
use crate::size::Size;

impl Builder {
    pub(super) fn moved(&mut self) -> Option<()> {
        let x = self.operand();
        match self.rng.below(20) {
            0..=3 => self.reshaped(&x),
            4 | 5 => self.permuted(&x),
            6 => self.expanded(&x),
            7 => self.squeezed(&x),
            8 | 9 => self.sliced(&x),
            10 => self.selected(&x),
            11 | 12 => self.joined(&x),
            13 => self.split(&x),
            14 => self.padded(&x),
            15 => self.turned(&x),
            16 | 17 => self.looked_up(&x),
            18 => self.triangle(&x),
            _ => self.made(&x),
        }
    }

    fn unchanged(
        &mut self,
        op: &str,
        x: &Known,
        shape: Vec<Size>,
        rest: Vec<(&str, Argument)>,
    ) -> Option<()> {
        let mut args = vec![("self", Argument::Tensor(x.id))];
        args.extend(rest);
        self.node(op, args, vec![Known { shape, ..x.clone() }])
    }

    fn reshaped(&mut self, x: &Known) -> Option<()> {
        let mut shape = x.shape.clone();
        let at = self.rng.below(shape.len().max(1));
        match self.rng.below(4) {
            0 if shape.len() >= 2 => {
                let at = at.min(shape.len() - 2);
                let merged = &shape[at] * &shape[at + 1];
                shape.splice(at..at + 2, [merged]);
            }
            1 if !shape.is_empty() => {
                let size = shape[at].known()?;
                let factors: Vec<i64> = (1..=size).filter(|f| size % f == 0).collect();
                let factor = *factors.get(self.rng.below(factors.len().max(1)))?;
                shape.splice(at..=at, [Size::from(factor), Size::from(size / factor)]);
            }
            2 => {
                let all = shape.iter().fold(Size::from(1), |n, size| &n * size);
                shape = vec![all];
            }
            _ => shape.insert(at, Size::from(1)),
        }
        let mut sizes: Vec<Option<Dim>> = shape.iter().map(|size| Some(dim(size))).collect();
        // One may be left out where the rest decides it.
        let empty = shape.iter().any(|size| self.least(size) == 0);
        if self.rng.one_in(2) && !sizes.is_empty() && !empty {
            let at = self.rng.below(sizes.len());
            sizes[at] = None;
        }
        let op = *self.rng.pick(&["view.default", "reshape.default"]);
        let name = if op == "view.default" { "size" } else { "shape" };
        self.unchanged(op, x, shape, vec![(name, Argument::Sizes(sizes))])
    }

    fn permuted(&mut self, x: &Known) -> Option<()> {
        let rank = x.shape.len();
        if rank < 2 {
            return None;
        }
        let mut order: Vec<usize> = (0..rank).collect();
        if self.rng.one_in(2) {
            let (a, b) = (self.rng.below(rank), self.rng.below(rank));
            order.swap(a, b);
            let shape = order.iter().map(|dim| x.shape[*dim].clone()).collect();
            let (a, b) = (self.counted(a, rank), self.counted(b, rank));
            let args = vec![("dim0", Argument::Int(a)), ("dim1", Argument::Int(b))];
            return self.unchanged("transpose.int", x, shape, args);
        }
        self.rng.shuffle(&mut order);
        let shape = order.iter().map(|dim| x.shape[*dim].clone()).collect();
        let dims = order.iter().map(|dim| self.counted(*dim, rank)).collect();
        self.unchanged("permute.default", x, shape, vec![("dims", Argument::Ints(dims))])
    }

    fn expanded(&mut self, x: &Known) -> Option<()> {
        let mut shape = x.shape.clone();
        for size in &mut shape {
            if size.is(1) && self.rng.one_in(2) {
                *size = Size::from(self.rng.int(1, 5));
            }
        }
        let sizes = shape.iter().zip(&x.shape);
        let mut sizes: Vec<Option<Dim>> = sizes
            .map(|(new, old)| if new == old && self.rng.one_in(2) { None } else { Some(dim(new)) })
            .collect();
        if self.rng.one_in(2) {
            let new = Size::from(self.rng.int(1, 4));
            sizes.insert(0, Some(dim(&new)));
            shape.insert(0, new);
        }
        self.unchanged("expand.default", x, shape, vec![("size", Argument::Sizes(sizes))])
    }

    fn squeezed(&mut self, x: &Known) -> Option<()> {
        let rank = x.shape.len();
        let mut shape = x.shape.clone();
        if self.rng.one_in(2) {
            let at = self.rng.below(rank + 1);
            shape.insert(at, Size::from(1));
            let given = self.counted(at, rank + 1);
            return self.unchanged(
                "unsqueeze.default",
                x,
                shape,
                vec![("dim", Argument::Int(given))],
            );
        }
        // Another size than one stays; one that is not known to differ is refused.
        let (at, given) = self.dim_of(x)?;
        if shape[at].known().is_none() && self.least(&shape[at]) == 1 {
            return None;
        }
        if shape[at].is(1) {
            shape.remove(at);
        }
        match self.rng.one_in(2) {
            true => self.unchanged("squeeze.dim", x, shape, vec![("dim", Argument::Int(given))]),
            false => {
                self.unchanged("squeeze.dims", x, shape, vec![("dim", Argument::Ints(vec![given]))])
            }
        }
    }

    fn sliced(&mut self, x: &Known) -> Option<()> {
        let (at, given) = self.dim_of(x)?;
        let mut shape = x.shape.clone();
        let least = self.least(&shape[at]);
        let mut args = vec![("dim", Argument::Int(given))];
        match shape[at].known() {
            Some(size) => {
                let start = self.rng.int(0, size);
                let end = self.rng.int(start, size);
                let step = *self.rng.pick(&[1, 1, 1, 2, 3]);
                shape[at] = Size::from((end - start + step - 1) / step);
                let from_end = self.rng.one_in(3) && start < size;
                args.push(("start", Argument::Int(if from_end { start - size } else { start })));
                let end = if end == size && self.rng.one_in(2) { i64::MAX } else { end };
                args.push(("end", Argument::Int(end)));
                args.push(("step", Argument::Int(step)));
            }
            None if self.rng.one_in(2) => {
                let start = self.rng.int(0, least);
                shape[at] = &shape[at] - &Size::from(start);
                args.push(("start", Argument::Int(start)));
                args.push(("end", Argument::Int(i64::MAX)));
            }
            None => {
                let end = self.rng.int(0, least);
                shape[at] = Size::from(end);
                args.push(("start", Argument::Int(0)));
                args.push(("end", Argument::Int(end)));
            }
        }
        self.unchanged("slice.Tensor", x, shape, args)
    }

    fn selected(&mut self, x: &Known) -> Option<()> {
        let (at, given) = self.dim_of(x)?;
        let mut shape = x.shape.clone();
        let least = self.least(&shape[at]);
        if least == 0 {
            return None;
        }
        shape.remove(at);
        let index = self.rng.int(-least, least - 1);
        let args = vec![("dim", Argument::Int(given)), ("index", Argument::Int(index))];
        self.unchanged("select.int", x, shape, args)
    }

    fn joined(&mut self, x: &Known) -> Option<()> {
        let stack = self.rng.one_in(3);
        let rank = x.shape.len();
        if rank == 0 && !stack {
            return None;
        }
        let at = self.rng.below(rank + usize::from(stack));
        let mut parts = vec![x.clone()];
        for _ in 0..self.rng.int(1, 2) {
            let fits = |k: &Known| {
                let same = |i: usize| i == at && !stack || k.shape[i] == x.shape[i];
                k.dtype == x.dtype && k.shape.len() == rank && (0..rank).all(same)
            };
            let found: Vec<Known> = self.known.iter().filter(|k| fits(k)).cloned().collect();
            let mut shape = x.shape.clone();
            if !stack {
                shape[at] = Size::from(self.rng.int(0, 4));
            }
            let part = match (x.is_float(), self.rng.one_in(3)) {
                (true, true) => self.floats_of(x.dtype, shape),
                _ => self.rng.pick(&found).clone(),
            };
            parts.insert(self.rng.below(parts.len() + 1), part);
        }
        let mut shape = x.shape.clone();
        match stack {
            true => shape.insert(at, Size::from(parts.len() as i64)),
            false => {
                shape[at] = parts.iter().fold(Size::default(), |n, part| &n + &part.shape[at]);
            }
        }
        let given = self.counted(at, rank + usize::from(stack));
        let tensors = Argument::Tensors(parts.iter().map(|part| Some(part.id)).collect());
        let args = vec![("tensors", tensors), ("dim", Argument::Int(given))];
        let result = Known {
            shape,
            low: parts.iter().fold(x.low, |low, part| low.min(part.low)),
            high: parts.iter().fold(x.high, |high, part| high.max(part.high)),
            error: parts.iter().fold(0.0, |error: f64, part| error.max(part.error)),
            whole: parts.iter().all(|part| part.whole),
            special: parts.iter().any(|part| part.special),
            ..x.clone()
        };
        self.node(if stack { "stack.default" } else { "cat.default" }, args, vec![result])
    }

    fn split(&mut self, x: &Known) -> Option<()> {
        let (at, given) = self.dim_of(x)?;
        let size = x.shape[at].known().filter(|size| *size > 0)?;
        let part = self.rng.int((size + 3) / 4, size);
        let sizes: Vec<i64> =
            (0..(size + part - 1) / part).map(|i| part.min(size - i * part)).collect();
        let results = sizes.iter().map(|size| {
            let mut shape = x.shape.clone();
            shape[at] = Size::from(*size);
            Known { shape, ..x.clone() }
        });
        let results = results.collect();
        let mut args = vec![("self", Argument::Tensor(x.id))];
        let op = match self.rng.one_in(2) {
            true => {
                args.push(("split_size", Argument::Int(part)));
                "split.Tensor"
            }
            false => {
                args.push(("split_sizes", Argument::Ints(sizes)));
                "split_with_sizes.default"
            }
        };
        args.push(("dim", Argument::Int(given)));
        self.node(op, args, results)
    }

    fn padded(&mut self, x: &Known) -> Option<()> {
        let rank = x.shape.len();
        if rank == 0 || x.dtype == DType::Bool {
            return None;
        }
        let mut shape = x.shape.clone();
        let over = self.rng.int(1, rank.min(2) as i64) as usize;
        let mut pad = Vec::new();
        for size in shape.iter_mut().rev().take(over) {
            let (before, mut after) = (self.rng.int(0, 2), self.rng.int(0, 3));
            // Less than nothing cuts off.
            if self.rng.one_in(6) && self.least(size) > 1 {
                after = -1;
            }
            *size = &*size + &Size::from(before + after);
            pad.extend([before, after]);
        }
        let value = *self.rng.pick(&[0, 0, -1, 2]);
        let args = vec![("pad", Argument::Ints(pad)), ("value", Argument::Float(value as f64))];
        let (low, high) = (x.low.min(value as f64), x.high.max(value as f64));
        let x = Known { low, high, ..x.clone() };
        self.unchanged("constant_pad_nd.default", &x, shape, args)
    }

    fn turned(&mut self, x: &Known) -> Option<()> {
        let (_, given) = self.dim_of(x)?;
        let dims = Argument::Ints(vec![given]);
        if self.rng.one_in(2) {
            return self.unchanged("flip.default", x, x.shape.clone(), vec![("dims", dims)]);
        }
        let shifts = Argument::Ints(vec![self.rng.int(-7, 7)]);
        self.unchanged("roll.default", x, x.shape.clone(), vec![("shifts", shifts), ("dims", dims)])
    }

    /// Positions below `size`.
    fn positions(&mut self, shape: Vec<Size>, size: i64, negative: bool) -> Known {
        let low = if negative { -size } else { 0 };
        self.input(DType::I64, shape, Content::Whole { low, high: size - 1 })
    }

    fn looked_up(&mut self, x: &Known) -> Option<()> {
        let (at, given) = self.dim_of(x)?;
        let rank = x.shape.len();
        let size = self.least(&x.shape[at]);
        if size == 0 {
            return None;
        }
        let count = Size::from(self.rng.int(0, 6));
        match self.rng.below(4) {
            0 => {
                let index = self.positions(vec![count.clone()], size, false);
                let mut shape = x.shape.clone();
                shape[at] = count;
                let args =
                    vec![("dim", Argument::Int(given)), ("index", Argument::Tensor(index.id))];
                self.unchanged("index_select.default", x, shape, args)
            }
            1 => {
                let mut shape = x.shape.clone();
                shape[at] = count;
                if !self.fits(&shape) {
                    return None;
                }
                let index = self.positions(shape.clone(), size, false);
                let args =
                    vec![("dim", Argument::Int(given)), ("index", Argument::Tensor(index.id))];
                self.unchanged("gather.default", x, shape, args)
            }
            2 if rank == 2 => {
                let size = self.least(&x.shape[0]);
                if size == 0 {
                    return None;
                }
                let mut shape = vec![Size::from(self.rng.int(1, 3)), count];
                let index = self.positions(shape.clone(), size, false);
                shape.push(x.shape[1].clone());
                let args = vec![
                    ("weight", Argument::Tensor(x.id)),
                    ("indices", Argument::Tensor(index.id)),
                ];
                self.node("embedding.default", args, vec![Known { shape, ..x.clone() }])
            }
            _ => {
                // One dimension, or two neighbours, whose positions broadcast.
                let second = at + 1 < rank && self.rng.one_in(2);
                let mut indices = vec![None; at];
                let fixed = x.shape[at].known().is_some();
                let column = vec![Size::from(3), Size::from(1)];
                let first = if second { column } else { vec![count.clone()] };
                indices.push(Some(self.positions(first, size, fixed).id));
                let mut shape = x.shape.clone();
                match second {
                    true => {
                        let size = self.least(&x.shape[at + 1]);
                        if size == 0 {
                            return None;
                        }
                        indices.push(Some(self.positions(vec![count.clone()], size, false).id));
                        shape.splice(at..at + 2, [Size::from(3), count]);
                    }
                    false => shape[at] = count,
                }
                self.unchanged(
                    "index.Tensor",
                    x,
                    shape,
                    vec![("indices", Argument::Tensors(indices))],
                )
            }
        }
    }

    fn triangle(&mut self, x: &Known) -> Option<()> {
        if x.shape.len() < 2 {
            return None;
        }
        let op = *self.rng.pick(&["tril.default", "triu.default"]);
        let diagonal = self.rng.int(-2, 2);
        let (low, high) = (x.low.min(0.0), x.high.max(0.0));
        let args = vec![("diagonal", Argument::Int(diagonal))];
        self.unchanged(op, &Known { low, high, ..x.clone() }, x.shape.clone(), args)
    }

    /// `arange`, `full` and their kind.
    fn made(&mut self, x: &Known) -> Option<()> {
        let dtype = *self.rng.pick(&[DType::F32, DType::I64, DType::I64, DType::BF16, DType::I32]);
        let typed = |dtype| ("dtype", Argument::DType(dtype));
        let size = match self.symbols.is_empty() || self.rng.one_in(2) {
            true => Size::from(self.rng.int(1, 9)),
            false => Size::symbol(0),
        };
        let plain = Known { dtype, ..truth(x, Vec::new()) };
        match self.rng.below(4) {
            0 => {
                let end = match size.known() {
                    Some(known) => Argument::Int(known),
                    None => Argument::SymInt(formula(&size)),
                };
                let high = self.greatest(&size) as f64;
                let result = Known { shape: vec![size], high, ..plain };
                self.node("arange.default", vec![("end", end), typed(dtype)], vec![result])
            }
            1 => {
                let (start, step) = (self.rng.int(-3, 3), self.rng.int(1, 3));
                let count = self.rng.int(0, 7);
                let args = vec![
                    ("start", Argument::Int(start)),
                    ("end", Argument::Int(start + count * step)),
                    ("step", Argument::Int(step)),
                    typed(dtype),
                ];
                let (low, high) = (-3.0, 24.0);
                let result = Known { shape: vec![Size::from(count)], low, high, ..plain };
                self.node("arange.start_step", args, vec![result])
            }
            2 => {
                let shape = vec![size, Size::from(self.rng.int(1, 4))];
                let number = self.rng.int(-2, 3);
                let sizes = Argument::Sizes(shape.iter().map(|size| Some(dim(size))).collect());
                let (low, high) = (number as f64, number as f64);
                let args =
                    vec![("size", sizes), ("fill_value", Argument::Int(number)), typed(dtype)];
                self.node("full.default", args, vec![Known { shape, low, high, ..plain }])
            }
            _ => {
                let number = *self.rng.pick(&[0.0, 1.0, -1.0]);
                if x.dtype == DType::Bool || precision(x.dtype).1 < 1.0 {
                    return None;
                }
                let args =
                    vec![("self", Argument::Tensor(x.id)), ("fill_value", Argument::Float(number))];
                let (low, high) = (number, number);
                let plain = Known { special: false, error: 0.0, whole: true, ..x.clone() };
                self.node("full_like.default", args, vec![Known { low, high, ..plain }])
            }
        }
    }
}
