//! One node: its operands checked, its operation computed.
//!
//! Invariant: a program that breaks a rule of `core` is an error that says
//! which, never a panic.

use kiln_proto::{Failure, graph::DType};

use super::{
    Precision, index, invalid, map,
    movement::{self, View, size},
    product, reduce,
    tensor::{Data, Dense, is_float, row_major},
};
use crate::{
    core::{Number, Op},
    size::Size,
};

/// A node with what it reads.
pub(super) struct Step<'a> {
    pub(super) op: &'a Op,
    pub(super) reads: Vec<&'a Dense>,
    pub(super) dtypes: Vec<DType>,
    /// Of the result.
    pub(super) dtype: DType,
    /// Of the result.
    pub(super) shape: &'a [usize],
    pub(super) symbols: &'a [i64],
    pub(super) precision: Precision,
}

/// A number whose symbols are known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known {
    Int(i64),
    Float(f64),
}

impl<'a> Step<'a> {
    /// What the node reads at that position.
    pub(super) fn read(&self, position: usize) -> Result<&'a Dense, Failure> {
        let read = self.reads.get(position).copied();
        read.ok_or_else(|| invalid(format!("there is no operand {position}")))
    }

    pub(super) fn number(&self, number: &Number) -> Result<Known, Failure> {
        Ok(match number {
            Number::Bool(truth) => Known::Int(i64::from(*truth)),
            Number::Int(int) => Known::Int(*int),
            Number::Float(float) => Known::Float(*float),
            Number::Size(size) => Known::Int(self.size(size)?),
        })
    }

    fn size(&self, size: &Size) -> Result<i64, Failure> {
        let symbols = self.symbols;
        let value = size.value(symbols);
        value.ok_or_else(|| invalid(format!("{size} has no value, with symbols {symbols:?}")))
    }

    fn position(&self, size: &Size) -> Result<usize, Failure> {
        let value = self.size(size)?;
        usize::try_from(value).map_err(|_| invalid(format!("{size} is {value}")))
    }

    /// A result of this node's type and shape.
    pub(super) fn result(&self, data: Data) -> Dense {
        Dense { shape: self.shape.to_vec(), data: data.cast(self.dtype, self.precision) }
    }

    fn full(&self, number: Known) -> Dense {
        let count = self.shape.iter().product();
        self.result(match number {
            Known::Int(int) => Data::Int(vec![int; count]),
            Known::Float(float) => Data::Float(vec![float; count]),
        })
    }

    /// Refuses another shape than the program says, before memory is taken for it.
    pub(super) fn expect(&self, shape: &[usize]) -> Result<(), Failure> {
        let expected = self.shape;
        if shape != expected {
            return Err(invalid(format!("gives {shape:?}, the program says {expected:?}")));
        }
        Ok(())
    }

    /// The elements of the first operand that `view` leads to.
    fn view(&self, view: &View) -> Result<Dense, Failure> {
        view.take(&self.read(0)?.data, self.shape)
    }
}

/// Computes the node.
pub(super) fn compute(step: &Step<'_>) -> Result<Dense, Failure> {
    match step.op {
        Op::Map { fun, domain, args } => map::map(step, *fun, *domain, args),
        Op::Reduce { how, dims } => reduce::reduce(step, *how, dims),
        Op::CumSum { dim } => reduce::cumsum(step, *dim),
        Op::TopK { k, largest, positions } => reduce::topk(step, *k, *largest, *positions),
        Op::MatMul => product::matmul(step),
        Op::GroupedMatMul => product::grouped(step),
        Op::Attention { causal, scale, hidden, empty } => {
            product::attention(step, *causal, *scale, *hidden, *empty)
        }
        Op::Gather { dim } => index::gather(step, *dim),
        Op::Index { dims, wrap } => index::index(step, dims, *wrap),
        Op::Iota { start, step: by } => iota(step, start, by),
        Op::Full(number) => Ok(step.full(step.number(number)?)),
        Op::Pad { before, value } => pad(step, before, value),
        Op::Cat { dim } => cat(step, *dim),
        Op::Roll { dim, shift } => movement::roll(step.read(0)?, *dim, step.size(shift)?),
        Op::Reshape => {
            let x = step.read(0)?;
            let count: usize = step.shape.iter().product();
            if x.data.len() != count {
                let (from, to) = (&x.shape, step.shape);
                return Err(invalid(format!("{from:?} has not as many elements as {to:?}")));
            }
            Ok(Dense { shape: step.shape.to_vec(), data: x.data.clone() })
        }
        Op::Expand => step.view(&View::broadcast(&step.read(0)?.shape, step.shape)?),
        Op::Permute(order) => permute(step, order),
        Op::Slice { dim, start, step: by } => slice(step, *dim, start, *by),
        Op::Flip(dims) => flip(step, dims),
        Op::Window { dim, step: by, dilation } => window(step, *dim, *by, *dilation),
    }
}

