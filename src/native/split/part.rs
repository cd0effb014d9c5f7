//! A part of a graph as a graph of its own.
//!
//! What crosses a cut is given to the next piece densely in row-major order: a
//! piece's outputs always lie so, whatever view the exporter calls them, and two
//! equal layers would differ in how their inputs came about if strides were kept.
//! A view that only the next piece reads is best made there: see `groups`; what lies
//! in another order of dimensions is turned on both sides: see `carried`.
//! What the caller of the whole gives keeps its strides.
//!
//! A symbol that no input of a piece decides comes with one more input, which
//! nothing reads: the first of the whole that decides it.
//!
//! Invariant: a part computes for its outputs what the whole does, and nothing
//! of where it stood is in it but names.

use std::collections::{BTreeSet, HashMap, HashSet};

use kiln_proto::graph::{Argument, Dim, Graph, Input, InputKind, Node, TensorType, Value, ValueId};

use super::{
    SplitError,
    carried::{self, carried, inverse, turn, turned_back},
    flow::Flow,
    symbols::{Sizes, dense},
};
use crate::live::{live_order, sorted_tensors};

/// A part, and what its inputs and outputs are in the whole.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) graph: Graph,
    pub(super) nodes: Vec<usize>,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
}

/// The part of `flow`'s graph that are these nodes, in an order in which they can run.
pub(super) fn part(
    flow: &Flow<'_>,
    sizes: &Sizes<'_>,
    nodes: &[usize],
) -> Result<Part, SplitError> {
    let inside: HashSet<usize> = nodes.iter().copied().collect();
    let leaves = |value: &ValueId| {
        let readers = &flow.readers[value.0];
        flow.is_output[value.0] || readers.iter().any(|reader| !inside.contains(reader))
    };
    let outputs: Vec<ValueId> =
        nodes.iter().flat_map(|node| flow.needed(*node)).filter(leaves).collect();
    // Once in any order, to have the canonical one; what is turned first is no node of these.
    let given = reads(flow, nodes);
    let first = given.iter().filter(|value| carried::order(flow, sizes, **value).is_some()).count();
    let any = graph(flow, sizes, nodes, &given, &outputs);
    let canonical = live_order(&any).into_iter().filter_map(|at| at.checked_sub(first));
    let nodes: Vec<usize> = canonical.filter_map(|at| nodes.get(at).copied()).collect();
    let mut inputs = reads(flow, &nodes);
    add_witnesses(flow, sizes, &nodes, &mut inputs)?;
    let graph = graph(flow, sizes, &nodes, &inputs, &outputs);
    Ok(Part { graph, nodes, inputs, outputs })
}

/// What those nodes read and none of them defines, by first use.
fn reads(flow: &Flow<'_>, nodes: &[usize]) -> Vec<ValueId> {
    let nodes = nodes.iter().map(|node| &flow.graph.nodes[*node]);
    let mut known: HashSet<ValueId> =
        nodes.clone().flat_map(|node| node.outputs.iter().copied()).collect();
    nodes.flat_map(sorted_tensors).filter(|value| known.insert(*value)).collect()
}

/// Adds inputs of the whole until each symbol is decided by one.
fn add_witnesses(
    flow: &Flow<'_>,
    sizes: &Sizes<'_>,
    nodes: &[usize],
    inputs: &mut Vec<ValueId>,
) -> Result<(), SplitError> {
    let mut wanted = wanted(flow, sizes, nodes, inputs);
    while let Some(symbol) = wanted.pop_first() {
        let decides = |value: &ValueId| sizes.decides(&flow.graph.value(*value).ty, symbol);
        if inputs.iter().any(decides) {
            continue;
        }
        let witness = flow.graph.inputs.iter().map(|input| input.value).find(decides);
        let witness =
            witness.ok_or_else(|| SplitError::Symbol { name: sizes.name(symbol).to_owned() })?;
        sizes.of_input(flow.graph, witness, &mut wanted);
        inputs.push(witness);
    }
    Ok(())
}

/// The symbols in a part.
fn wanted(
    flow: &Flow<'_>,
    sizes: &Sizes<'_>,
    nodes: &[usize],
    inputs: &[ValueId],
) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for node in nodes {
        sizes.of_node(flow.graph, &flow.graph.nodes[*node], &mut found);
    }
    inputs.iter().for_each(|value| sizes.of_input(flow.graph, *value, &mut found));
    found
}

fn graph(
    flow: &Flow<'_>,
    sizes: &Sizes<'_>,
    nodes: &[usize],
    inputs: &[ValueId],
    outputs: &[ValueId],
) -> Graph {
    let whole = flow.graph;
    let mut made = Graph::default();
    let mut new: HashMap<ValueId, ValueId> = HashMap::new();
    let mut turned = Vec::new();
    for value in inputs {
        let id = ValueId(made.values.len());
        let old = whole.value(*value);
        let order = carried::order(flow, sizes, *value);
        let (kind, ty) = match (flow.input[value.0], &order) {
            (Some(at), _) => (whole.inputs[at].kind.clone(), old.ty.clone()),
            (None, Some(order)) => (InputKind::User, carried(&old.ty, order)),
            (None, None) => (InputKind::User, laid_out(&old.ty)),
        };
        made.values.push(Value { name: old.name.clone(), ty });
        made.inputs.push(Input { value: id, kind });
        new.insert(*value, id);
        turned.extend(order.map(|order| (*value, order)));
    }
    for (value, order) in turned {
        let (old, back) = (whole.value(value), ValueId(made.values.len()));
        made.values.push(Value { name: old.name.clone(), ty: turned_back(&old.ty, &order) });
        made.nodes.push(turn(&old.name, new[&value], &inverse(&order), back));
        new.insert(value, back);
    }
    for node in nodes {
        let Node { name, op, args, outputs } = &whole.nodes[*node];
        for output in outputs {
            new.insert(*output, ValueId(made.values.len()));
            made.values.push(whole.value(*output).clone());
        }
        let args = args.iter().map(|(name, argument)| {
            let argument = match argument {
                Argument::Tensor(value) => Argument::Tensor(new[value]),
                Argument::Tensors(values) => {
                    let values = values.iter().map(|value| value.map(|value| new[&value]));
                    Argument::Tensors(values.collect())
                }
                other => other.clone(),
            };
            (name.clone(), argument)
        });
        let (name, op, args) = (name.clone(), op.clone(), args.collect());
        let outputs = outputs.iter().map(|output| new[output]).collect();
        made.nodes.push(Node { name, op, args, outputs });
    }
    for output in outputs {
        let mut given = new[output];
        if let Some(order) = carried::order(flow, sizes, *output) {
            let (old, from) = (whole.value(*output), given);
            given = ValueId(made.values.len());
            made.values.push(Value { name: old.name.clone(), ty: carried(&old.ty, &order) });
            made.nodes.push(turn(&old.name, from, &order, given));
        }
        made.outputs.push(given);
    }
    let symbols: Vec<&str> =
        wanted(flow, sizes, nodes, inputs).into_iter().map(|symbol| sizes.name(symbol)).collect();
    let known = whole.symbols.iter().filter(|symbol| symbols.contains(&symbol.name.as_str()));
    made.symbols = known.cloned().collect();
    made
}

/// That type of a tensor as a piece gives it.
pub(super) fn laid_out(ty: &TensorType) -> TensorType {
    let TensorType { dtype, shape, device, .. } = ty;
    let (strides, offset) = (dense(shape), Dim::Static(0));
    TensorType { dtype: *dtype, shape: shape.clone(), strides, offset, device: device.clone() }
}
