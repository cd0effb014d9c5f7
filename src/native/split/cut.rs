//! Where a sequence of units is cut.
//!
//! Invariant: what is cut at depends on the sequence and on what flows in it,
//! never on where in the model it stands, so that equal layers are cut alike.

use std::{collections::BTreeSet, ops::Range};

use super::{
    estimate::Costs,
    flow::Flow,
    groups::Groups,
    order::{Unit, positions},
    pattern::Repeat,
    settings::Budget,
    symbols::Sizes,
};

/// What crosses each cut: values that are made before it and read after it, how
/// many and of how many bytes. What all callers give does not count.
pub(super) fn crossings(flow: &Flow<'_>, units: &[Unit], sizes: &Sizes<'_>) -> Vec<(usize, u64)> {
    let position = positions(flow, units);
    let mut change = vec![(0i64, 0i128); units.len() + 2];
    for (at, unit) in units.iter().enumerate() {
        for value in unit.iter().flat_map(|node| flow.needed(*node)) {
            let readers = flow.readers[value.0].iter().filter_map(|node| position[*node]);
            let last = match flow.is_output[value.0] {
                // The whole gives it from where it is made: nobody carries it.
                true if flow.readers[value.0].is_empty() => continue,
                _ => readers.max().unwrap_or(at),
            };
            let bytes = i128::from(sizes.bytes(&flow.graph.value(value).ty));
            (change[at + 1].0, change[at + 1].1) = (change[at + 1].0 + 1, change[at + 1].1 + bytes);
            (change[last + 1].0, change[last + 1].1) =
                (change[last + 1].0 - 1, change[last + 1].1 - bytes);
        }
    }
    let mut sum = (0i64, 0i128);
    let crossing = change.into_iter().map(|(count, bytes)| {
        sum = (sum.0 + count, sum.1 + bytes);
        (sum.0.max(0) as usize, u64::try_from(sum.1.max(0)).unwrap_or(u64::MAX))
    });
    crossing.take(units.len() + 1).collect()
}

/// The cuts before and after each time of `repeat`: where the least crosses them. Of
/// several such places the one from which a group comes soonest: that depends on
/// no more than what repeats, so that layers before and after a changed one are cut
/// alike.
pub(super) fn layers(
    repeat: Repeat,
    crossing: &[(usize, u64)],
    units: &[Unit],
    groups: &Groups,
) -> Vec<usize> {
    let Repeat { start, period, times, rest } = repeat;
    let cuts = |phase: usize| {
        let times = times - usize::from(phase > rest);
        (0..=times).map(move |time| start + phase + time * period)
    };
    let worst = |phase: usize| cuts(phase).skip(1).map(|cut| crossing[cut]).max();
    let is_group = |at: usize| units[at].iter().any(|node| groups.of[*node].is_some());
    let soon =
        |phase: usize| (0..period).find(|at| is_group(start + (phase + at) % period)).unwrap_or(0);
    let best = (0..period).min_by_key(|phase| (worst(*phase), soon(*phase), *phase > rest, *phase));
    cuts(best.unwrap_or(0)).collect()
}

/// Units that need no operation of a group, and whose values are read on both
/// sides of one, or by several: what all layers share, and what the first one takes.
pub(super) fn across(flow: &Flow<'_>, units: &[Unit], groups: &Groups) -> Vec<usize> {
    let position = positions(flow, units);
    let is_group = |unit: &Unit| unit.iter().any(|node| groups.of[*node].is_some());
    let mut depends = vec![false; units.len()];
    // Between which groups a unit is; a group is between nothing and nothing.
    let (mut stretch, mut next) = (Vec::with_capacity(units.len()), 0);
    for (at, unit) in units.iter().enumerate() {
        let before = unit.iter().flat_map(|node| flow.before(*node));
        let mut before = before.filter_map(|node| position[node]);
        depends[at] = is_group(unit) || before.any(|other| depends[other]);
        next += usize::from(is_group(unit));
        stretch.push(next);
        next += usize::from(is_group(unit));
    }
    let is_across = |unit: &Unit| {
        unit.iter().flat_map(|node| flow.needed(*node)).any(|value| {
            let readers = flow.readers[value.0].iter().filter_map(|node| position[*node]);
            readers.map(|reader| stretch[reader]).collect::<BTreeSet<_>>().len() > 1
        })
    };
    (0..units.len()).filter(|at| !depends[*at] && is_across(&units[*at])).collect()
}

/// Values of units before several times of `repeat` that more than one of them
/// reads: the units that make them.
pub(super) fn shared(flow: &Flow<'_>, units: &[Unit], repeat: Repeat) -> Vec<usize> {
    let position = positions(flow, units);
    let Repeat { start, period, times, .. } = repeat;
    let reads_often = |unit: &Unit| {
        unit.iter().flat_map(|node| flow.needed(*node)).any(|value| {
            let readers = flow.readers[value.0].iter().filter_map(|node| position[*node]);
            let inside = readers.filter(|at| (start..start + period * times).contains(at));
            inside.map(|at| (at - start) / period).collect::<BTreeSet<_>>().len() > 1
        })
    };
    (0..start).filter(|at| reads_often(&units[*at])).collect()
}

/// Further cuts of `range`, so that each part is within `budget`: of about equal
/// cost, each where least crosses.
pub(super) fn within(
    flow: &Flow<'_>,
    units: &[Unit],
    range: Range<usize>,
    costs: &Costs,
    budget: &Budget,
    sizes: &Sizes<'_>,
) -> Vec<usize> {
    let all = costs.sum(units[range.clone()].iter().flatten().copied());
    let times = |cost: f64, most: f64| if most > 0.0 { (cost / most).ceil() } else { 1.0 };
    let parts = times(all.compile_seconds, budget.most_seconds)
        .max(times(all.compile_bytes as f64, budget.most_bytes as f64))
        .max(times(all.operations as f64, budget.most_operations as f64));
    let parts = (parts as usize).min(range.len());
    if parts < 2 {
        return Vec::new();
    }
    // Seconds may all be zero: operations count too, a little.
    let weight = |unit: &Unit| {
        let (seconds, operations) = costs.added(unit);
        seconds + 1e-9 * (operations + 1) as f64
    };
    let mut before = vec![0.0];
    for unit in &units[range.clone()] {
        before.push(before[before.len() - 1] + weight(unit));
    }
    let crossing = crossings(flow, &units[range.clone()], sizes);
    let share = before[range.len()] / parts as f64;
    let mut cuts = Vec::new();
    for part in 1..parts {
        let target = share * part as f64;
        let after = cuts.last().copied().unwrap_or(0) + 1;
        let left = range.len() - (parts - part);
        let off = |at: usize| (before[at] - target).abs();
        let near = (after..=left).filter(|at| off(*at) <= share / 4.0);
        let best =
            near.min_by(|a, b| crossing[*a].cmp(&crossing[*b]).then(off(*a).total_cmp(&off(*b))));
        let nearest = || (after..=left).min_by(|a, b| off(*a).total_cmp(&off(*b)));
        cuts.extend(best.or_else(nearest));
    }
    cuts.into_iter().map(|cut| cut + range.start).collect()
}
