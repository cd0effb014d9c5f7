//! Operations in place, as operations that give new tensors.
//!
//! ```text
//! y = slice(x, 0, 1, 3)            y  = slice(x, 0, 1, 3)
//! add_(y, 1)               ->      y' = add(y, 1);  x' = slice_scatter(x, y', 0, 1, 3)
//! z = mul(x, y)                    z  = mul(x', slice(x', 0, 1, 3))
//! ```
//!
//! A tensor that is written to becomes another one; what it is a view of is written to
//! by the view's inverse, up to the tensor whose memory it is; every other view of that is
//! taken again when it is next read. Inputs that were written to are [`Graph::updates`].
//!
//! Invariant: what the graph that comes out computes is what the one that went in leaves
//! behind, and it has no operation in place but those that have no such form, which no rule
//! knows. A graph without any comes out as it went in.

mod in_place;
mod statistics;
mod views;

use kiln_proto::{
    Failure, FailureKind,
    graph::{Argument, Graph, InputKind, Node, TensorType, Value, ValueId},
};

use self::views::{How, Layouts};
use super::{
    archive::invalid,
    decompose::{MOST_NODES, Symbols},
    size::Size,
};
pub(crate) use in_place::mutates;

/// `graph` without operations in place. `left` has what the exporter itself says that the
/// program leaves in inputs, by their positions.
pub(super) fn functional(graph: Graph, left: Vec<(usize, ValueId)>) -> Result<Graph, Failure> {
    let graph = statistics::told(graph)?;
    let mut updates = left;
    let graph = match graph.nodes.iter().any(|node| mutates(&node.op)) {
        false => graph,
        true => {
            let (graph, found) = Writer::of(&graph).run(&graph)?;
            // What the exporter says holds unless the program then writes to it itself.
            updates.retain(|(input, _)| found.iter().all(|(other, _)| other != input));
            updates.extend(found);
            graph
        }
    };
    with_updates(graph, updates)
}

fn with_updates(mut graph: Graph, mut updates: Vec<(usize, ValueId)>) -> Result<Graph, Failure> {
    if updates.is_empty() {
        return Ok(graph);
    }
    updates.sort_unstable_by_key(|(input, _)| *input);
    for pair in updates.windows(2) {
        if pair[0].0 == pair[1].0 {
            let name = &graph.value(graph.inputs[pair[0].0].value).name;
            return Err(invalid(format!("input {name:?} is left with two values")));
        }
    }
    let symbols = Symbols::of(&graph);
    let sizes = |ty: &TensorType| -> Result<Vec<Size>, Failure> {
        ty.shape.iter().map(|dim| symbols.size(dim).map_err(invalid)).collect()
    };
    for (input, value) in &updates {
        let into = &graph.inputs[*input];
        let Value { name, ty } = graph.value(into.value);
        if matches!(into.kind, InputKind::Constant(_)) {
            let why = format!("constant {name:?} is written to: make it a buffer");
            return Err(Failure::new(FailureKind::UnsupportedOp, why));
        }
        let new = &graph.value(*value).ty;
        if new.dtype != ty.dtype {
            let why = format!("input {name:?} is {}, what is left in it {}", ty.dtype, new.dtype);
            return Err(invalid(why));
        }
        if new.shape != ty.shape && sizes(new)? != sizes(ty)? {
            let why = format!("what is left in input {name:?} has another shape than that");
            return Err(invalid(why));
        }
    }
    for (input, value) in updates {
        graph.updates.push(input);
        graph.outputs.push(value);
    }
    Ok(graph)
}

/// How many numbers and tensors the arguments of `node` have.
fn length(node: &Node) -> usize {
    let of = |argument: &Argument| match argument {
        Argument::Ints(all) => all.len(),
        Argument::Sizes(all) => all.len(),
        Argument::SymInts(all) => all.len(),
        Argument::Tensors(all) => all.len(),
        _ => 1,
    };
    1 + node.args.iter().map(|(_, argument)| of(argument)).sum::<usize>()
}

/// How a value lies in another one's memory.
#[derive(Debug, Clone, Copy)]
struct View {
    /// That other one.
    of: ValueId,
    /// The exporter's node that took it, and which of its outputs it is; none: all of it,
    /// under the same shape.
    by: Option<(usize, usize)>,
}

/// Most that operations in place and views of what they write may come to: operations,
/// with their arguments and the dimensions of what they give.
const MOST_MADE: usize = 64 * MOST_NODES;

