//! The nodes of a graph that its outputs need, in the one order of them.
//!
//! Invariant: the order follows from what the outputs need and from the names of
//! arguments alone: neither names of nodes nor the exporter's order count.

use kiln_proto::graph::{Argument, Graph, Node, ValueId};

/// The nodes that the outputs need, each after what it reads; the order
/// follows from the graph alone.
pub(super) fn live_order(graph: &Graph) -> Vec<usize> {
    let mut definer = vec![None; graph.values.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for output in &node.outputs {
            definer[output.0] = Some(index);
        }
    }
    let mut order = Vec::with_capacity(graph.nodes.len());
    let mut seen = vec![false; graph.nodes.len()];
    for output in &graph.outputs {
        // An explicit stack: graphs come from outside and may be any depth.
        let mut stack: Vec<(usize, Vec<ValueId>)> = Vec::new();
        let visit = |value: ValueId, seen: &mut Vec<bool>| {
            let index = definer[value.0].filter(|index| !seen[*index])?;
            seen[index] = true;
            let mut reads = sorted_tensors(&graph.nodes[index]);
            reads.reverse();
            Some((index, reads))
        };
        stack.extend(visit(*output, &mut seen));
        while let Some((index, reads)) = stack.last_mut() {
            match reads.pop() {
                Some(value) => {
                    if let Some(frame) = visit(value, &mut seen) {
                        stack.push(frame);
                    }
                }
                None => {
                    order.push(*index);
                    stack.pop();
                }
            }
        }
    }
    order
}

/// The tensors that a node reads, in the order of their arguments' names.
pub(super) fn sorted_tensors(node: &Node) -> Vec<ValueId> {
    let mut args: Vec<&(String, Argument)> = node.args.iter().collect();
    args.sort_by(|a, b| a.0.cmp(&b.0));
    args.into_iter().flat_map(|(_, argument)| argument.tensors()).collect()
}
