//! A graph as text that another process can rebuild it from: what a piece's compiler
//! in Python is given, and what its key covers.
//!
//! ```text
//! {"format": 1,
//!  "symbols": [{"name": "s0", "min": 2, "max": 64}],
//!  "inputs":  [{"kind": "user", "dtype": "f32", "shape": ["s0", 64], "strides": [64, 1]}],
//!  "nodes":   [{"op": "aten.add.Tensor", "args": [["self", {"tensor": 0}], ...], "outputs": 1}],
//!  "outputs": [{"value": 1, "dtype": "f32", "shape": ["s0", 64]}]}
//! ```
//!
//! Values are numbered: inputs first, then what nodes give, in the order of the key.
//! The data of constants is beside it, one after the other.
//!
//! Invariant: it follows from what the graph computes alone. Names of values, nodes
//! and symbols, devices, dead nodes and the exporter's order leave no trace, so equal
//! pieces of two models are equal bytes; all that a compiler is told is in them.

use std::collections::HashMap;

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, DType, Dim, Graph, InputKind, Node, SymInt, ValueId},
};
use serde::Serialize;

use crate::{decompose::is_known, live::live_order};

/// Of the format above: another one is another key.
const FORMAT: u32 = 1;

/// A graph as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portable {
    /// JSON, as above.
    pub graph: Vec<u8>,
    /// Data of the constant inputs, in the order of the inputs.
    pub constants: Vec<u8>,
}

/// Writes `graph`. An argument that no form has is refused: it would be lost.
pub fn portable(graph: &Graph) -> Result<Portable, Failure> {
    if let Some(input) = graph.updates.first() {
        let name = &graph.value(graph.inputs[*input].value).name;
        let why =
            format!("a program that changes its input {name:?} runs by Kiln's own code alone");
        return Err(Failure::new(FailureKind::UnsupportedOp, why));
    }
    let symbols = Renamed::of(graph);
    let mut numbers: HashMap<ValueId, usize> = HashMap::new();
    let mut constants = Vec::new();
    let inputs = graph.inputs.iter().enumerate().map(|(position, input)| {
        numbers.insert(input.value, position);
        let ty = &graph.value(input.value).ty;
        let (kind, bytes) = match &input.kind {
            InputKind::Parameter => ("parameter", None),
            InputKind::Buffer => ("buffer", None),
            InputKind::User => ("user", None),
            InputKind::Constant(constant) => {
                constants.extend_from_slice(&constant.data);
                ("constant", Some(constant.data.len()))
            }
        };
        let (shape, strides) = (symbols.sizes(&ty.shape), symbols.sizes(&ty.strides));
        Input { kind, dtype: ty.dtype, shape, strides, bytes }
    });
    let inputs: Vec<Input> = inputs.collect();
    let mut next = inputs.len();
    let mut nodes = Vec::new();
    for index in live_order(graph) {
        let node = &graph.nodes[index];
        let mut args = Vec::with_capacity(node.args.len());
        for (name, argument) in given(node) {
            let argument = arg(argument, &numbers, &symbols).ok_or_else(|| {
                let Node { name: node, op, .. } = node;
                let why = format!("argument {name:?} of {op} (node {node:?}) cannot be written");
                Failure::new(FailureKind::UnsupportedOp, why)
            })?;
            args.push((name.as_str(), argument));
        }
        for output in &node.outputs {
            numbers.insert(*output, next);
            next += 1;
        }
        nodes.push(Operation { op: &node.op, args, outputs: node.outputs.len() });
    }
    let outputs = graph.outputs.iter().map(|output| {
        let ty = &graph.value(*output).ty;
        Output { value: numbers[output], dtype: ty.dtype, shape: symbols.sizes(&ty.shape) }
    });
    let written = Written {
        format: FORMAT,
        symbols: symbols.ranges(graph),
        inputs,
        nodes,
        outputs: outputs.collect(),
    };
    let graph = serde_json::to_vec(&written)
        .map_err(|e| Failure::new(FailureKind::Crashed, format!("write a graph: {e}")))?;
    Ok(Portable { graph, constants })
}

/// The arguments by name. Of an operation with a rule what is absent is as good as not
/// given; of any other only its schema knows.
fn given(node: &Node) -> Vec<&(String, Argument)> {
    let known = is_known(&node.op);
    let args = node.args.iter().filter(|(_, argument)| !known || *argument != Argument::None);
    let mut args: Vec<_> = args.collect();
    args.sort_by(|a, b| a.0.cmp(&b.0));
    args
}

#[derive(Serialize)]
struct Written<'g> {
    format: u32,
    symbols: Vec<Range>,
    inputs: Vec<Input>,
    nodes: Vec<Operation<'g>>,
    outputs: Vec<Output>,
}

#[derive(Serialize)]
struct Range {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<i64>,
}

#[derive(Serialize)]
struct Input {
    kind: &'static str,
    dtype: DType,
    shape: Vec<Number>,
    strides: Vec<Number>,
    /// Of its data, which is baked in.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
}

#[derive(Serialize)]
struct Operation<'g> {
    op: &'g str,
    args: Vec<(&'g str, Arg)>,
    /// How many tensors it gives.
    outputs: usize,
}

#[derive(Serialize)]
struct Output {
    value: usize,
    dtype: DType,
    shape: Vec<Number>,
}