/// The graph as it is made anew. Values that the exporter has keep their ids.
struct Writer<'a> {
    old: &'a Graph,
    layouts: Layouts<'a>,
    made: Graph,
    /// By the exporter's value: what it is a view of.
    views: Vec<Option<View>>,
    /// The value whose memory it lies in.
    roots: Vec<ValueId>,
    /// What holds its elements now.
    current: Vec<ValueId>,
    /// When that was so: see `writes`.
    seen: Vec<usize>,
    /// By value that is no view: how often it, or a view of it, was written to.
    writes: Vec<usize>,
    /// How much was made: see [`MOST_MADE`].
    size: usize,
}

impl<'a> Writer<'a> {
    fn of(old: &'a Graph) -> Self {
        let count = old.values.len();
        let made = Graph { nodes: Vec::new(), outputs: Vec::new(), ..old.clone() };
        Self {
            old,
            layouts: Layouts::of(old),
            made,
            views: vec![None; count],
            roots: (0..count).map(ValueId).collect(),
            current: (0..count).map(ValueId).collect(),
            seen: vec![0; count],
            writes: vec![0; count],
            size: 0,
        }
    }

    fn run(mut self, old: &Graph) -> Result<(Graph, Vec<(usize, ValueId)>), Failure> {
        for (index, node) in old.nodes.iter().enumerate() {
            match mutates(&node.op) {
                true => self.write_in_place(index)?,
                false => self.copy(index)?,
            }
        }
        for output in &old.outputs {
            let now = self.read(*output)?;
            self.made.outputs.push(now);
        }
        let mut updates = Vec::new();
        for (position, input) in old.inputs.iter().enumerate() {
            if self.writes[input.value.0] > 0 {
                updates.push((position, self.read(input.value)?));
            }
        }
        Ok((self.made, updates))
    }

    /// Takes `value` for a view of `of`, taken by `by`, that is as it should be now.
    fn view(&mut self, value: ValueId, of: ValueId, by: Option<(usize, usize)>) {
        let root = self.roots[of.0];
        self.views[value.0] = Some(View { of, by });
        self.roots[value.0] = root;
        self.seen[value.0] = self.writes[root.0];
    }

    /// Whether `value` has to be taken again, from another one.
    fn is_stale(&self, value: ValueId) -> bool {
        self.views[value.0].is_some() && self.seen[value.0] != self.writes[self.roots[value.0].0]
    }

    /// What holds the elements of `value` now.
    fn read(&mut self, value: ValueId) -> Result<ValueId, Failure> {
        // Archives come from outside, and views of views may be any depth.
        let mut wanted = vec![value];
        while let Some(top) = wanted.last().copied() {
            let view = self.views[top.0].filter(|_| self.is_stale(top));
            let Some(View { of, by }) = view else {
                wanted.pop();
                continue;
            };
            let node = by.map(|(index, _)| &self.old.nodes[index]);
            let needs = node.into_iter().flat_map(Node::tensors).chain([of]);
            let stale: Vec<ValueId> = needs.filter(|need| self.is_stale(*need)).collect();
            if !stale.is_empty() {
                wanted.extend(stale);
                self.made_more(0, wanted.len())?;
                continue;
            }
            match node {
                Some(node) => self.take_again(node)?,
                None => {
                    self.current[top.0] = self.current[of.0];
                    self.seen[top.0] = self.writes[self.roots[top.0].0];
                }
            }
            wanted.pop();
        }
        Ok(self.current[value.0])
    }

    /// Takes a view anew from what it is a view of, which is not stale.
    fn take_again(&mut self, node: &'a Node) -> Result<(), Failure> {
        if self.layouts.how(node) == How::Unknown {
            return Err(self.unknown(node, "is read after that was written to"));
        }
        let dims = |output: &ValueId| 1 + 2 * self.old.value(*output).ty.shape.len();
        self.made_more(length(node) + node.outputs.iter().map(dims).sum::<usize>(), 0)?;
        let args = self.arguments(node)?;
        let outputs: Vec<ValueId> =
            node.outputs.iter().map(|output| self.fresh(self.old.value(*output).clone())).collect();
        for (output, new) in node.outputs.iter().zip(&outputs) {
            self.current[output.0] = *new;
            self.seen[output.0] = self.writes[self.roots[output.0].0];
        }
        let (name, op) = (node.name.clone(), node.op.clone());
        self.made.nodes.push(Node { name, op, args, outputs });
        Ok(())
    }

    /// Counts what is made, and refuses what comes to too much; `more` is made for a moment.
    fn made_more(&mut self, size: usize, more: usize) -> Result<(), Failure> {
        self.size += size;
        match self.size + more > MOST_MADE {
            true => Err(invalid("operations in place come to too many others through views")),
            false => Ok(()),
        }
    }

