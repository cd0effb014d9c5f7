//! ATen operations to core operations, with PyTorch's semantics.
//!
//! Each operation has a rule, in the table of its family. Rules make promotion,
//! broadcasting and intermediate types explicit: what PyTorch keeps in `f32` inside one
//! operation, in `f64` where it is of that ([`Builder::inner`]), has that type here and is
//! rounded once, at the end.
//!
//! Invariant: the type and shape of every live value are what the exporter
//! declared, and what is wrong or not supported is said with the node's name.

mod activations;
mod args;
mod arrange;
mod attention;
mod builder;
mod casts;
mod choice;
mod complex;
mod compound;
mod convolution;
mod creation;
mod einsum;
mod elementwise;
mod experts;
mod index;
mod joins;
mod loss;
mod norms;
mod order;
mod parts;
mod pooling;
mod products;
mod promote;
mod reductions;
mod resize;
mod scaled;
mod scatter;
mod shapes;
mod softmax;
mod statistics;
mod views;

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, DType, Dim, Graph, Node, Value},
};

use super::{
    archive::invalid,
    core::{Input, Number, Op, Program, Range, ValueId},
    live::live_order,
    size::Size,
};
use args::Args;
use builder::Builder;
pub(crate) use elementwise::stored;
pub(crate) use promote::in_place_type;
use promote::{is_float, is_short, is_supported};
pub(crate) use shapes::{Symbols, dimension};

/// Most operations of one program; the passes after this one are not linear.
pub(crate) const MOST_NODES: usize = 50_000;
/// Elements between an input's first and last: an exporter's strides span a tensor's storage.
const FARTHEST: i64 = 1 << 44;

/// Why a node cannot be brought to core operations.
#[derive(Debug)]
enum Why {
    /// It is no valid node.
    Wrong(String),
    /// It is one that is not handled.
    Unsupported(String),
}

impl From<String> for Why {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

impl From<&str> for Why {
    fn from(why: &str) -> Self {
        Self::Wrong(why.to_owned())
    }
}

fn unsupported<T>(why: impl Into<String>) -> Result<T, Why> {
    Err(Why::Unsupported(why.into()))
}

/// What a rule gives: a tensor for each output, in order; those that the rule
/// cannot give are `None`.
type Outputs = Result<Vec<Option<ValueId>>, Why>;
/// How an operation is computed.
type Rule = fn(&mut Args<'_>) -> Outputs;

/// The rule of an operation with one result.
fn one(value: ValueId) -> Outputs {
    Ok(vec![Some(value)])
}

/// The rule of `op`, a full name without `torch.ops.`.
fn rule(op: &str) -> Option<Rule> {
    if let Some(name) = op.strip_prefix("transformers.") {
        return experts::of_transformers(name);
    }
    let name = op.strip_prefix("aten.")?;
    let families = [
        elementwise::rule,
        choice::rule,
        compound::rule,
        casts::rule,
        activations::rule,
        views::rule,
        parts::rule,
        joins::rule,
        products::rule,
        scaled::rule,
        einsum::rule,
        attention::rule,
        reductions::rule,
        statistics::rule,
        softmax::rule,
        norms::rule,
        index::rule,
        creation::rule,
        order::rule,
        convolution::rule,
        loss::rule,
        scatter::rule,
        pooling::rule,
        resize::rule,
        experts::rule,
    ];
    families.iter().find_map(|family| family(name))
}

/// Whether `op` can be in a program at all.
pub(super) fn is_known(op: &str) -> bool {
    let complex = || op.strip_prefix("aten.").and_then(complex::rule);
    op == CHECK || rule(op).is_some() || complex().is_some()
}

/// A claim about a tensor's type: computes nothing.
const CHECK: &str = "aten._assert_tensor_metadata.default";

/// The live part of `graph` in core operations.
pub fn decompose(graph: &Graph) -> Result<Program, Failure> {
    let run = all(graph)?;
    match run.unsupported.is_empty() {
        true => Ok(run.builder.finish()),
        false => Err(run.refused()),
    }
}

/// The same, where what is not handled gives zeros of the exporter's shape: good for
/// shapes and estimates, never to be run.
pub(super) fn outline(graph: &Graph) -> Result<Program, Failure> {
    Ok(all(graph)?.builder.finish())
}

fn all(graph: &Graph) -> Result<Run<'_>, Failure> {
    let order = live_order(graph);
    if order.len() > MOST_NODES {
        return Err(invalid(format!("{} operations, at most {MOST_NODES}", order.len())));
    }
    let mut run = Run::new(graph);
    run.inputs()?;
    for index in order {
        let node = &graph.nodes[index];
        run.builder.origin = index;
        match run.node(node) {
            Ok(()) => {}
            Err(Why::Wrong(why)) => {
                return Err(invalid(format!("node {:?} ({}): {why}", node.name, node.op)));
            }
            Err(Why::Unsupported(why)) => {
                run.unsupported.push(format!("{} (node {:?}): {why}", node.op, node.name));
                run.pretend(node);
            }
        }
    }
    run.checks()?;
    run.outputs()?;
    Ok(run)
}

struct Run<'a> {
    graph: &'a Graph,
    symbols: Symbols<'a>,
    builder: Builder,
    /// What each of the graph's values became.
    values: Vec<Option<ValueId>>,
    unsupported: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(graph: &'a Graph) -> Self {
        let symbols = Symbols::of(graph);
        let ranges: Vec<Range> = symbols.ranges.clone();
        Self {
            graph,
            builder: Builder::new(ranges),
            symbols,
            values: vec![None; graph.values.len()],
            unsupported: Vec::new(),
        }
    }

