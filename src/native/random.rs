//! Random well-typed graphs with inputs and error bounds, for tests that compare
//! compiled kernels with the interpreter.
//!
//! A graph grows step by step; each step picks an operation that fits what is
//! there. Beside its type, every value carries an interval in which it lies and
//! a bound of what rounding can do to it. Where a result may not depend on
//! rounding (a comparison, a floor, a position), only values that are computed
//! exactly are taken.
//!
//! Invariant: the same seed and number of steps give the same graph and inputs,
//! on every machine; and correct code stays within the bounds.

mod arithmetic;
mod builder;
mod data;
mod judge;
mod logic;
mod movement;
mod product;
mod reduce;
mod rng;
mod table;

use std::fmt;

use kiln_proto::graph::{Argument, DType, Dim, Graph, InputKind, Node, TensorType, Value, ValueId};

use crate::interp::Tensor;
pub use judge::Bound;
use rng::Rng;

/// A graph, calls of it, and what its outputs may differ by.
#[derive(Debug, Clone)]
pub struct Random {
    /// What made it.
    pub seed: u64,
    /// As the exporter would write it.
    pub graph: Graph,
    /// Inputs by position, for one or more sizes of its symbols.
    pub cases: Vec<Vec<Tensor<'static>>>,
    /// For each output.
    pub bounds: Vec<Bound>,
}

impl Random {
    /// The graph of that seed with about as many operations as `steps`.
    pub fn new(seed: u64, steps: usize) -> Self {
        let mut builder = builder::Builder::new(seed);
        for _ in 0..steps.max(1) {
            builder.step();
        }
        builder.finish(seed)
    }

    /// The same with outputs that are aliases: of inputs, and of other outputs.
    pub fn with_aliases(seed: u64, steps: usize) -> Self {
        let mut random = Self::new(seed, steps);
        let mut rng = Rng::new(!seed);
        let any = Bound { error: 0.0, low: f64::MIN, high: f64::MAX };
        for _ in 0..rng.int(1, 3) {
            let at = rng.below(random.graph.outputs.len().max(1));
            let again = random.graph.outputs.get(at).copied().zip(random.bounds.get(at).copied());
            let input = random.graph.inputs[rng.below(random.graph.inputs.len())].value;
            let (output, bound) = again.filter(|_| rng.one_in(2)).unwrap_or((input, any));
            random.graph.outputs.push(output);
            random.bounds.push(bound);
        }
        random
    }
}

impl Random {
    /// The same, where some inputs are left with other values: with outputs, with what other
    /// inputs were, and with themselves turned around. What was in some of them is read beside
    /// the new values, a part of it exchanged for another tensor's.
    pub fn with_updates(seed: u64, steps: usize) -> Self {
        let mut random = Self::new(seed, steps);
        let mut rng = Rng::new(seed ^ 0x5bd1);
        let any = Bound { error: 0.0, low: f64::MIN, high: f64::MAX };
        let bounds = random.graph.outputs.iter().copied().zip(random.bounds.iter().copied());
        let inputs = random.graph.inputs.iter().map(|input| (input.value, any));
        let values: Vec<(ValueId, Bound)> = bounds.chain(inputs).collect();
        let mut left = Vec::new();
        for position in 0..random.graph.inputs.len() {
            let input = &random.graph.inputs[position];
            let ty = random.graph.value(input.value).ty.clone();
            if matches!(input.kind, InputKind::Constant(_)) || !is_dense(&ty) || rng.one_in(4) {
                continue;
            }
            let alike = |(value, _): &&(ValueId, Bound)| {
                let own = &random.graph.value(*value).ty;
                own.dtype == ty.dtype && own.shape == ty.shape
            };
            let alike: Vec<(ValueId, Bound)> = values.iter().filter(alike).copied().collect();
            // The input itself is among them.
            let (mut value, bound) = *rng.pick(&alike);
            if !ty.shape.is_empty() && rng.one_in(2) {
                value = random.flipped(value, rng.below(ty.shape.len()) as i64);
            }
            if let (Some(dim), true) = (longest(&ty), ty.dtype != DType::Bool && rng.one_in(2)) {
                let (other, error) = *rng.pick(&alike);
                let input = random.graph.inputs[position].value;
                random.read_beside(input, (other, error), (value, bound), dim, &mut rng);
            }
            left.push((position, value, bound));
        }
        for (position, value, bound) in left {
            random.graph.updates.push(position);
            random.graph.outputs.push(value);
            random.bounds.push(bound);
        }
        random
    }

