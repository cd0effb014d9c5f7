//! What it takes to compile a part of a graph, guessed before it is compiled.
//!
//! Invariant: an estimate is the sum of its nodes' plus what every compile
//! costs, so that parts of a graph never seem cheaper than the graph.

use serde::{Deserialize, Serialize};

use super::symbols::Sizes;
use crate::core::{Op, Program};
use kiln_proto::graph::Graph;

/// What compiles cost. Where a graph is cut follows from these, so all nodes have the same;
/// what a node learned of real compiles corrects estimates afterwards. The defaults are rules of thumb, but for two that were measured with NVRTC
/// 13.0: a quarter of a second for the first compile of a process, and 12 ms for a
/// small kernel. `tests/split/costs.rs` writes what it takes to measure the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Coefficients {
    /// Seconds of any compile.
    pub seconds: f64,
    /// Seconds more for each core operation, but those below.
    pub seconds_per_operation: f64,
    /// Seconds more for each matrix product.
    pub seconds_per_product: f64,
    /// Seconds more for each attention.
    pub seconds_per_attention: f64,
    /// Bytes that any compiler process takes.
    pub bytes: f64,
    /// Bytes more for each core operation of any kind.
    pub bytes_per_operation: f64,
}

impl Default for Coefficients {
    fn default() -> Self {
        Self {
            seconds: 0.25,
            seconds_per_operation: 0.012,
            seconds_per_product: 0.1,
            seconds_per_attention: 0.5,
            bytes: 150e6,
            bytes_per_operation: 0.2e6,
        }
    }
}

/// What a graph, or a part of one, is thought to take.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimates {
    /// Of the exported graph.
    pub nodes: usize,
    /// Of the core program, products and attentions among them.
    pub operations: usize,
    /// Matrix products.
    pub products: usize,
    /// Attentions, in one operation or in pieces.
    pub attentions: usize,
    /// Of one compiler.
    pub compile_seconds: f64,
    /// Memory of one compiler.
    pub compile_bytes: u64,
    /// What the operations leave each other, and what is given: all of it, as if
    /// nothing were fused. Symbols are taken to have their assumed sizes.
    pub tensor_bytes: u64,
}

/// What each node of a graph adds.
#[derive(Debug)]
pub(super) struct Costs {
    nodes: Vec<Estimates>,
    coefficients: Coefficients,
}

impl Costs {
    /// For each node of `graph`, which became `program`, in which attention is
    /// one operation.
    pub(super) fn of(
        graph: &Graph,
        program: &Program,
        sizes: &Sizes<'_>,
        coefficients: Coefficients,
    ) -> Self {
        let mut nodes = vec![Estimates::default(); graph.nodes.len()];
        for node in &program.nodes {
            let of = &mut nodes[node.origin];
            of.operations += 1;
            match node.op {
                Op::MatMul | Op::GroupedMatMul => of.products += 1,
                Op::Attention { .. } => of.attentions += 1,
                _ => {}
            }
        }
        for (node, of) in graph.nodes.iter().zip(&mut nodes) {
            of.nodes = 1;
            let bytes = node.outputs.iter().map(|value| sizes.bytes(&graph.value(*value).ty));
            of.tensor_bytes = bytes.fold(0, u64::saturating_add);
        }
        Self { nodes, coefficients }
    }

    /// Of one compile of those nodes.
    pub(super) fn sum(&self, nodes: impl IntoIterator<Item = usize>) -> Estimates {
        let mut sum = Estimates::default();
        for node in nodes {
            let one = &self.nodes[node];
            sum.nodes += one.nodes;
            sum.operations += one.operations;
            sum.products += one.products;
            sum.attentions += one.attentions;
            sum.tensor_bytes = sum.tensor_bytes.saturating_add(one.tensor_bytes);
        }
        let Coefficients { seconds, bytes, bytes_per_operation, .. } = self.coefficients;
        sum.compile_seconds = seconds + self.seconds(&sum);
        sum.compile_bytes = (bytes + bytes_per_operation * sum.operations as f64) as u64;
        sum
    }

    /// Beside what every compile costs.
    fn seconds(&self, of: &Estimates) -> f64 {
        let per = self.coefficients;
        let others = of.operations - of.products - of.attentions;
        per.seconds_per_operation * others as f64
            + per.seconds_per_product * of.products as f64
            + per.seconds_per_attention * of.attentions as f64
    }

    /// What those nodes add to a compile: seconds, and operations.
    pub(super) fn added(&self, nodes: &[usize]) -> (f64, usize) {
        let sum = self.sum(nodes.iter().copied());
        (self.seconds(&sum), sum.operations)
    }
}
