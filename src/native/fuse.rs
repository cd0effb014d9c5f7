//! Partitions primitives into kernels.
//!
//! Invariant: every primitive is in exactly one group; groups run in order;
//! within a group, a primitive reads another at its own coordinates only, so
//! the value never leaves a register.

use std::collections::{BTreeMap, BTreeSet};

use kiln_proto::{Failure, FailureKind};

use super::{
    prim::{Compute, Prims, Source},
    strided::{Strided, row_major, same_walk},
};

/// Most primitives of a kernel: bounds its parameters and registers.
const MOST_MEMBERS: usize = 64;

/// How a kernel walks its iteration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each element by itself.
    Map,
    /// Rows of the dimensions from `lead` on, with sums along them.
    Rows { lead: usize },
    /// Tiles of a product, and what follows from its elements.
    Product,
}

/// A primitive in a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Index of the primitive.
    pub(super) prim: usize,
    /// Strides of its own dense output over the iteration space.
    pub(super) place: Vec<usize>,
    /// Strides of its reads over the iteration space; none for a product,
    /// whose operands are walked by the tiles.
    pub(super) reads: Vec<(Source, Vec<usize>)>,
}

/// A kernel-to-be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) kind: Kind,
    /// The iteration space.
    pub(super) shape: Vec<usize>,
    /// In the order in which they are computed.
    pub(super) members: Vec<Member>,
}

impl Group {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn rows(&self) -> usize {
        match self.kind {
            Kind::Rows { lead } => self.shape[..lead].iter().product(),
            Kind::Map | Kind::Product => self.elements(),
        }
    }

    /// Whether the group computes `prim`.
    pub(super) fn has(&self, prim: usize) -> bool {
        self.members.iter().any(|member| member.prim == prim)
    }
}

/// Groups in an order in which they can run. Without `fusion`, one for each primitive.
pub(super) fn fuse(prims: &Prims, fusion: bool) -> Result<Vec<Group>, Failure> {
    let mut fuser = Fuser {
        prims,
        groups: (0..prims.list.len()).map(|prim| Some(single(prims, prim))).collect(),
        group_of: (0..prims.list.len()).collect(),
    };
    if fusion {
        for prim in 0..prims.list.len() {
            for read in prims.list[prim].reads() {
                if let Source::Prim(producer) = read.source {
                    fuser.merge(fuser.group_of[producer], fuser.group_of[prim]);
                }
            }
        }
    }
    fuser.in_order()
}

fn single(prims: &Prims, index: usize) -> Group {
    let prim = &prims.list[index];
    let reads = || prim.reads().iter().map(|a| (a.source, a.walk.strides.clone())).collect();
    let (kind, shape, place, reads) = match &prim.compute {
        Compute::Map(..) => (Kind::Map, prim.shape.clone(), row_major(&prim.shape), reads()),
        Compute::Sum { read, lead } => {
            let mut place = row_major(&prim.shape);
            place.resize(read.walk.shape.len(), 0);
            (Kind::Rows { lead: *lead }, read.walk.shape.clone(), place, reads())
        }
        Compute::Product { .. } => {
            (Kind::Product, prim.shape.clone(), row_major(&prim.shape), Vec::new())
        }
    };
    Group { kind, shape, members: vec![Member { prim: index, place, reads }] }
}

struct Fuser<'a> {
    prims: &'a Prims,
    groups: Vec<Option<Group>>,
    group_of: Vec<usize>,
}

