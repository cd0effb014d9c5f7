//! Operations at which a graph is cut, each with what belongs to it.
//!
//! In a program as it was traced these are nodes of that name. In a decomposed
//! one attention is many nodes: those that the compiler would make one kernel of
//! again. Views that only such an operation reads go with it, so that what
//! crosses the cut is what they are views of, and the kernel reads through them; so
//! does what is made of nothing that flows, a mask of positions, say, which the kernel
//! computes. Views and casts that alone read the result go with it too: the kernel writes
//! it as they have it.
//!
//! Invariant: no group reads what is made, outside of it, of what it gives.

use std::collections::BTreeSet;

use kiln_proto::graph::{Node, ValueId};

use super::flow::Flow;
use crate::{attend, core::Program};

/// Operations that only arrange elements in another way.
const VIEWS: [&str; 13] = [
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten.permute.default",
    "aten.transpose.int",
    "aten.t.default",
    EXPAND,
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
];
/// Operations that write elements to another place, or in another type.
const COPIES: [&str; 4] =
    ["aten.clone.default", "aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout"];
/// The view that can be larger than what it is a view of.
const EXPAND: &str = "aten.expand.default";
/// Of an operation's name, in rules that mean attention in any form.
const ATTENTION: &str = "scaled_dot_product";

/// What a graph is cut at.
#[derive(Debug)]
pub(super) struct Groups {
    /// For each node its group, if it is in one.
    pub(super) of: Vec<Option<usize>>,
    /// How many there are.
    pub(super) count: usize,
}

/// The groups of `flow`'s graph, which became `program`: at operations whose
/// names contain one of `names`.
pub(super) fn groups(flow: &Flow<'_>, program: &Program, names: &[String]) -> Groups {
    let named = |node: &Node| names.iter().any(|name| node.op.contains(name.as_str()));
    let cores: Vec<usize> =
        flow.live.iter().copied().filter(|index| named(&flow.graph.nodes[*index])).collect();
    let mut found: Vec<BTreeSet<usize>> =
        cores.iter().map(|core| BTreeSet::from([*core])).collect();
    if names.iter().any(|name| ATTENTION.contains(name.as_str()) || name.contains(ATTENTION)) {
        found.extend(decomposed(flow, program));
    }
    // What several have is nobody's.
    let mut count = vec![0u32; flow.graph.nodes.len()];
    found.iter().flatten().for_each(|node| count[*node] += 1);
    found.iter_mut().for_each(|group| group.retain(|node| count[*node] == 1));
    let mut of = vec![None; flow.graph.nodes.len()];
    let mut groups = 0;
    for mut group in found.into_iter().filter(|group| !group.is_empty()) {
        close(flow, &mut group);
        take_views(flow, &mut group);
        take_after(flow, &mut group);
        if group.iter().any(|node| of[*node].is_some()) {
            continue;
        }
        group.iter().for_each(|node| of[*node] = Some(groups));
        groups += 1;
    }
    Groups { of, count: groups }
}

/// The nodes of each attention in pieces.
fn decomposed(flow: &Flow<'_>, program: &Program) -> Vec<BTreeSet<usize>> {
    let mut rewritten = program.clone();
    let origins = attend::attend(&mut rewritten, flow.graph);
    origins.into_values().collect()
}

/// Adds what is made of the group and read by it.
fn close(flow: &Flow<'_>, group: &mut BTreeSet<usize>) {
    let reach = |next: &dyn Fn(usize) -> Vec<usize>| {
        let (mut seen, mut left) = (BTreeSet::new(), group.iter().copied().collect::<Vec<_>>());
        while let Some(node) = left.pop() {
            left.extend(next(node).into_iter().filter(|node| seen.insert(*node)));
        }
        seen
    };
    if group.len() < 2 {
        return;
    }
    let after = reach(&|node| flow.after(node).collect());
    let before = reach(&|node| flow.before(node).collect());
    group.extend(after.intersection(&before));
}

/// Adds views, and what is made of nothing that flows, that nobody else reads, from the
/// group upwards.
fn take_views(flow: &Flow<'_>, group: &mut BTreeSet<usize>) {
    let mut left: Vec<usize> = group.iter().flat_map(|node| flow.before(*node)).collect();
    while let Some(node) = left.pop() {
        let is_view = VIEWS.contains(&flow.graph.nodes[node].op.as_str());
        let is_free = is_view || flow.is_still[node];
        let given = flow.graph.nodes[node].outputs.iter().any(|value| flow.is_output[value.0]);
        let alone = flow.after(node).all(|reader| group.contains(&reader));
        if is_free && !given && alone && group.insert(node) {
            left.extend(flow.before(node));
        }
    }
}

/// Adds views, copies and casts to no wider type of what the group gives, each the only
/// reader of the one before: the operation's kernel writes its result as they have it, and
/// what crosses the cut is no larger for it.
fn take_after(flow: &Flow<'_>, group: &mut BTreeSet<usize>) {
    let ty = |value: ValueId| &flow.graph.value(value).ty;
    let leaves =
        |value: &ValueId| flow.readers[value.0].iter().any(|reader| !group.contains(reader));
    let given: Vec<ValueId> =
        group.iter().flat_map(|node| flow.needed(*node)).filter(leaves).collect();
    for mut value in given {
        while let ([reader], false) = (&flow.readers[value.0][..], flow.is_output[value.0]) {
            let node = &flow.graph.nodes[*reader];
            let [next] = node.outputs[..] else { break };
            let op = node.op.as_str();
            let is_free = VIEWS.contains(&op) || COPIES.contains(&op);
            let larger = ty(next).dtype.bytes() > ty(value).dtype.bytes()
                || (op == EXPAND && ty(next).shape != ty(value).shape);
            if !is_free || larger || node.tensors().count() != 1 {
                break;
            }
            group.insert(*reader);
            value = next;
        }
    }
}
