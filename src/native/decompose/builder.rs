//! Puts core operations together: types, broadcasting and casts in one place.
//!
//! Invariant: what would change nothing (a cast to the same type, a reshape to
//! the same shape) is not emitted, and the finished program has live nodes only.

use std::collections::HashMap;

use kiln_proto::graph::{self, DType};

use super::{
    super::{
        core::{Domain, Fun, Node, Number, Op, Operand, Program, Range, Reduction, Value, ValueId},
        size::{Bounds, Size},
    },
    Why, complex,
    elementwise::stored,
    promote::{Category, category, is_float, is_supported},
    shapes::{self, Symbols, show},
};

/// An operand of a function: a tensor or a number.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Arg {
    Tensor(ValueId),
    Number(Number),
}

impl From<ValueId> for Arg {
    fn from(value: ValueId) -> Self {
        Self::Tensor(value)
    }
}

impl From<Number> for Arg {
    fn from(number: Number) -> Self {
        Self::Number(number)
    }
}

impl From<f64> for Arg {
    fn from(number: f64) -> Self {
        Self::Number(Number::Float(number))
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Number(Number::Int(number))
    }
}

pub(super) struct Builder {
    pub(super) program: Program,
    /// Index of the graph's node that is being brought to core operations.
    pub(super) origin: usize,
    /// What floats are kept in within that node: `f64` where it is of that, else `f32`.
    pub(super) inner: DType,
    samples: Vec<Vec<i64>>,
}

impl Builder {
    pub(super) fn new(symbols: Vec<Range>) -> Self {
        let samples = shapes::samples(&symbols);
        Self {
            program: Program { symbols, ..Program::default() },
            origin: 0,
            inner: DType::F32,
            samples,
        }
    }

    pub(super) fn dtype(&self, value: ValueId) -> DType {
        self.program.value(value).dtype
    }

    pub(super) fn shape(&self, value: ValueId) -> Vec<Size> {
        self.program.value(value).shape.clone()
    }

    pub(super) fn rank(&self, value: ValueId) -> usize {
        self.program.value(value).shape.len()
    }

    pub(super) fn value(&mut self, dtype: DType, shape: Vec<Size>) -> ValueId {
        self.program.values.push(Value { dtype, shape });
        ValueId(self.program.values.len() - 1)
    }

    pub(super) fn push(
        &mut self,
        op: Op,
        reads: Vec<ValueId>,
        dtype: DType,
        shape: Vec<Size>,
    ) -> ValueId {
        let writes = self.value(dtype, shape);
        self.program.nodes.push(Node { op, reads, writes, origin: self.origin });
        writes
    }

    /// Whether two sizes agree, as far as can be told.
    pub(super) fn same(&self, a: &Size, b: &Size) -> bool {
        if a == b {
            return true;
        }
        let both_known = a.known().is_some() && b.known().is_some();
        let agree = |at: &Vec<i64>| a.value(at).is_some_and(|value| b.value(at) == Some(value));
        !both_known && self.samples.iter().all(agree)
    }

    /// Whether `a <= b` may hold: between symbols only the exporter knows.
    pub(super) fn may_fit(&self, a: &Size, b: &Size) -> bool {
        let fits = |at: &Vec<i64>| match (a.value(at), b.value(at)) {
            (Some(a), Some(b)) => a <= b,
            _ => false,
        };
        self.samples.iter().any(fits)
    }

    /// Whether a call may have none of what there are `size` of.
    pub(super) fn may_be_none(&self, size: &Size) -> bool {
        let bounds = Bounds { symbols: &self.program.symbols, vars: &[] };
        !bounds.is_less(&Size::default(), size)
    }

