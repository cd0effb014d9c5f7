//! Whether a piece may write its result where one of its inputs lies.
//!
//! Invariant: sound for any order of a piece's kernels and of their threads. The
//! only result is made of that input element by element, so that nothing reads an
//! element after the one that takes its place is written.

use kiln_proto::graph::Graph;

use crate::{
    core::{Op, Program},
    decompose::decompose,
    size::Size,
};

/// The first input in whose place the piece can make its only result. Of an operation
/// without a rule nobody here knows what it reads when.
pub(super) fn in_place(graph: &Graph) -> Option<usize> {
    let program = decompose(graph).ok()?;
    (0..program.inputs.len()).find(|input| may(&program, *input))
}

fn may(program: &Program, input: usize) -> bool {
    let [output] = program.outputs[..] else { return false };
    let given = &program.inputs[input];
    let shape = &program.value(given.value).shape;
    let result = program.value(output);
    let width = |value| program.value(value).dtype.bytes();
    let mut dense = vec![Size::from(1); shape.len()];
    for dim in (1..shape.len()).rev() {
        dense[dim - 1] = &dense[dim] * &shape[dim];
    }
    if result.shape != *shape || width(output) != width(given.value) || given.strides != dense {
        return false;
    }
    let mut made_of_it = vec![false; program.values.len()];
    made_of_it[given.value.0] = true;
    for node in &program.nodes {
        if node.reads.iter().any(|read| made_of_it[read.0]) {
            let is_map = matches!(node.op, Op::Map { .. });
            if !is_map || program.value(node.writes).shape != *shape {
                return false;
            }
            made_of_it[node.writes.0] = true;
        }
    }
    output != given.value && made_of_it[output.0]
}