fn permute(step: &Step<'_>, order: &[usize]) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..x.shape.len()) {
        return Err(invalid(format!("{order:?} is no order of {:?}", x.shape)));
    }
    let strides = View::of(&x.shape).strides;
    let view = View { offset: 0, strides: order.iter().map(|dim| strides[*dim]).collect() };
    let shape: Vec<usize> = order.iter().map(|dim| x.shape[*dim]).collect();
    view.take(&x.data, &shape)
}

fn slice(step: &Step<'_>, dim: usize, start: &Size, by: i64) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let (size, start) = (size(x, dim)?, step.position(start)?);
    let by = usize::try_from(by).ok().filter(|by| *by > 0);
    let by = by.ok_or_else(|| invalid("a slice goes forwards"))?;
    let taken = *step.shape.get(dim).ok_or_else(|| invalid("the result has too few sizes"))?;
    let last = taken.checked_sub(1).and_then(|n| n.checked_mul(by)?.checked_add(start));
    if last.is_some_and(|last| last >= size) {
        let why = format!("{taken} elements from {start} on by {by} are not in {size}");
        return Err(invalid(why));
    }
    let mut shape = x.shape.clone();
    shape[dim] = taken;
    let mut view = View::of(&x.shape);
    view.offset = start as isize * view.strides[dim];
    // The stride of what is alone is never gone.
    view.strides[dim] = if taken > 1 { view.strides[dim] * by as isize } else { 0 };
    view.take(&x.data, &shape)
}

fn flip(step: &Step<'_>, dims: &[usize]) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let mut view = View::of(&x.shape);
    for dim in dims {
        let size = size(x, *dim)?;
        view.offset += view.strides[*dim] * (size as isize - 1);
        view.strides[*dim] = -view.strides[*dim];
    }
    view.take(&x.data, &x.shape)
}

fn window(step: &Step<'_>, dim: usize, by: i64, dilation: i64) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let size = size(x, dim)?;
    let (Some(windows), Some(length)) = (step.shape.get(dim), step.shape.last()) else {
        return Err(invalid("the result has too few sizes"));
    };
    let reach = |count: usize, by: i64| {
        usize::try_from(by).ok().and_then(|by| count.saturating_sub(1).checked_mul(by))
    };
    let last = reach(*windows, by).zip(reach(*length, dilation));
    let inside = last.and_then(|(a, b)| a.checked_add(b)).is_some_and(|last| last < size);
    if !inside && *windows > 0 && *length > 0 {
        let why = format!("{windows} windows of {length} by {by} are not in {size}");
        return Err(invalid(why));
    }
    let mut shape = x.shape.clone();
    shape[dim] = *windows;
    shape.push(*length);
    let mut view = View::of(&x.shape);
    let stride = view.strides[dim];
    // The stride of what is alone is never gone.
    view.strides[dim] = if *windows > 1 { stride * by as isize } else { 0 };
    view.strides.push(if *length > 1 { stride * dilation as isize } else { 0 });
    view.take(&x.data, &shape)
}

fn pad(step: &Step<'_>, before: &[Size], value: &Number) -> Result<Dense, Failure> {
    let mut whole = step.full(step.number(value)?);
    let start: Result<Vec<usize>, _> = before.iter().map(|size| step.position(size)).collect();
    movement::place(step.read(0)?, &mut whole, &start?)?;
    Ok(whole)
}

