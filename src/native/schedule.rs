//! Partitions temporaries into kernels.
//!
//! Two kernels become one where they walk one space and every element that one
//! leaves to the other is read where it was computed: it never leaves a register.
//!
//! Invariant: every temporary is in exactly one group; groups run in order; a
//! group loads none of its own temporaries.

mod together;

use std::collections::{BTreeMap, BTreeSet};

use kiln_proto::{Failure, FailureKind};

use crate::{
    loops::{COLUMN, Def, Domain, Expr, Id, Loops, ROW, Source, domain_of},
    size::{Bounds, Size},
    updates::reads_in_place,
};

/// Most temporaries of a kernel.
const MOST_MEMBERS: usize = 64;
/// Most buffers that a kernel reads: it bounds registers and parameters.
const MOST_READS: usize = 24;

/// What a kernel walks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Space {
    /// Each element by itself: one variable.
    Map { numel: Size },
    /// Rows and columns: two variables.
    Rows { rows: Size, columns: Size },
    /// Batch, row and column of the product in that temporary: three variables.
    Product { temp: usize },
    /// Batch, row and column of two products of one matrix, in those temporaries, whose
    /// elements meet: three variables.
    Twins { temps: [usize; 2] },
    /// Products of one matrix, or rows of one length, side by side in one launch: a
    /// group each.
    Together { parts: Vec<Group> },
    /// Batch, head, row and column of the attention in that temporary: four variables.
    Attention { temp: usize },
    /// One temporary by itself: a scan, a selection.
    Single { temp: usize },
}

/// A kernel-to-be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) space: Space,
    /// Temporaries, ascending.
    pub(crate) members: Vec<usize>,
}

/// A group over its space's variables, its own temporaries forwarded.
#[derive(Debug, Clone)]
pub(crate) struct Fused {
    /// Of the space's variables.
    pub(crate) extents: Vec<Size>,
    /// What each reduction gathers, by temporary, in order.
    pub(crate) reductions: Vec<(usize, Id)>,
    /// Where each temporary's element is, and what it is.
    pub(crate) places: BTreeMap<usize, (Size, Id)>,
}

/// Groups in an order in which they can run. Without `fusion`, one for each temporary.
pub(crate) fn schedule(loops: &mut Loops, fusion: bool) -> Result<Vec<Group>, Failure> {
    let count = loops.temps.len();
    let reads: Vec<BTreeSet<usize>> = (0..count).map(|temp| reads(loops, temp)).collect();
    let after = (0..count).map(|temp| readers_before(loops, temp)).collect();
    let groups = (0..count).map(|temp| Some(single(loops, temp))).collect();
    let group_of = (0..count).collect();
    let mut scheduler = Scheduler { loops, reads, after, groups, group_of };
    if fusion {
        for temp in 0..count {
            for read in scheduler.reads[temp].clone() {
                scheduler.merge(scheduler.group_of[read], scheduler.group_of[temp]);
            }
        }
    }
    let order = scheduler.in_order()?;
    Ok(if fusion { together::together(loops, order) } else { order })
}

/// The temporaries that a temporary reads.
fn reads(loops: &Loops, temp: usize) -> BTreeSet<usize> {
    sources(loops, temp)
        .into_iter()
        .filter_map(|source| match source {
            Source::Temp(temp) => Some(temp),
            Source::Input(_) => None,
        })
        .collect()
}

/// The temporaries that read what an input was before this one is written to it.
fn readers_before(loops: &Loops, temp: usize) -> BTreeSet<usize> {
    let Some(input) = loops.updated(temp) else { return BTreeSet::new() };
    let reads = |other: &usize| sources(loops, *other).contains(&Source::Input(input));
    (0..loops.temps.len()).filter(|other| *other != temp).filter(reads).collect()
}

/// Everything that a temporary reads.
pub(crate) fn sources(loops: &Loops, temp: usize) -> BTreeSet<Source> {
    let mut sources = BTreeSet::new();
    let mut roots = Vec::new();
    match &loops.temps[temp].def {
        Def::Map(id) => roots.push(*id),
        Def::Reduce { of, .. } | Def::Scan { of, .. } | Def::Runs { of, .. } => roots.push(*of),
        Def::TopK { of, runs, .. } => {
            roots.push(*of);
            sources.extend(runs.map(Source::Temp));
        }
        Def::Product(product) => sources.extend(product.sources()),
        Def::Attention(attention) => {
            sources.extend([attention.q.source, attention.k.source, attention.v.source]);
            roots.extend(attention.mask);
        }
    }
    for id in loops.exprs.reachable(roots) {
        if let Expr::Load { source, .. } = loops.exprs.get(id) {
            sources.insert(*source);
        }
    }
    sources
}

