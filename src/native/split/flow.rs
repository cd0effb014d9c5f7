//! Who defines and who reads each value of a graph.
//!
//! Invariant: only nodes that the outputs need take part, as in the key.

use kiln_proto::graph::{Graph, InputKind, ValueId};

use crate::live::live_order;

/// The edges of a graph.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    pub(super) graph: &'a Graph,
    /// The live nodes in canonical order.
    pub(super) live: Vec<usize>,
    /// For each value the live node that defines it.
    pub(super) definer: Vec<Option<usize>>,
    /// For each value its position in the graph's inputs.
    pub(super) input: Vec<Option<usize>>,
    /// For each value the live nodes that read it, in canonical order, each once.
    pub(super) readers: Vec<Vec<usize>>,
    /// For each value whether the whole gives it.
    pub(super) is_output: Vec<bool>,
    /// For each node whether it is made of nothing that a user gives: of weights, of
    /// sizes, of numbers. It can be made wherever it is read.
    pub(super) is_still: Vec<bool>,
}

impl<'a> Flow<'a> {
    pub(super) fn of(graph: &'a Graph) -> Self {
        let count = graph.values.len();
        let live = live_order(graph);
        let (mut definer, mut readers) = (vec![None; count], vec![Vec::new(); count]);
        for index in &live {
            let node = &graph.nodes[*index];
            for output in &node.outputs {
                definer[output.0] = Some(*index);
            }
            for read in node.tensors() {
                if readers[read.0].last() != Some(index) {
                    readers[read.0].push(*index);
                }
            }
        }
        let mut input = vec![None; count];
        for (position, given) in graph.inputs.iter().enumerate() {
            input[given.value.0] = Some(position);
        }
        let mut is_output = vec![false; count];
        graph.outputs.iter().for_each(|output| is_output[output.0] = true);
        let mut is_still = vec![false; graph.nodes.len()];
        for index in &live {
            let mut reads = graph.nodes[*index].tensors();
            is_still[*index] = reads.all(|read| match (definer[read.0], input[read.0]) {
                (Some(node), _) => is_still[node],
                (None, Some(at)) => !matches!(graph.inputs[at].kind, InputKind::User),
                (None, None) => true,
            });
        }
        Self { graph, live, definer, input, readers, is_output, is_still }
    }

    /// The live nodes that read what `node` defines.
    pub(super) fn after(&self, node: usize) -> impl Iterator<Item = usize> {
        let outputs = &self.graph.nodes[node].outputs;
        outputs.iter().flat_map(|output| self.readers[output.0].iter().copied())
    }

    /// The live nodes that define what `node` reads.
    pub(super) fn before(&self, node: usize) -> impl Iterator<Item = usize> {
        self.graph.nodes[node].tensors().filter_map(|read| self.definer[read.0])
    }

    /// The values that `node` defines and somebody needs.
    pub(super) fn needed(&self, node: usize) -> impl Iterator<Item = ValueId> {
        let outputs = self.graph.nodes[node].outputs.iter().copied();
        outputs.filter(|value| self.is_output[value.0] || !self.readers[value.0].is_empty())
    }
}