fn cat(step: &Step<'_>, dim: usize) -> Result<Dense, Failure> {
    let mut whole = step.full(Known::Int(0));
    let mut start = vec![0; step.shape.len()];
    for part in &step.reads {
        movement::place(part, &mut whole, &start)?;
        start[dim] += size(part, dim)?;
    }
    if start.get(dim) != step.shape.get(dim) {
        return Err(invalid(format!("the parts do not fill {:?}", step.shape)));
    }
    Ok(whole)
}

fn iota(step: &Step<'_>, start: &Number, by: &Number) -> Result<Dense, Failure> {
    let [count] = step.shape else { return Err(invalid("counts in one dimension")) };
    let (start, by) = (step.number(start)?, step.number(by)?);
    let data = match (start, by) {
        (Known::Int(start), Known::Int(by)) => {
            let at = |i| start.wrapping_add(by.wrapping_mul(i as i64));
            Data::Int((0..*count).map(at).collect())
        }
        _ => {
            let (start, by) = (start.float(), by.float());
            Data::Float((0..*count).map(|i| start + by * i as f64).collect())
        }
    };
    Ok(step.result(data))
}

impl Known {
    pub(super) fn float(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }

    /// As a tensor of one element.
    pub(super) fn dense(self) -> Dense {
        let data = match self {
            Self::Int(int) => Data::Int(vec![int]),
            Self::Float(float) => Data::Float(vec![float]),
        };
        Dense { shape: Vec::new(), data }
    }
}

impl Dense {
    /// The tensor with `dims` moved to the end, as rows: their count and length.
    pub(super) fn rows(&self, dims: &[usize]) -> Result<(Data, usize, usize), Failure> {
        let ascending = dims.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || dims.last().is_some_and(|dim| *dim >= self.shape.len()) {
            return Err(invalid(format!("{dims:?} are no dimensions of {:?}", self.shape)));
        }
        let kept = (0..self.shape.len()).filter(|dim| !dims.contains(dim));
        let order: Vec<usize> = kept.chain(dims.iter().copied()).collect();
        let shape: Vec<usize> = order.iter().map(|dim| self.shape[*dim]).collect();
        let (outer, inner) = shape.split_at(shape.len() - dims.len());
        let strides = row_major(&self.shape);
        let strides = order.iter().map(|dim| strides[*dim] as isize).collect();
        let rows = View { offset: 0, strides }.take(&self.data, &shape)?;
        Ok((rows.data, outer.iter().product(), inner.iter().product()))
    }

    /// Its elements, which must be floats.
    pub(super) fn floats(&self) -> Result<&[f64], Failure> {
        match &self.data {
            Data::Float(floats) => Ok(floats),
            Data::Int(_) => Err(invalid("floats are wanted")),
        }
    }

    /// Its elements, which must be whole numbers.
    pub(super) fn ints(&self) -> Result<&[i64], Failure> {
        match &self.data {
            Data::Int(ints) => Ok(ints),
            Data::Float(_) => Err(invalid("whole numbers are wanted")),
        }
    }
}

impl Data {
    /// The same numbers as elements of type `dtype`.
    pub(super) fn cast(self, dtype: DType, precision: Precision) -> Self {
        use super::tensor::{float_to_int, round, wrap};
        match self {
            Self::Float(mut floats) if is_float(dtype) => {
                floats.iter_mut().for_each(|x| *x = round(*x, dtype, precision));
                Self::Float(floats)
            }
            Self::Float(floats) => {
                Self::Int(floats.into_iter().map(|x| float_to_int(x, dtype)).collect())
            }
            Self::Int(ints) if is_float(dtype) => {
                Self::Float(ints.into_iter().map(|x| round(x as f64, dtype, precision)).collect())
            }
            Self::Int(mut ints) => {
                ints.iter_mut().for_each(|x| *x = wrap(*x, dtype));
                Self::Int(ints)
            }
        }
    }
}
