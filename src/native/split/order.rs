//! The one order in which a graph is cut.
//!
//! Nodes that must stay together are one unit. Units are in the order in which
//! the outputs need them, as in the key, so that names and the exporter's order
//! leave no trace here either; what several layers share comes before them all,
//! so that the first layer looks like the others. What nothing of the user is in,
//! the transposition of a weight, say, comes just before what reads it: anywhere
//! else a cut would lie between them, and the piece before it would write it to
//! memory at each run.
//!
//! Invariant: each live node is in one unit, and a unit comes after all that it reads.

use super::flow::Flow;
use crate::live::sorted_tensors;

/// Nodes that stay together, in an order in which they can run.
pub(super) type Unit = Vec<usize>;

/// The live nodes as units; nodes of the same number in `group` are one. `None`:
/// two groups need each other.
pub(super) fn units(flow: &Flow<'_>, group: &[Option<usize>]) -> Option<Vec<Unit>> {
    let mut members: Vec<Unit> = Vec::new();
    let mut unit_of = vec![usize::MAX; flow.graph.nodes.len()];
    let mut unit_of_group = std::collections::HashMap::new();
    for index in &flow.live {
        let unit = match group[*index] {
            Some(group) => *unit_of_group.entry(group).or_insert(members.len()),
            None => members.len(),
        };
        if unit == members.len() {
            members.push(Vec::new());
        }
        members[unit].push(*index);
        unit_of[*index] = unit;
    }
    let reads = |unit: usize| -> Vec<usize> {
        let tensors =
            members[unit].iter().flat_map(|node| sorted_tensors(&flow.graph.nodes[*node]));
        let definers = tensors.filter_map(|value| flow.definer[value.0]);
        let definers = definers.filter(|node| unit_of[*node] != unit);
        let (mut units, others): (Vec<usize>, Vec<usize>) =
            definers.partition(|node| flow.is_still[*node]);
        // The last one is taken first.
        units.reverse();
        units.extend(others.into_iter().rev());
        units.into_iter().map(|node| unit_of[node]).collect()
    };
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut state = vec![State::New; members.len()];
    let mut order = Vec::with_capacity(members.len());
    for output in &flow.graph.outputs {
        let Some(root) = flow.definer[output.0].map(|node| unit_of[node]) else { continue };
        if state[root] != State::New {
            continue;
        }
        state[root] = State::Open;
        // An explicit stack: graphs come from outside and may be any depth.
        let mut stack = vec![(root, reads(root))];
        while let Some((unit, left)) = stack.last_mut() {
            match left.pop() {
                Some(next) => match state[next] {
                    State::Done => {}
                    State::Open => return None,
                    State::New => {
                        state[next] = State::Open;
                        stack.push((next, reads(next)));
                    }
                },
                None => {
                    state[*unit] = State::Done;
                    order.push(*unit);
                    stack.pop();
                }
            }
        }
    }
    Some(order.into_iter().map(|unit| std::mem::take(&mut members[unit])).collect())
}

/// The position of each node's unit.
pub(super) fn positions(flow: &Flow<'_>, units: &[Unit]) -> Vec<Option<usize>> {
    let mut position = vec![None; flow.graph.nodes.len()];
    for (at, unit) in units.iter().enumerate() {
        unit.iter().for_each(|node| position[*node] = Some(at));
    }
    position
}

/// `units` with those that are `shared`, and all that they need, before the rest,
/// and how many these are.
pub(super) fn hoisted(flow: &Flow<'_>, units: Vec<Unit>, shared: &[usize]) -> (Vec<Unit>, usize) {
    let position = positions(flow, &units);
    let mut first = vec![false; units.len()];
    let mut left: Vec<usize> = shared.to_vec();
    while let Some(unit) = left.pop() {
        if !std::mem::replace(&mut first[unit], true) {
            let before = units[unit].iter().flat_map(|node| flow.before(*node));
            left.extend(before.filter_map(|node| position[node]));
        }
    }
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for (unit, first) in units.into_iter().zip(first) {
        if first { early.push(unit) } else { late.push(unit) }
    }
    let count = early.len();
    early.append(&mut late);
    (early, count)
}