fn single(loops: &Loops, temp: usize) -> Group {
    let space = match &loops.temps[temp].def {
        Def::Map(_) => Space::Map { numel: loops.temps[temp].numel.clone() },
        Def::Reduce { rows, columns, .. } => {
            Space::Rows { rows: rows.clone(), columns: columns.clone() }
        }
        Def::Product(_) => Space::Product { temp },
        Def::Attention(_) => Space::Attention { temp },
        Def::Scan { .. } | Def::TopK { .. } | Def::Runs { .. } => Space::Single { temp },
    };
    Group { space, members: vec![temp] }
}

struct Scheduler<'a> {
    loops: &'a mut Loops,
    reads: Vec<BTreeSet<usize>>,
    /// For each temporary those that it must wait for, though it reads nothing of them.
    after: Vec<BTreeSet<usize>>,
    groups: Vec<Option<Group>>,
    group_of: Vec<usize>,
}

impl Scheduler<'_> {
    /// Joins the group `a` with `b`, which reads it, if one kernel can be both.
    fn merge(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let (Some(from), Some(to)) = (&self.groups[a], &self.groups[b]) else { return };
        let Some(space) = joined(self.loops, from, to) else { return };
        let mut members = [from.members.as_slice(), &to.members].concat();
        members.sort_unstable();
        let group = Group { space, members };
        if !self.fits(&group) || self.reaches_around(a, b) {
            return;
        }
        match fused(self.loops, &group) {
            Some(fused) if keeps_what_it_reads(self.loops, &group, &fused) => {}
            _ => return,
        }
        for member in &group.members {
            self.group_of[*member] = b;
        }
        self.groups[a] = None;
        self.groups[b] = Some(group);
    }

    fn fits(&self, group: &Group) -> bool {
        let outside: BTreeSet<Source> = group
            .members
            .iter()
            .flat_map(|member| sources(self.loops, *member))
            .filter(|source| !matches!(source, Source::Temp(t) if group.members.contains(t)))
            .collect();
        group.members.len() <= MOST_MEMBERS && outside.len() <= MOST_READS
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
        let reads = members.flat_map(|m| self.reads[*m].iter().chain(&self.after[*m]));
        reads.map(|temp| self.group_of[*temp]).filter(|other| *other != group).collect()
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

/// Whether a kernel that writes to an input reads each element of that before it writes it:
/// by the same thread, and for nothing that is computed after it. A load under a guard is
/// another one than the same load without.
fn keeps_what_it_reads(loops: &Loops, group: &Group, fused: &Fused) -> bool {
    group.members.iter().all(|member| {
        let Some(input) = loops.updated(*member) else { return true };
        let source = Source::Input(input);
        if !group.members.iter().any(|other| sources(loops, *other).contains(&source)) {
            return true;
        }
        // Rows are walked several times, some of them by several threads.
        let Space::Map { .. } = group.space else { return false };
        let later = fused.places.iter().filter(|(other, _)| *other > member);
        let loads = |id: Id| {
            let mut parts = loops.exprs.reachable([id]).into_iter();
            parts.any(|part| matches!(loops.exprs.get(part), Expr::Load { source: of, .. } if *of == source))
        };
        if later.into_iter().any(|(_, (_, value))| loads(*value)) {
            return false;
        }
        let roots = fused.places.values().map(|(_, value)| *value);
        reads_in_place(loops, roots, input, &fused.places[member].0)
    })
}

/// The space of a kernel that computes what both do.
fn joined(loops: &Loops, a: &Group, b: &Group) -> Option<Space> {
    let space = match (&a.space, &b.space) {
        (Space::Single { .. }, _) | (_, Space::Single { .. }) => return None,
        (Space::Map { numel }, Space::Map { numel: other }) => {
            return (numel == other).then(|| a.space.clone());
        }
        (Space::Rows { .. }, Space::Rows { .. }) => {
            return (a.space == b.space).then(|| a.space.clone());
        }
        (space, Space::Map { .. }) => space,
        // What a product or an attention reads is read by tiles.
        (Space::Map { .. }, space @ Space::Rows { .. }) => space,
        _ => return None,
    };
    let members = a.members.iter().chain(&b.members);
    let placed = |temp: &usize| place(loops, space, *temp).is_some();
    members.into_iter().all(placed).then(|| space.clone())
}

/// Extents of the variables of `space`.
pub(crate) fn extents(loops: &Loops, space: &Space) -> Vec<Size> {
    match space {
        Space::Map { numel } => vec![numel.clone()],
        Space::Rows { rows, columns } => vec![rows.clone(), columns.clone()],
        Space::Product { temp } | Space::Twins { temps: [temp, _] } => {
            match &loops.temps[*temp].def {
                Def::Product(p) => vec![p.batch.clone(), p.m.clone(), p.n.clone()],
                _ => Vec::new(),
            }
        }
        Space::Together { .. } => Vec::new(),
        Space::Attention { temp } => match &loops.temps[*temp].def {
            Def::Attention(a) => {
                vec![a.batch.clone(), Size::from(a.heads), a.rows.clone(), Size::from(a.e)]
            }
            _ => Vec::new(),
        },
        Space::Single { temp } => match &loops.temps[*temp].def {
            Def::Scan { rows, columns, .. }
            | Def::TopK { rows, columns, .. }
            | Def::Runs { rows, columns, .. } => {
                vec![rows.clone(), columns.clone()]
            }
            _ => Vec::new(),
        },
    }
}

/// Where in its buffer a temporary's element of a point in `space` is.
fn place(loops: &Loops, space: &Space, temp: usize) -> Option<Size> {
    let extents = extents(loops, space);
    let var = |var: usize| match extents[var].is(1) {
        true => Size::default(),
        false => Size::var(var),
    };
    let total = |upto: usize| extents[..upto].iter().fold(Size::from(1), |all, e| &all * e);
    let numel = &loops.temps[temp].numel;
    match space {
        Space::Map { .. } => (*numel == extents[0]).then(|| Size::var(0)),
        Space::Rows { .. } if *numel == total(2) && !is_reduction(loops, temp) => {
            Some(&(&var(ROW) * &extents[1]) + &var(COLUMN))
        }
        Space::Rows { .. } => (*numel == extents[0]).then(|| var(ROW)),
        Space::Product { .. } | Space::Twins { .. } => {
            let row = &(&var(0) * &extents[1]) + &var(1);
            (*numel == total(3)).then(|| &(&row * &extents[2]) + &var(2))
        }
        Space::Attention { temp: of } => {
            let by_head = matches!(&loops.temps[*of].def, Def::Attention(a) if a.by_head);
            let (outer, inner) = if by_head { (1, 2) } else { (2, 1) };
            let row = &(&var(0) * &extents[outer]) + &var(outer);
            let head = &(&row * &extents[inner]) + &var(inner);
            (*numel == total(4)).then(|| &(&head * &extents[3]) + &var(3))
        }
        Space::Single { .. } => Some(Size::default()),
        Space::Together { .. } => None,
    }
}

fn is_reduction(loops: &Loops, temp: usize) -> bool {
    matches!(loops.temps[temp].def, Def::Reduce { .. })
}

/// `group` over its space, if no member loads another but where it was computed.
pub(crate) fn fused(loops: &mut Loops, group: &Group) -> Option<Fused> {
    let extents = extents(loops, &group.space);
    let symbols = loops.symbols.clone();
    let bounds = Bounds { symbols: &symbols, vars: &extents };
    let mut fused =
        Fused { extents: extents.clone(), reductions: Vec::new(), places: BTreeMap::new() };
    for member in &group.members {
        let place = place(loops, &group.space, *member)?;
        let (def, dtype) = (loops.temps[*member].def.clone(), loops.temps[*member].dtype);
        let (of, vars) = match &def {
            Def::Map(of) => (Some(*of), vec![place.clone()]),
            Def::Reduce { of, .. } => {
                let column = if extents[1].is(1) { Size::default() } else { Size::var(COLUMN) };
                (Some(*of), vec![place.clone(), column])
            }
            Def::Scan { of, .. } | Def::TopK { of, .. } | Def::Runs { of, .. } => {
                (Some(*of), vec![Size::var(ROW), Size::var(COLUMN)])
            }
            Def::Product(product) => {
                if product.sources().any(|source| is_member(group, source)) {
                    return None;
                }
                (None, Vec::new())
            }
            Def::Attention(_) => {
                if sources(loops, *member).iter().any(|source| is_member(group, *source)) {
                    return None;
                }
                (None, Vec::new())
            }
        };
        let mut stuck = false;
        let of = of.map(|of| {
            loops.exprs.substitute(of, &bounds, &vars, &mut |_, source, index| {
                let Source::Temp(temp) = source else { return None };
                let (place, value) = fused.places.get(&temp)?;
                stuck |= place != index;
                Some(*value)
            })
        });
        if stuck {
            return None;
        }
        let value = match (&def, of) {
            (Def::Map(_), Some(of)) => of,
            (Def::Reduce { domain, how, .. }, Some(of)) => {
                fused.reductions.push((*member, of));
                let positions = how.gives_positions();
                result(loops, *member, if positions { Domain::Int } else { *domain }, dtype)
            }
            (_, Some(of)) => of,
            (Def::Product(product), None) => {
                // Sums are in the arithmetic of what is multiplied.
                let domain = domain_of(loops.dtype(product.a.source));
                result(loops, *member, domain, dtype)
            }
            (_, None) => result(loops, *member, Domain::Float, dtype),
        };
        fused.places.insert(*member, (place, value));
    }
    Some(fused)
}

fn is_member(group: &Group, source: Source) -> bool {
    matches!(source, Source::Temp(temp) if group.members.contains(&temp))
}

/// What a reduction or product gives, as its buffer would hold it.
fn result(loops: &mut Loops, temp: usize, domain: Domain, dtype: kiln_proto::graph::DType) -> Id {
    let exprs = &mut loops.exprs;
    let result = exprs.add(Expr::Result(temp, domain));
    let result = exprs.convert(result, domain_of(dtype));
    exprs.rounded(result, dtype)
}