/// A size, or a formula over the symbols.
#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Known(i64),
    Formula(String),
}

/// [`Argument`], with values by number. Numbers that JSON cannot have are text.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Arg {
    Tensor(usize),
    None,
    Bool(bool),
    Int(Number),
    Float(String),
    Ints(Vec<Number>),
    Floats(Vec<String>),
    Bools(Vec<bool>),
    String(String),
    Tensors(Vec<Option<usize>>),
    #[serde(rename = "dtype")]
    DType(DType),
    Device,
    Layout(i64),
}

/// `None`: it is of a form that is not known here.
fn arg(
    argument: &Argument,
    numbers: &HashMap<ValueId, usize>,
    symbols: &Renamed<'_>,
) -> Option<Arg> {
    let int = |int: &SymInt| match int {
        SymInt::Known(known) => Number::Known(*known),
        SymInt::Symbolic(formula) => Number::Formula(symbols.formula(formula)),
    };
    // As Rust prints it, the shortest decimal that reads back as the same number.
    let float = |float: &f64| format!("{float:?}");
    Some(match argument {
        Argument::Tensor(value) => Arg::Tensor(*numbers.get(value)?),
        Argument::None => Arg::None,
        Argument::Bool(switch) => Arg::Bool(*switch),
        Argument::Int(known) => Arg::Int(Number::Known(*known)),
        Argument::Float(number) => Arg::Float(float(number)),
        Argument::Ints(ints) => Arg::Ints(ints.iter().map(|int| Number::Known(*int)).collect()),
        Argument::Sizes(sizes) => {
            let size = |size: &Option<Dim>| size.as_ref().map_or(Number::Known(-1), symbols.dim());
            Arg::Ints(sizes.iter().map(size).collect())
        }
        Argument::SymInt(formula) => Arg::Int(Number::Formula(symbols.formula(formula))),
        Argument::SymInts(ints) => Arg::Ints(ints.iter().map(int).collect()),
        Argument::Floats(floats) => Arg::Floats(floats.iter().map(float).collect()),
        Argument::Bools(bools) => Arg::Bools(bools.clone()),
        Argument::String(text) => Arg::String(text.clone()),
        Argument::Tensors(values) => {
            let number = |value: &Option<ValueId>| match value {
                Some(value) => numbers.get(value).map(|number| Some(*number)),
                None => Some(None),
            };
            Arg::Tensors(values.iter().map(number).collect::<Option<_>>()?)
        }
        Argument::DType(dtype) => Arg::DType(*dtype),
        // All of a program runs on one device, which the options name.
        Argument::Device(_) => Arg::Device,
        Argument::Layout(layout) => Arg::Layout(*layout),
        Argument::Other(_) => return None,
    })
}

/// New names of symbols, by first appearance in the inputs; then by the old ones.
struct Renamed<'g> {
    order: Vec<&'g str>,
    names: HashMap<&'g str, String>,
}

impl<'g> Renamed<'g> {
    fn of(graph: &'g Graph) -> Self {
        let known: HashMap<&str, ()> =
            graph.symbols.iter().map(|symbol| (symbol.name.as_str(), ())).collect();
        let mut order: Vec<&str> = Vec::new();
        let shapes = graph.inputs.iter().flat_map(|input| &graph.value(input.value).ty.shape);
        let formulas = shapes.filter_map(|dim| match dim {
            Dim::Symbolic(formula) => Some(formula.as_str()),
            Dim::Static(_) => None,
        });
        let met = formulas.flat_map(words).filter(|word| known.contains_key(word));
        let rest = graph.symbols.iter().map(|symbol| symbol.name.as_str());
        for name in met.chain(rest) {
            if !order.contains(&name) {
                order.push(name);
            }
        }
        let names = order.iter().enumerate().map(|(at, old)| (*old, format!("s{at}"))).collect();
        Self { order, names }
    }

    fn ranges(&self, graph: &Graph) -> Vec<Range> {
        let of = |old: &&str| {
            let symbol = graph.symbols.iter().find(|symbol| symbol.name == **old);
            let (min, max) = symbol.map_or((None, None), |symbol| (symbol.min, symbol.max));
            Range { name: self.names[*old].clone(), min, max }
        };
        self.order.iter().map(of).collect()
    }

    fn sizes(&self, dims: &[Dim]) -> Vec<Number> {
        dims.iter().map(self.dim()).collect()
    }

    fn dim(&self) -> impl Fn(&Dim) -> Number {
        |dim| match dim {
            // No tensor is that large: the formula of what is no number is refused later.
            Dim::Static(size) => i64::try_from(*size)
                .map_or_else(|_| Number::Formula(size.to_string()), Number::Known),
            Dim::Symbolic(formula) => Number::Formula(self.formula(formula)),
        }
    }

    fn formula(&self, formula: &str) -> String {
        let mut shown = String::with_capacity(formula.len());
        let mut rest = formula;
        for word in words(formula) {
            let at = rest.find(word).unwrap_or(0);
            shown.push_str(&rest[..at]);
            shown.push_str(self.names.get(word).map_or(word, String::as_str));
            rest = &rest[at + word.len()..];
        }
        shown + rest
    }
}

/// The identifiers and numbers in a formula.
fn words(formula: &str) -> impl Iterator<Item = &str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    formula.split(move |c| !plain(c)).filter(|word| !word.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