    pub(super) fn same_shape(&self, a: &[Size], b: &[Size]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.same(a, b))
    }

    /// The shape that both broadcast to.
    pub(super) fn broadcast(&self, a: &[Size], b: &[Size]) -> Result<Vec<Size>, String> {
        let rank = a.len().max(b.len());
        let one = Size::from(1);
        let size = |shape: &[Size], i: usize| {
            (i + shape.len()).checked_sub(rank).map_or(one.clone(), |i| shape[i].clone())
        };
        (0..rank)
            .map(|i| match (size(a, i), size(b, i)) {
                (x, y) if y.is(1) || self.same(&x, &y) => Ok(x),
                (x, y) if x.is(1) => Ok(y),
                _ => Err(format!("shapes {} and {} do not broadcast", show(a), show(b))),
            })
            .collect()
    }

    /// A function, element by element, over operands that broadcast.
    pub(super) fn map(
        &mut self,
        fun: Fun,
        domain: Domain,
        args: &[Arg],
        dtype: DType,
    ) -> Result<ValueId, String> {
        let mut shape = Vec::new();
        let (mut reads, mut operands) = (Vec::new(), Vec::new());
        for arg in args {
            operands.push(match arg {
                Arg::Number(number) => Operand::Number(number.clone()),
                Arg::Tensor(value) => {
                    shape = self.broadcast(&shape, &self.program.value(*value).shape)?;
                    reads.push(*value);
                    Operand::Read(reads.len() - 1)
                }
            });
        }
        Ok(self.push(Op::Map { fun, domain, args: operands }, reads, dtype, shape))
    }

    /// A function in the inner type, not rounded to a shorter one.
    pub(super) fn f(&mut self, fun: Fun, args: &[Arg]) -> Result<ValueId, String> {
        self.map(fun, Domain::Float, args, self.inner)
    }

    /// A test of floats.
    pub(super) fn test(&mut self, fun: Fun, args: &[Arg]) -> Result<ValueId, String> {
        self.map(fun, Domain::Float, args, DType::Bool)
    }

    /// In another element type.
    pub(super) fn cast(&mut self, value: ValueId, dtype: DType) -> ValueId {
        let from = self.dtype(value);
        if from == dtype {
            return value;
        }
        // PyTorch has its shorter floats from `f32` alone: what is `f64` is rounded twice.
        if from == DType::F64 && is_float(dtype) && dtype.bytes() < 4 {
            let single = self.cast(value, DType::F32);
            return self.cast(single, dtype);
        }
        let domain = domain(if is_float(from) { from } else { dtype });
        let domain = match (category(from), category(dtype)) {
            // Whole numbers stay whole: floats do not hold all of them.
            (Category::Int | Category::Bool, _) => Domain::Int,
            _ => domain,
        };
        let shape = self.shape(value);
        let op = Op::Map { fun: Fun::Id, domain, args: vec![Operand::Read(0)] };
        self.push(op, vec![value], dtype, shape)
    }

    /// Narrows the range of symbols so that none of `dims` is of nothing: there PyTorch refuses
    /// the call.
    pub(super) fn never_empty(&mut self, value: ValueId, dims: &[usize]) {
        for dim in dims {
            if let Some(symbol) = self.program.value(value).shape[*dim].as_symbol() {
                let range = &mut self.program.symbols[symbol];
                range.min = range.min.max(1).min(range.max);
            }
        }
    }

    /// Over `dims`, which are not kept.
    pub(super) fn reduce(
        &mut self,
        how: Reduction,
        value: ValueId,
        dims: &[usize],
        dtype: DType,
    ) -> Result<ValueId, Why> {
        let from = self.shape(value);
        let kept = (0..from.len()).filter(|dim| !dims.contains(dim));
        let shape: Vec<Size> = kept.map(|dim| from[dim].clone()).collect();
        if dims.iter().any(|dim| from[*dim].is(0)) {
            let number = match how {
                Reduction::Sum => Number::Int(0),
                Reduction::Prod => Number::Int(1),
                Reduction::Any => Number::Bool(false),
                Reduction::All => Number::Bool(true),
                _ if shape.iter().any(|size| size.is(0)) => Number::Int(0),
                _ => return Err(Why::Wrong("the extreme of no elements".to_owned())),
            };
            return Ok(self.push(Op::Full(stored(number, dtype)), vec![], dtype, shape));
        }
        let mut dims = dims.to_vec();
        dims.sort_unstable();
        if dims.is_empty()
            && matches!(how, Reduction::Sum | Reduction::Prod | Reduction::Max | Reduction::Min)
        {
            return Ok(self.cast(value, dtype));
        }
        Ok(self.push(Op::Reduce { how, dims }, vec![value], dtype, shape))
    }

    /// Over `dims`, kept with size one.
    pub(super) fn reduce_keep(
        &mut self,
        how: Reduction,
        value: ValueId,
        dims: &[usize],
        dtype: DType,
    ) -> Result<ValueId, Why> {
        let mut shape = self.shape(value);
        for dim in dims {
            shape[*dim] = Size::from(1);
        }
        let reduced = self.reduce(how, value, dims, dtype)?;
        Ok(self.reshape(reduced, shape))
    }

    /// `value`, if it is what the exporter declared; under the exporter's sizes
    /// where both are symbolic and agree.
    pub(super) fn checked(
        &mut self,
        value: ValueId,
        declared: &graph::Value,
        symbols: &Symbols<'_>,
    ) -> Result<ValueId, Why> {
        let ty = &declared.ty;
        let pairs = complex::parts(ty.dtype);
        let wanted = pairs.unwrap_or(ty.dtype);
        if !is_supported(wanted) {
            return super::unsupported(format!("it gives {}", ty.dtype));
        }
        let shape: Result<Vec<Size>, String> =
            ty.shape.iter().map(|dim| symbols.size(dim)).collect();
        let mut shape = shape.map_err(Why::Unsupported)?;
        shape.extend(pairs.map(|_| Size::from(2)));
        let Value { dtype, shape: computed } = self.program.value(value);
        shapes::elements(computed)?;
        if *dtype != wanted || !self.same_shape(computed, &shape) {
            return Err(Why::Wrong(format!(
                "declared as {wanted} {}, computes {dtype} {}",
                show(&shape),
                show(computed)
            )));
        }
        Ok(value)
    }

    /// The program without what no output needs.
    pub(super) fn finish(self) -> Program {
        let Program { symbols, values, inputs, nodes, outputs, updates } = self.program;
        let mut live = vec![false; values.len()];
        outputs.iter().for_each(|output| live[output.0] = true);
        for node in nodes.iter().rev() {
            if live[node.writes.0] {
                node.reads.iter().for_each(|read| live[read.0] = true);
            }
        }
        inputs.iter().for_each(|input| live[input.value.0] = true);
        let mut new: HashMap<ValueId, ValueId> = HashMap::new();
        let mut program = Program { symbols, inputs, updates, ..Program::default() };
        for (old, value) in values.into_iter().enumerate().filter(|(old, _)| live[*old]) {
            new.insert(ValueId(old), ValueId(program.values.len()));
            program.values.push(value);
        }
        for input in &mut program.inputs {
            input.value = new[&input.value];
        }
        for mut node in nodes.into_iter().filter(|node| live[node.writes.0]) {
            node.reads.iter_mut().for_each(|read| *read = new[read]);
            node.writes = new[&node.writes];
            program.nodes.push(node);
        }
        program.outputs = outputs.iter().map(|output| new[output]).collect();
        program
    }
}

/// In which arithmetic values of `dtype` are computed.
pub(super) fn domain(dtype: DType) -> Domain {
    match category(dtype) {
        Category::Float => Domain::Float,
        // Sums and products of truth values are those of zeros and ones.
        Category::Int | Category::Bool => Domain::Int,
    }
}
