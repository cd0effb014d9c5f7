//! Equal layers, found in the sequence of a graph's units.
//!
//! Invariant: what is called a repeat is one: each time the same operations on
//! the same types in the same order. Whether its pieces are equal, their keys
//! say, not this module.

use std::collections::HashMap;

use kiln_proto::graph::{Argument, Dim, InputKind, TensorType};

use super::{flow::Flow, order::Unit};
use crate::canonical::{OPERANDS, canonical_name, sorted_args};

/// Lengths of the runs of equal units by which a period is guessed.
const GUESSES: [usize; 4] = [1, 4, 16, 64];

/// Units that come several times, one time after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeat {
    pub(super) start: usize,
    pub(super) period: usize,
    pub(super) times: usize,
    /// How far units go on to repeat after the last whole time.
    pub(super) rest: usize,
}

/// A number for each unit: equal for those that do the same to the same types.
pub(super) fn signatures(flow: &Flow<'_>, units: &[Unit]) -> Vec<u32> {
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut number = |text: String| {
        let next = known.len() as u32;
        *known.entry(text).or_insert(next)
    };
    units
        .iter()
        .map(|unit| number(unit.iter().map(|node| signature(flow, *node) + ";").collect()))
        .collect()
}

fn signature(flow: &Flow<'_>, index: usize) -> String {
    let node = &flow.graph.nodes[index];
    let mut text = canonical_name(&node.op).to_owned();
    let ty = |ty: &TensorType| {
        let dims: Vec<&dyn std::fmt::Display> = ty
            .shape
            .iter()
            .map(|dim| match dim {
                Dim::Static(size) => size as &dyn std::fmt::Display,
                Dim::Symbolic(formula) => formula,
            })
            .collect();
        let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
        format!("{}[{}]", ty.dtype, dims.join(","))
    };
    for (name, argument) in sorted_args(node) {
        text += &format!(" {name}=");
        match argument {
            Argument::Tensor(_) | Argument::Tensors(_) => {
                for value in argument.tensors() {
                    let kind = flow.input[value.0].map(|at| &flow.graph.inputs[at].kind);
                    text += match kind {
                        // The same to a piece.
                        None | Some(InputKind::User) => "%",
                        Some(InputKind::Parameter | InputKind::Buffer) => "p",
                        Some(InputKind::Constant(_)) => "c",
                    };
                    text += &ty(&flow.graph.value(value).ty);
                }
            }
            // A layer with another number has the same structure.
            Argument::Int(_) | Argument::Float(_) if OPERANDS.contains(&name.as_str()) => {}
            other => text += &format!("{other:?}"),
        }
    }
    for output in &node.outputs {
        text += " ";
        text += &ty(&flow.graph.value(*output).ty);
    }
    text
}

/// The repeats in `sequence`, in order, none within another; each time has at
/// least `least` units.
pub(super) fn repeats(sequence: &[u32], least: usize) -> Vec<Repeat> {
    let mut found = Vec::new();
    let mut left = Vec::from([(0, sequence.len())]);
    while let Some((from, to)) = left.pop() {
        let Some(mut best) = longest(&sequence[from..to], least) else { continue };
        best.start += from;
        let end = best.start + best.period * best.times;
        left.extend([(from, best.start), (end, to)]);
        found.push(best);
    }
    found.sort_by_key(|repeat| repeat.start);
    found
}

/// Where what stands in `layer` starts and ends, wherever it comes.
pub(super) fn times(sequence: &[u32], layer: std::ops::Range<usize>) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), 0);
    let wanted = &sequence[layer];
    while at + wanted.len() <= sequence.len() {
        if sequence[at..].starts_with(wanted) {
            found.extend([at, at + wanted.len()]);
            at += wanted.len();
        } else {
            at += 1;
        }
    }
    found
}

/// The repeat that covers most; of those the one of the shortest period.
fn longest(sequence: &[u32], least: usize) -> Option<Repeat> {
    let mut best: Option<Repeat> = None;
    for period in periods(sequence) {
        if period < least {
            continue;
        }
        let mut at = 0;
        while at + period < sequence.len() {
            let same = (at..sequence.len() - period)
                .take_while(|i| sequence[*i] == sequence[i + period])
                .count();
            let times = same / period + 1;
            if times > 1 {
                let repeat = Repeat { start: at, period, times, rest: same % period };
                let covers = |repeat: &Repeat| repeat.period * repeat.times;
                if best.is_none_or(|best| covers(&repeat) > covers(&best)) {
                    best = Some(repeat);
                }
            }
            at += same + 1;
        }
    }
    best
}

/// Distances between a run of units and its next time, the shortest first.
fn periods(sequence: &[u32]) -> Vec<usize> {
    let mut found = std::collections::BTreeSet::new();
    for length in GUESSES {
        let mut last: HashMap<&[u32], usize> = HashMap::new();
        for (at, run) in sequence.windows(length).enumerate() {
            found.extend(last.insert(run, at).map(|before| at - before));
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, least: usize) -> Vec<(usize, usize, usize)> {
        let sequence: Vec<u32> = text.chars().map(u32::from).collect();
        let repeats = repeats(&sequence, least);
        repeats.iter().map(|r| (r.start, r.period, r.times)).collect()
    }

    #[test]
    fn equal_layers_are_found_wherever_they_are() {
        assert_eq!(found("abcdefg", 1), []);
        assert_eq!(found("xxabcabcabcyy", 2), [(2, 3, 3)]);
        assert_eq!(found("abcabcabzz", 2), [(0, 3, 2)]);
        assert_eq!(found("abababab", 2), [(0, 2, 4)], "not twice abab");
        assert_eq!(found("aaaaaa", 2), [], "a loop within a layer");
        assert_eq!(found("xabcabcyzdefdefdefw", 2), [(1, 3, 2), (9, 3, 3)]);
        assert_eq!(found("aabcaabcaabc", 2), [(0, 4, 3)], "units may come twice in a layer");
    }

    #[test]
    fn what_goes_on_after_the_last_time_is_told() {
        let sequence: Vec<u32> = "xabcabcabz".chars().map(u32::from).collect();
        assert_eq!(repeats(&sequence, 2), [Repeat { start: 1, period: 3, times: 2, rest: 2 }]);
    }
}