    /// An argument, with what holds the elements of its tensors now.
    fn argument(&mut self, argument: &Argument) -> Result<Argument, Failure> {
        Ok(match argument {
            Argument::Tensor(value) => Argument::Tensor(self.read(*value)?),
            Argument::Tensors(values) => {
                let now = values.iter().map(|value| value.map(|v| self.read(v)).transpose());
                Argument::Tensors(now.collect::<Result<_, _>>()?)
            }
            other => other.clone(),
        })
    }

    fn arguments(&mut self, node: &Node) -> Result<Vec<(String, Argument)>, Failure> {
        let now = node.args.iter().map(|(name, arg)| Ok((name.clone(), self.argument(arg)?)));
        now.collect()
    }

    /// A node that writes to nothing, as it is.
    fn copy(&mut self, index: usize) -> Result<(), Failure> {
        let node = &self.old.nodes[index];
        let args = self.arguments(node)?;
        if self.layouts.how(node) != How::New {
            // Of several tensors, one of each.
            let of: Vec<ValueId> = match node.arg("self").or_else(|| node.arg("input")) {
                Some(Argument::Tensor(of)) => vec![*of; node.outputs.len()],
                _ => node.tensors().collect(),
            };
            if of.len() != node.outputs.len() {
                return Err(self.unknown(node, "cannot be told"));
            }
            for (at, (output, of)) in node.outputs.iter().zip(of).enumerate() {
                self.view(*output, of, Some((index, at)));
            }
        }
        let (name, op, outputs) = (node.name.clone(), node.op.clone(), node.outputs.clone());
        self.made.nodes.push(Node { name, op, args, outputs });
        Ok(())
    }

    /// A node that writes to its first tensor.
    fn write_in_place(&mut self, index: usize) -> Result<(), Failure> {
        let node = &self.old.nodes[index];
        let (Some(Argument::Tensor(target)), [output]) = (node.arg("self"), &node.outputs[..])
        else {
            // Several at once, or none that can be told: no rule knows it.
            return self.copy(index);
        };
        let args = self.arguments(node)?;
        let ty = self.old.value(*target).ty.clone();
        let Some(new) = self.in_place(node, args, &ty)? else { return self.copy(index) };
        self.write(*target, new)?;
        self.view(*output, *target, None);
        self.current[output.0] = new;
        Ok(())
    }

    /// Makes `new` what `value` holds, and so what it is a view of.
    fn write(&mut self, value: ValueId, new: ValueId) -> Result<(), Failure> {
        // From the view to the memory's owner: each with what it is after.
        let (mut at, mut now, mut written) = (value, new, vec![(value, new)]);
        while let Some(View { of, by }) = self.views[at.0] {
            if let Some((index, output)) = by {
                let node = &self.old.nodes[index];
                let whole = self.read(of)?;
                let ty = self.old.value(of).ty.clone();
                self.made_more(length(node) + 1 + 2 * ty.shape.len(), 0)?;
                let made = self.layouts.inverse(node, output, &ty, whole, now);
                now = match made {
                    Some(Some((op, args))) => self.node(&node.name, op, args, ty),
                    Some(None) => now,
                    None => return Err(self.unknown(node, "is written to")),
                };
            }
            at = of;
            written.push((at, now));
        }
        self.writes[at.0] += 1;
        for (value, new) in written {
            (self.current[value.0], self.seen[value.0]) = (new, self.writes[at.0]);
        }
        Ok(())
    }

    /// A value of the new graph.
    fn fresh(&mut self, value: Value) -> ValueId {
        self.made.values.push(value);
        ValueId(self.made.values.len() - 1)
    }

    /// A node with one output.
    fn node(
        &mut self,
        name: &str,
        op: &str,
        args: Vec<(&'static str, Argument)>,
        ty: TensorType,
    ) -> ValueId {
        let output = self.fresh(Value { name: name.to_owned(), ty });
        self.made.nodes.push(Node {
            name: name.to_owned(),
            op: op.to_owned(),
            args: args.into_iter().map(|(name, arg)| (name.to_owned(), arg)).collect(),
            outputs: vec![output],
        });
        output
    }

    fn unknown(&self, node: &Node, what: &str) -> Failure {
        let Node { name, op, .. } = node;
        let why = format!(
            "node {name:?} ({op}) gives a view, or a copy, that {what}: which, cannot be told, or \
             it cannot be undone; write to a clone of it instead"
        );
        Failure::new(FailureKind::UnsupportedOp, why)
    }
}
