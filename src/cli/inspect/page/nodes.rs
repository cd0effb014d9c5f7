//! A part's graph, node by node.
//!
//! Names and shapes of nodes are the program's, and no artifact has them: they come from the
//! archive that was compiled. Without it there are the numbers and the operations that the plan
//! has; of the interpreter's artifacts, the core program.
//!
//! Invariant: an archive of another program names nothing: its operations are those that the
//! plan says, at the same numbers.

use std::collections::HashMap;

use kiln_native::{
    core::Op,
    eager::Eager,
    numbered,
    plan::{self, Plan, shown},
};
use kiln_proto::graph::{Dim, Graph, TensorType, ValueId};

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// In the artifact's order.
    pub(super) number: usize,
    /// The program's; empty: not known.
    pub(super) name: String,
    pub(super) op: String,
    /// Types and shapes of what it makes.
    pub(super) gives: Vec<String>,
    pub(super) reads: Vec<Read>,
    /// Positions of the kernels that compute it.
    pub(super) kernels: Vec<usize>,
}

/// What a node reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read {
    /// An input, by position and name.
    Input(usize, String),
    /// What a node made: its number, and the value's name.
    Node(usize, String),
}

/// The nodes of `graph`, which the plan was compiled from, with the kernels that compute them;
/// an error says why it is another's.
pub(super) fn of_graph(graph: &Graph, plan: &Plan) -> Result<Vec<Node>, String> {
    let (got, wanted) = (graph.inputs.len(), plan.inputs.len());
    if got != wanted {
        return Err(format!("its program has {got} inputs, the artifact {wanted}"));
    }
    for (at, (input, described)) in graph.inputs.iter().zip(&plan.inputs).enumerate() {
        let ty = &graph.value(input.value).ty;
        if !is_of_type(graph, ty, described) || graph.updates.contains(&at) != described.updated {
            let name = &graph.value(input.value).name;
            return Err(format!("its input {name:?} is not the artifact's input {at}"));
        }
    }
    let (got, wanted) = (graph.returned(), plan.outputs.len());
    if got != wanted {
        return Err(format!("its program has {got} outputs, the artifact {wanted}"));
    }
    for (at, (output, described)) in graph.outputs.iter().zip(&plan.outputs).enumerate() {
        if !is_of_type(graph, &graph.value(*output).ty, described) {
            return Err(format!("its output {at} is not the artifact's"));
        }
    }
    let order = numbered(graph);
    let mut reads: HashMap<ValueId, Read> = HashMap::new();
    for (at, input) in graph.inputs.iter().enumerate() {
        let name = graph.value(input.value).name.clone();
        reads.insert(input.value, Read::Input(at, name));
    }
    let mut nodes = Vec::with_capacity(order.len());
    for (number, (at, op)) in order.iter().enumerate() {
        let node = &graph.nodes[*at];
        for output in &node.outputs {
            reads.insert(*output, Read::Node(number, graph.value(*output).name.clone()));
        }
        let mut taken: Vec<Read> = node.tensors().filter_map(|t| reads.get(&t).cloned()).collect();
        taken.dedup();
        nodes.push(Node {
            number,
            name: node.name.clone(),
            op: (*op).to_owned(),
            gives: node.outputs.iter().map(|output| of_type(&graph.value(*output).ty)).collect(),
            reads: taken,
            kernels: Vec::new(),
        });
    }
    for (kernel, number, op) in computed(plan) {
        match nodes.get_mut(number).filter(|node| node.op == op) {
            Some(node) => node.kernels.push(kernel),
            None => return Err(format!("its node {number} is not the artifact's {op}")),
        }
    }
    Ok(nodes)
}

/// Whether the plan's tensor is of that type: sizes that are numbers are the same ones.
fn is_of_type(graph: &Graph, ty: &TensorType, described: &plan::Tensor) -> bool {
    let fits = |(dim, size): (&Dim, &plan::Expr)| match (dim, size.known()) {
        (Dim::Static(own), Some(size)) => i64::try_from(*own).is_ok_and(|own| own == size),
        (Dim::Static(_), None) => false,
        // A formula may come to a number.
        (Dim::Symbolic(_), Some(_)) => true,
        (Dim::Symbolic(_), None) => !graph.symbols.is_empty(),
    };
    ty.dtype == described.dtype
        && ty.shape.len() == described.shape.len()
        && ty.shape.iter().zip(&described.shape).all(fits)
}

/// The nodes that a plan's kernels compute: numbers and operations.
pub(super) fn of_plan(plan: &Plan) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut known: HashMap<usize, usize> = HashMap::new();
    for (kernel, number, op) in computed(plan) {
        let at = *known.entry(number).or_insert(nodes.len());
        if at == nodes.len() {
            let (gives, reads, kernels) = (Vec::new(), Vec::new(), Vec::new());
            let (name, op) = (String::new(), op.to_owned());
            nodes.push(Node { number, name, op, gives, reads, kernels });
        }
        nodes[at].kernels.push(kernel);
    }
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// The nodes of the interpreter's program.
pub(super) fn of_program(eager: &Eager) -> Vec<Node> {
    let program = eager.program();
    let mut reads: HashMap<usize, Read> = HashMap::new();
    for input in &program.inputs {
        let name = eager.plan().inputs.get(input.position).map(|input| input.name.clone());
        let name = name.unwrap_or_default();
        reads.insert(input.value.0, Read::Input(input.position, name));
    }
    let mut nodes = Vec::with_capacity(program.nodes.len());
    for (number, node) in program.nodes.iter().enumerate() {
        let value = program.value(node.writes);
        let shape: Vec<_> = value.shape.iter().map(kiln_native::size::Size::to_plan).collect();
        let mut taken: Vec<Read> =
            node.reads.iter().filter_map(|value| reads.get(&value.0).cloned()).collect();
        taken.dedup();
        reads.insert(node.writes.0, Read::Node(number, format!("n{number}")));
        nodes.push(Node {
            number,
            name: format!("n{number}"),
            op: core_name(&node.op),
            gives: vec![format!("{} {}", value.dtype, shown(&shape))],
            reads: taken,
            kernels: Vec::new(),
        });
    }
    nodes
}

/// A core operation, without what it is given.
fn core_name(op: &Op) -> String {
    let (name, how) = match op {
        Op::Map { fun, .. } => ("map", format!("{fun:?}")),
        Op::Reduce { how, .. } => ("reduce", format!("{how:?}")),
        other => {
            let debug = format!("{other:?}");
            let name = debug.split([' ', '(', '{']).next().unwrap_or_default();
            return name.to_lowercase();
        }
    };
    format!("{name} {}", how.to_lowercase())
}

/// `bf16 [s0, 64]`.
fn of_type(ty: &TensorType) -> String {
    let size = |dim: &Dim| match dim {
        Dim::Static(size) => size.to_string(),
        Dim::Symbolic(formula) => formula.clone(),
    };
    let sizes: Vec<String> = ty.shape.iter().map(size).collect();
    format!("{} [{}]", ty.dtype, sizes.join(", "))
}

/// For each kernel and each operation that it computes: kernel, number and operation.
fn computed(plan: &Plan) -> Vec<(usize, usize, &str)> {
    let mut all = Vec::new();
    for (kernel, of) in plan.kernels.iter().enumerate() {
        let numbers = of.computes.iter().filter_map(|text| text.split_once(' '));
        for (number, op) in numbers {
            all.extend(number.parse().map(|number| (kernel, number, op)));
        }
    }
    all
}