impl Fuser<'_> {
    /// Joins the group `a` with `b`, which reads it, if one kernel can be both.
    fn merge(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let (Some(from), Some(to)) = (&self.groups[a], &self.groups[b]) else { return };
        let Some(group) = joined(from, to).filter(|group| self.is_valid(group)) else { return };
        if self.reaches_around(a, b) {
            return;
        }
        for member in &group.members {
            self.group_of[member.prim] = b;
        }
        self.groups[a] = None;
        self.groups[b] = Some(group);
    }

    /// Whether `b` needs `a` through a third group: joined, they would wait for themselves.
    fn reaches_around(&self, a: usize, b: usize) -> bool {
        let mut waiting: Vec<usize> =
            self.dependencies(b).into_iter().filter(|group| *group != a).collect();
        let mut seen: BTreeSet<usize> = waiting.iter().copied().collect();
        while let Some(group) = waiting.pop() {
            for next in self.dependencies(group) {
                if next == a {
                    return true;
                }
                if seen.insert(next) {
                    waiting.push(next);
                }
            }
        }
        false
    }

    fn dependencies(&self, group: usize) -> BTreeSet<usize> {
        let members = self.groups[group].iter().flat_map(|group| &group.members);
        let reads = members.flat_map(|member| self.prims.list[member.prim].reads());
        reads
            .filter_map(|read| match read.source {
                Source::Prim(prim) => Some(self.group_of[prim]),
                Source::Input(_) => None,
            })
            .filter(|other| *other != group)
            .collect()
    }

    /// Whether every read between members is at the reader's own coordinates.
    fn is_valid(&self, group: &Group) -> bool {
        let places: BTreeMap<usize, &Vec<usize>> =
            group.members.iter().map(|member| (member.prim, &member.place)).collect();
        group.members.len() <= MOST_MEMBERS
            && group.members.iter().all(|member| match &self.prims.list[member.prim].compute {
                Compute::Product { a, b } => [a, b].iter().all(|access| match access.source {
                    Source::Prim(prim) => !places.contains_key(&prim),
                    Source::Input(_) => true,
                }),
                Compute::Map(..) | Compute::Sum { .. } => {
                    member.reads.iter().all(|(source, strides)| match source {
                        Source::Prim(prim) => places
                            .get(prim)
                            .is_none_or(|place| same_walk(&group.shape, strides, place)),
                        Source::Input(_) => true,
                    })
                }
            })
    }

    fn in_order(self) -> Result<Vec<Group>, Failure> {
        let mut left: BTreeMap<usize, BTreeSet<usize>> = (0..self.groups.len())
            .filter(|index| self.groups[*index].is_some())
            .map(|index| (index, self.dependencies(index)))
            .collect();
        let mut groups = self.groups;
        let mut order = Vec::with_capacity(left.len());
        while let Some(next) = left.iter().find(|(_, deps)| deps.is_empty()).map(|(i, _)| *i) {
            left.remove(&next);
            for deps in left.values_mut() {
                deps.remove(&next);
            }
            order.extend(groups[next].take());
        }
        if left.is_empty() {
            return Ok(order);
        }
        let why = format!("a bug of `native`: {} kernels wait for each other", left.len());
        Err(Failure::new(FailureKind::Crashed, why))
    }
}

/// One group that computes what both do, over one iteration space.
fn joined(a: &Group, b: &Group) -> Option<Group> {
    let (host, guest) = match (a.kind, b.kind) {
        (Kind::Map, Kind::Map) => return moved_into(b, a).or_else(|| moved_into(a, b)),
        (_, Kind::Map) => (a, b),
        (Kind::Map, _) => (b, a),
        (Kind::Rows { .. }, Kind::Rows { .. }) if a.kind == b.kind && a.shape == b.shape => {
            return Some(union(a, b.members.clone()));
        }
        _ => return None,
    };
    moved_into(host, guest)
}

/// `host` with the members of the map `guest`, re-walked over `host`'s space.
fn moved_into(host: &Group, guest: &Group) -> Option<Group> {
    let lead = match host.kind {
        _ if guest.elements() == host.elements() => host.shape.len(),
        Kind::Rows { lead } if guest.elements() == host.rows() => lead,
        _ => return None,
    };
    let moved = |strides: &Vec<usize>| {
        let walk = Strided { shape: guest.shape.clone(), strides: strides.clone() };
        let mut strides = walk.reshaped(&host.shape[..lead])?.strides;
        // One value for a whole row.
        strides.resize(host.shape.len(), 0);
        Some(strides)
    };
    let members = guest.members.iter().map(|member| {
        let reads = member.reads.iter().map(|(source, strides)| Some((*source, moved(strides)?)));
        Some(Member {
            prim: member.prim,
            place: moved(&member.place)?,
            reads: reads.collect::<Option<_>>()?,
        })
    });
    Some(union(host, members.collect::<Option<_>>()?))
}

fn union(host: &Group, more: Vec<Member>) -> Group {
    let mut members = [host.members.clone(), more].concat();
    // Primitives are numbered in an order in which they can run.
    members.sort_by_key(|member| member.prim);
    Group { kind: host.kind, shape: host.shape.clone(), members }
}