    fn inputs(&mut self) -> Result<(), Failure> {
        for (position, input) in self.graph.inputs.iter().enumerate() {
            let graph_value = self.graph.value(input.value);
            let about = |why: String| invalid(format!("input {:?}: {why}", graph_value.name));
            let dtype = graph_value.ty.dtype;
            if !is_supported(dtype) {
                self.unsupported.push(format!("input {:?}, which is {dtype}", graph_value.name));
            }
            let dims = |dims: &[Dim]| -> Result<Vec<Size>, Failure> {
                dims.iter().map(|dim| self.symbols.size(dim).map_err(about)).collect()
            };
            let (shape, strides) = (dims(&graph_value.ty.shape)?, dims(&graph_value.ty.strides)?);
            shapes::elements(&shape).map_err(about)?;
            let span = shape.iter().zip(&strides).try_fold(0i64, |sum, (size, stride)| {
                let (size, stride) = (size.known().unwrap_or(1), stride.known().unwrap_or(0));
                sum.checked_add((size - 1).max(0).checked_mul(stride)?)
            });
            if span.is_none_or(|span| span >= FARTHEST) {
                return Err(about("its strides are those of no tensor".to_owned()));
            }
            let value = self.builder.value(dtype, shape);
            self.builder.program.inputs.push(Input { value, position, strides });
            self.values[input.value.0] = Some(value);
        }
        Ok(())
    }

    fn node(&mut self, node: &'a Node) -> Result<(), Why> {
        let found = match complex::concerns(self.graph, node) {
            true => node.op.strip_prefix("aten.").and_then(complex::rule),
            false => rule(&node.op),
        };
        let Some(rule) = found else {
            return unsupported("it is not known");
        };
        self.without_short(node)?;
        self.builder.inner = self.inner(node);
        let mut args = Args {
            graph: self.graph,
            node,
            symbols: &self.symbols,
            values: &self.values,
            b: &mut self.builder,
        };
        let given = rule(&mut args)?;
        for (position, output) in node.outputs.iter().enumerate() {
            let Some(value) = given.get(position).copied().flatten() else { continue };
            let name = &self.graph.value(*output).name;
            let value = self
                .builder
                .checked(value, self.graph.value(*output), &self.symbols)
                .map_err(|why| match why {
                    Why::Wrong(why) if node.outputs.len() > 1 => {
                        Why::Wrong(format!("{name:?} is {why}"))
                    }
                    why => why,
                })?;
            self.values[output.0] = Some(value);
        }
        Ok(())
    }

