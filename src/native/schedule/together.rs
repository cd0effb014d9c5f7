//! What is done side by side in one launch: products of one matrix with several
//! others, the queries, keys and values of an attention, say; and rows of one
//! length, of which each waits for nothing but those. Each alone is too small to
//! keep a device busy.
//!
//! Invariant: what a launch computes needs nothing of what it computes, and a
//! product moves ahead only of what it does not wait for.

use std::collections::BTreeSet;

use super::{Group, Space, reads};
use crate::loops::{Def, Loops, Product};

/// Most parts of a launch.
const MOST_PARTS: usize = 4;

/// Joins such groups of `groups`, which are in an order in which they can run.
pub(super) fn together(loops: &Loops, mut groups: Vec<Group>) -> Vec<Group> {
    let mut done: BTreeSet<usize> = BTreeSet::new();
    let mut order = Vec::with_capacity(groups.len());
    while !groups.is_empty() {
        let mut parts = vec![groups.remove(0)];
        let mut next = 0;
        while next < groups.len() && parts.len() < MOST_PARTS {
            // What is written to an input waits for more than what it reads.
            let waits = groups[next].members.iter().any(|temp| loops.updated(*temp).is_some());
            let fits = !waits
                && (beside(loops, &parts[0], &groups[next]) || are_rows(&parts[0], &groups[next]))
                && is_ready(loops, &done, &groups[next]);
            if fits {
                parts.push(groups.remove(next));
            } else {
                next += 1;
            }
        }
        done.extend(parts.iter().flat_map(|part| &part.members));
        order.push(if parts.len() > 1 { joined(parts) } else { parts.remove(0) });
    }
    order
}

fn joined(parts: Vec<Group>) -> Group {
    let mut members: Vec<usize> = parts.iter().flat_map(|part| part.members.clone()).collect();
    members.sort_unstable();
    Group { space: Space::Together { parts }, members }
}

/// Whether all that `group` reads is `done`, or its own.
fn is_ready(loops: &Loops, done: &BTreeSet<usize>, group: &Group) -> bool {
    let mut read = group.members.iter().flat_map(|member| reads(loops, *member));
    read.all(|temp| done.contains(&temp) || group.members.contains(&temp))
}

/// Whether both walk rows of one length that is known: then they want as many threads.
fn are_rows(a: &Group, b: &Group) -> bool {
    let (Space::Rows { columns, .. }, Space::Rows { columns: other, .. }) = (&a.space, &b.space)
    else {
        return false;
    };
    columns == other && columns.known().is_some()
}

/// Whether both multiply the same matrix with one that lies alike.
fn beside(loops: &Loops, a: &Group, b: &Group) -> bool {
    let product = |group: &Group| -> Option<Product> {
        let Space::Product { temp } = group.space else { return None };
        match &loops.temps[temp].def {
            Def::Product(product) => Some((**product).clone()),
            _ => None,
        }
    };
    let (Some(a), Some(b)) = (product(a), product(b)) else { return false };
    let dtype = |product: &Product| loops.dtype(product.b.source);
    let lies = |product: &Product| (product.b.reduced.is(1), product.b.outer.is(1));
    let same =
        a.a == b.a && a.m == b.m && a.k == b.k && dtype(&a) == dtype(&b) && lies(&a) == lies(&b);
    let one = a.batch.is(1) && b.batch.is(1) && a.groups.is_none() && b.groups.is_none();
    same && one && a.n.known().is_some() && b.n.known().is_some()
}