    /// Gives out what was in `input` with a part of `other` in its place, and the greater of
    /// that and of `new`.
    fn read_beside(
        &mut self,
        input: ValueId,
        (other, of_other): (ValueId, Bound),
        (new, of_new): (ValueId, Bound),
        (dim, size): (usize, u64),
        rng: &mut Rng,
    ) {
        let start = rng.int(0, size as i64 - 1);
        let end = rng.int(start + 1, size as i64);
        let place = [("dim", dim as i64), ("start", start), ("end", end)];
        let place = || place.map(|(name, number)| (name, Argument::Int(number)));
        let tensor = |name, value| (name, Argument::Tensor(value));
        let mut part = self.graph.value(other).ty.clone();
        part.shape[dim] = Dim::Static((end - start) as u64);
        let slice = [&[tensor("self", other)][..], &place()].concat();
        let part = self.node("aten.slice.Tensor", &slice, part);
        let ty = self.graph.value(input).ty.clone();
        let args = [&[tensor("self", input), tensor("src", part)][..], &place()].concat();
        let old = self.node("aten.slice_scatter.default", &args, ty.clone());
        let both = [tensor("self", old), tensor("other", new)];
        let greater = self.node("aten.maximum.default", &both, ty);
        let error = of_other.error.max(of_new.error);
        let any = Bound { error: 0.0, low: f64::MIN, high: f64::MAX };
        self.graph.outputs.extend([old, greater]);
        self.bounds.extend([Bound { error: of_other.error, ..any }, Bound { error, ..any }]);
    }

    fn node(&mut self, op: &str, args: &[(&str, Argument)], ty: TensorType) -> ValueId {
        let output = ValueId(self.graph.values.len());
        let name = format!("left{}", output.0);
        self.graph.values.push(Value { name: name.clone(), ty });
        let args = args.iter().map(|(name, arg)| ((*name).to_owned(), arg.clone())).collect();
        self.graph.nodes.push(Node { name, op: op.to_owned(), args, outputs: vec![output] });
        output
    }

    fn flipped(&mut self, value: ValueId, dim: i64) -> ValueId {
        let ty = self.graph.value(value).ty.clone();
        let args = [("self", Argument::Tensor(value)), ("dims", Argument::Ints(vec![dim]))];
        self.node("aten.flip.default", &args, ty)
    }
}

/// The dimension with most elements, where it has several, and how many.
fn longest(ty: &TensorType) -> Option<(usize, u64)> {
    let sizes = ty.shape.iter().enumerate().filter_map(|(dim, size)| Some((dim, size.known()?)));
    sizes.max_by_key(|(_, size)| *size).filter(|(_, size)| *size > 1)
}

/// Whether a tensor is in row-major order whatever its sizes are, as far as that is easily told.
fn is_dense(ty: &TensorType) -> bool {
    let sizes = ty.shape.iter().map(Dim::known).collect::<Option<Vec<u64>>>();
    let strides = ty.strides.iter().map(Dim::known).collect::<Option<Vec<u64>>>();
    let (Some(sizes), Some(strides)) = (sizes, strides) else { return false };
    let mut wanted = 1;
    sizes.iter().zip(&strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == wanted;
        wanted *= size;
        fits
    })
}

/// One line for each input and node, to read.
impl fmt::Display for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ty = |id: ValueId| {
            let TensorType { dtype, shape, strides, .. } = &self.graph.value(id).ty;
            let text = |dims: &[Dim]| {
                let each = dims.iter().map(|dim| match dim {
                    Dim::Static(size) => size.to_string(),
                    Dim::Symbolic(formula) => formula.clone(),
                });
                each.collect::<Vec<_>>().join(", ")
            };
            format!("v{}: {dtype}[{}] strides [{}]", id.0, text(shape), text(strides))
        };
        writeln!(f, "seed {}, symbols {:?}", self.seed, self.graph.symbols)?;
        for input in &self.graph.inputs {
            let kind = match input.kind {
                InputKind::Constant(_) => "constant",
                _ => "input",
            };
            writeln!(f, "{kind} {}", ty(input.value))?;
        }
        for node in &self.graph.nodes {
            let outputs: Vec<String> = node.outputs.iter().map(|id| ty(*id)).collect();
            writeln!(f, "{} = {} {:?}", outputs.join("; "), node.op, node.args)?;
        }
        for (output, bound) in self.graph.outputs.iter().zip(&self.bounds) {
            writeln!(f, "output v{} {bound:?}", output.0)?;
        }
        writeln!(f, "the last ones are left in inputs {:?}", self.graph.updates)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
