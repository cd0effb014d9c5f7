//! Two products of one matrix whose elements meet in what follows: a gate and what it
//! lets through. As one kernel neither leaves the registers.
//!
//! Invariant: what the first of them gives is read by the kernel of the second alone.

use std::collections::BTreeSet;

use kiln_proto::Target;

use super::{
    choose::{self, Choice, Problem},
    problem,
};
use crate::{
    codegen::readers,
    loops::{Def, Loops, Product, Source},
    schedule::{self, Group, Space},
};

/// `groups` with such pairs joined where that is faster than one after the other.
pub(in crate::codegen) fn twins(loops: &mut Loops, groups: &[Group], target: Target) -> Vec<Group> {
    let readers = readers(loops, groups);
    let mut joined: Vec<Option<Group>> = groups.iter().cloned().map(Some).collect();
    for (index, group) in groups.iter().enumerate() {
        let is_kept = |temp: &usize| loops.outputs.contains(temp);
        if group.members.iter().any(is_kept) {
            continue;
        }
        let mut of: Vec<usize> =
            group.members.iter().flat_map(|temp| &readers[*temp]).copied().collect();
        of.retain(|reader| *reader != index);
        of.dedup();
        let [reader] = of[..] else { continue };
        let Some(other) = &joined[reader] else { continue };
        if writes_what_is_read(loops, group, &groups[index + 1..reader]) {
            continue;
        }
        if let Some(both) = twin(loops, group, other, target) {
            joined[index] = None;
            joined[reader] = Some(both);
        }
    }
    joined.into_iter().flatten().collect()
}

/// Whether one of `between`, which `group` would come after, writes to an input that it reads.
fn writes_what_is_read(loops: &Loops, group: &Group, between: &[Group]) -> bool {
    let reads: BTreeSet<Source> =
        group.members.iter().flat_map(|temp| schedule::sources(loops, *temp)).collect();
    let mut written = between.iter().flat_map(|group| &group.members);
    written
        .any(|temp| loops.updated(*temp).is_some_and(|input| reads.contains(&Source::Input(input))))
}

fn twin(loops: &mut Loops, first: &Group, second: &Group, target: Target) -> Option<Group> {
    let (Space::Product { temp: a }, Space::Product { temp: b }) = (&first.space, &second.space)
    else {
        return None;
    };
    let mut members = [first.members.as_slice(), &second.members].concat();
    members.sort_unstable();
    if members.iter().any(|temp| loops.updated(*temp).is_some()) {
        return None;
    }
    choice(loops, [*a, *b], target)?;
    let group = Group { space: Space::Twins { temps: [*a, *b] }, members };
    schedule::fused(loops, &group).map(|_| group)
}

/// The problem and the kernel of the products in `temps`, if they can be twins.
pub(super) fn choice(
    loops: &Loops,
    temps: [usize; 2],
    target: Target,
) -> Option<(Problem, Choice)> {
    let [first, second] = temps.map(|temp| product(loops, temp));
    let (first, second) = (first?, second?);
    let same = first.a == second.a
        && [&first.batch, &first.m, &first.n, &first.k]
            == [&second.batch, &second.m, &second.n, &second.k]
        && [&first.b.outer, &first.b.reduced, &first.b.offset]
            == [&second.b.outer, &second.b.reduced, &second.b.offset]
        && first.groups == second.groups;
    let problems = [first, second].map(|product| problem(loops, product));
    (same && problems[0] == problems[1])
        .then(|| choose::twin(&problems[0], target))
        .flatten()
        .map(|choice| (problems[0], choice))
}

pub(super) fn product(loops: &Loops, temp: usize) -> Option<&Product> {
    match &loops.temps[temp].def {
        Def::Product(product) => Some(product),
        _ => None,
    }
}