    /// The type in which floats are kept within `node`.
    fn inner(&self, node: &Node) -> DType {
        let of = |value: &kiln_proto::graph::ValueId| {
            let own = self.graph.value(*value).ty.dtype;
            complex::parts(own).unwrap_or(own)
        };
        let given: Vec<DType> = node.outputs.iter().map(of).filter(|own| is_float(*own)).collect();
        let read: Vec<DType> = node.tensors().map(|value| of(&value)).collect();
        let decide = if given.is_empty() { read } else { given };
        if decide.contains(&DType::F64) { DType::F64 } else { DType::F32 }
    }

    /// Refuses arithmetic of 8-bit floats, which PyTorch has none of.
    fn without_short(&self, node: &Node) -> Result<(), Why> {
        let of = |value| self.graph.value(value).ty.dtype;
        let mut all = node.tensors().chain(node.outputs.iter().copied()).map(of);
        let name = node.op.strip_prefix("aten.").unwrap_or_default();
        let adds = node.arg("accumulate") == Some(&Argument::Bool(true));
        match all.find(|dtype| is_short(*dtype)) {
            Some(dtype) if adds || !scaled::moves(name) => unsupported(format!(
                "there is no arithmetic in {dtype}: cast it to another type before"
            )),
            _ => Ok(()),
        }
    }

    /// Stands in for a node that is refused, so that those after it are looked at too.
    fn pretend(&mut self, node: &Node) {
        node.outputs.iter().for_each(|output| self.pretend_value(*output));
    }

    fn pretend_value(&mut self, value: kiln_proto::graph::ValueId) {
        let ty = &self.graph.value(value).ty;
        let shape: Option<Vec<Size>> =
            ty.shape.iter().map(|dim| self.symbols.size(dim).ok()).collect();
        let Some(mut shape) = shape else { return };
        let pairs = complex::parts(ty.dtype);
        shape.extend(pairs.map(|_| Size::from(2)));
        let dtype = pairs.unwrap_or(ty.dtype);
        let made = self.builder.push(Op::Full(Number::Int(0)), vec![], dtype, shape);
        self.values[value.0] = Some(made);
    }

    /// What the program asserts of live values.
    fn checks(&self) -> Result<(), Failure> {
        for node in self.graph.nodes.iter().filter(|node| node.op == CHECK) {
            let (Some(Argument::Tensor(value)), Some(Argument::DType(claimed))) =
                (node.arg("a"), node.arg("dtype"))
            else {
                continue;
            };
            let Some(value) = self.values[value.0] else { continue };
            let dtype = self.builder.dtype(value);
            if dtype != complex::parts(*claimed).unwrap_or(*claimed) {
                return Err(invalid(format!(
                    "node {:?}: the program asserts {claimed}, it computes {dtype}",
                    node.name
                )));
            }
        }
        Ok(())
    }

    fn outputs(&mut self) -> Result<(), Failure> {
        for output in &self.graph.outputs {
            let Value { name, ty } = self.graph.value(*output);
            if complex::parts(ty.dtype).is_some() {
                self.unsupported.push(format!("the output {name:?}, which is {}", ty.dtype));
            }
            if self.values[output.0].is_none() {
                self.unsupported.push(format!("the output {name:?}, which is not computed"));
                self.pretend_value(*output);
            }
            let value = self.values[output.0].ok_or_else(|| self.refused())?;
            self.builder.program.outputs.push(value);
        }
        self.builder.program.updates.clone_from(&self.graph.updates);
        Ok(())
    }

    /// All that is not handled, at once.
    fn refused(&self) -> Failure {
        let all = self.unsupported.join("; ");
        let why = format!("Kiln's compilers do not handle: {all}");
        Failure::new(FailureKind::UnsupportedOp, why)
    }
}
