//! The inside of a kernel: loads, expressions and stores of a group's members.
//!
//! Invariant: text is emitted in the members' order, and every name that is
//! used was declared in the same or an enclosing scope.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    Params,
    table::{element, expression, literal},
};
use crate::{
    fuse::{Group, Member},
    prim::{Compute, Operand, Prims, Source},
};

/// A loop over one dimension: its size and the variable that counts it.
#[derive(Debug, Clone)]
pub(super) struct Coordinate {
    pub(super) size: usize,
    pub(super) name: String,
}

/// A member with its walks over the kernel's coordinates.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) prim: usize,
    pub(super) place: Vec<usize>,
    pub(super) reads: Vec<(Source, Vec<usize>)>,
}

/// What the pieces of one kernel's text have in common.
pub(super) struct Body<'a> {
    pub(super) prims: &'a Prims,
    pub(super) coordinates: Vec<Coordinate>,
    pub(super) members: Vec<Placed>,
    /// Neighbours along the last coordinate that are computed together.
    pub(super) lanes: usize,
    pub(super) params: &'a Params,
}

impl Body<'_> {
    /// Loads of what `wanted` reads from memory, once each, as `float r[lanes]`.
    pub(super) fn loads(&self, out: &mut String, wanted: &BTreeSet<usize>) {
        for (k, (source, strides)) in self.external(wanted).iter().enumerate() {
            let (lanes, pointer) = (self.lanes, self.pointer(*source, strides));
            let step = strides.last().copied().unwrap_or(0);
            line(out, &format!("float r{k}[{lanes}];"));
            line(
                out,
                &match step {
                    1 if self.whole(strides) => format!("kiln_load<{lanes}>({pointer}, r{k});"),
                    _ => format!("kiln_gather<{lanes}>({pointer}, {step}, r{k});"),
                },
            );
        }
    }

    /// One declaration for each of `wanted`, for lane `v`.
    pub(super) fn compute(&self, out: &mut String, wanted: &BTreeSet<usize>) {
        let external = self.external(wanted);
        for member in self.chosen(wanted) {
            let name = |at: usize| self.lane_name(member, at, &external);
            if let Some(value) = self.value(member, &name) {
                line(out, &format!("const float t{} = {value};", member.prim));
            }
        }
    }

    /// What a sum adds up for lane `v`, with `wanted` computed.
    pub(super) fn summand(&self, sum: usize, wanted: &BTreeSet<usize>) -> String {
        let member = self.members.iter().find(|member| member.prim == sum);
        member.map_or_else(String::new, |m| self.lane_name(m, 0, &self.external(wanted)))
    }

    /// One value for the whole row: loads and computes `prim` in the row's scope.
    pub(super) fn row_value(&self, out: &mut String, prim: usize) {
        let Some(member) = self.members.iter().find(|member| member.prim == prim) else { return };
        let name = |at: usize| {
            let (source, strides) = &member.reads[at];
            self.inside(*source)
                .unwrap_or_else(|| format!("kiln_widen(*({}))", self.pointer(*source, strides)))
        };
        if let Some(value) = self.value(member, &name) {
            line(out, &format!("const float t{prim} = {value};"));
        }
    }

    /// Stores of `prims` from `float w[lanes]`.
    pub(super) fn stores(&self, out: &mut String, prims: &[usize]) {
        for member in self.members.iter().filter(|member| prims.contains(&member.prim)) {
            let prim = member.prim;
            let pointer = self.pointer(Source::Prim(prim), &member.place);
            line(out, &format!("kiln_store<{}>({pointer}, w{prim});", self.lanes));
        }
    }

    /// Stores a row's value.
    pub(super) fn store_row_value(&self, out: &mut String, prim: usize) {
        for member in self.members.iter().filter(|member| member.prim == prim) {
            let pointer = self.pointer(Source::Prim(prim), &member.place);
            line(out, &format!("kiln_set(*({pointer}), t{prim});"));
        }
    }

    /// The whole of an element-wise piece: loads, the lanes' loop, stores.
    /// `given` declares values that come from elsewhere, for lane `v`.
    pub(super) fn element_wise(
        &self,
        out: &mut String,
        wanted: &BTreeSet<usize>,
        given: &str,
        stored: &[usize],
    ) {
        self.loads(out, wanted);
        for prim in stored {
            line(out, &format!("float w{prim}[{}];", self.lanes));
        }
        line(out, "#pragma unroll");
        line(out, &format!("for (int v = 0; v < {}; ++v) {{", self.lanes));
        if !given.is_empty() {
            line(out, given);
        }
        self.compute(out, wanted);
        for prim in stored {
            line(out, &format!("w{prim}[v] = t{prim};"));
        }
        line(out, "}");
        self.stores(out, stored);
    }

    /// `prims` and the members that they are computed from, of those in `within`.
    pub(super) fn needed(&self, prims: &[usize], within: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut needed: BTreeSet<usize> = prims.iter().copied().collect();
        for member in self.members.iter().rev() {
            if needed.contains(&member.prim) {
                for (source, _) in &member.reads {
                    if let Source::Prim(prim) = source
                        && within.contains(prim)
                    {
                        needed.insert(*prim);
                    }
                }
            }
        }
        needed.retain(|prim| within.contains(prim));
        needed
    }

    fn chosen<'b>(&'b self, wanted: &BTreeSet<usize>) -> impl Iterator<Item = &'b Placed> {
        let wanted = wanted.clone();
        self.members.iter().filter(move |member| wanted.contains(&member.prim))
    }

    /// Distinct reads from memory of `wanted`, in order.
    fn external(&self, wanted: &BTreeSet<usize>) -> Vec<(Source, Vec<usize>)> {
        let mut found: Vec<(Source, Vec<usize>)> = Vec::new();
        for member in self.chosen(wanted) {
            for read in &member.reads {
                if self.inside(read.0).is_none() && !found.contains(read) {
                    found.push(read.clone());
                }
            }
        }
        found
    }

    /// The register of a source, if this kernel computes it.
    fn inside(&self, source: Source) -> Option<String> {
        match source {
            Source::Prim(prim) if self.members.iter().any(|member| member.prim == prim) => {
                Some(format!("t{prim}"))
            }
            _ => None,
        }
    }

    fn lane_name(&self, member: &Placed, at: usize, external: &[(Source, Vec<usize>)]) -> String {
        let read = &member.reads[at];
        self.inside(read.0).unwrap_or_else(|| {
            let k = external.iter().position(|other| other == read);
            k.map_or_else(String::new, |k| format!("r{k}[v]"))
        })
    }

    /// The expression of a map; sums and products are values given elsewhere.
    fn value(&self, member: &Placed, name: &dyn Fn(usize) -> String) -> Option<String> {
        let prim = &self.prims.list[member.prim];
        let Compute::Map(scalar, operands) = &prim.compute else { return None };
        let mut reads = 0..;
        let operands: Vec<String> = operands
            .iter()
            .map(|operand| match operand {
                Operand::Scalar(number) => literal(*number),
                Operand::Read(_) => reads.next().map(name).unwrap_or_default(),
            })
            .collect();
        Some(expression(*scalar, &operands, prim.dtype))
    }

    /// The address at the kernel's coordinates.
    fn pointer(&self, source: Source, strides: &[usize]) -> String {
        let steps = self.coordinates.iter().zip(strides).filter(|(_, stride)| **stride != 0);
        let mut pointer = self.params.name(source);
        for (coordinate, stride) in steps {
            // Writing to a String cannot fail.
            let _ = match stride {
                1 => write!(pointer, " + {}", coordinate.name),
                _ => write!(pointer, " + {} * {stride}", coordinate.name),
            };
        }
        pointer
    }

    /// Whether neighbours along the last coordinate start at a multiple of the lanes.
    fn whole(&self, strides: &[usize]) -> bool {
        is_whole(&self.coordinates, strides, self.lanes)
    }
}

fn is_whole(coordinates: &[Coordinate], strides: &[usize], lanes: usize) -> bool {
    let outer = coordinates.len().saturating_sub(1);
    let mut steps = coordinates.iter().zip(strides).take(outer);
    steps.all(|(coordinate, stride)| coordinate.size == 1 || stride.is_multiple_of(lanes))
}

/// How many neighbours to compute together: as many as 16 bytes of the shortest
/// type hold, if they divide the last dimension and lie at aligned addresses.
pub(super) fn lanes(
    prims: &Prims,
    coordinates: &[Coordinate],
    walks: &[(Source, Vec<usize>)],
    most: usize,
) -> usize {
    let last = coordinates.last().map_or(1, |coordinate| coordinate.size);
    let dense = || walks.iter().filter(|(_, strides)| strides.last() == Some(&1));
    let shortest = dense().map(|(source, _)| prims.dtype(*source).bytes()).min().unwrap_or(4);
    let mut lanes = most.min(16 / shortest as usize);
    while lanes > 1
        && !(last.is_multiple_of(lanes)
            && dense().all(|(_, strides)| is_whole(coordinates, strides, lanes)))
    {
        lanes /= 2;
    }
    lanes
}

/// All walks of a group, for collapsing: members' reads and places, in order.
pub(super) fn walks(group: &Group) -> Vec<Vec<usize>> {
    let of = |member: &Member| {
        let reads = member.reads.iter().map(|(_, strides)| strides.clone());
        reads.chain([member.place.clone()]).collect::<Vec<_>>()
    };
    group.members.iter().flat_map(of).collect()
}

/// Members of `group` with `walks` (in the order of [`walks`]) instead of their own.
pub(super) fn placed(group: &Group, walks: Vec<Vec<usize>>) -> Vec<Placed> {
    let mut walks = walks.into_iter();
    let mut next = || walks.next().unwrap_or_default();
    let of = |member: &Member| Placed {
        prim: member.prim,
        reads: member.reads.iter().map(|(source, _)| (*source, next())).collect(),
        place: next(),
    };
    group.members.iter().map(of).collect()
}

/// Declares coordinates that a row-major `index` over them has.
pub(super) fn declare(out: &mut String, coordinates: &[Coordinate], index: &str) {
    let mut inner: usize = coordinates.iter().map(|c| c.size).product();
    for (i, Coordinate { size, name }) in coordinates.iter().enumerate() {
        inner /= size;
        let mut value = index.to_owned();
        if inner > 1 {
            value = format!("{value} / {inner}");
        }
        if i > 0 {
            value = format!("({value}) % {size}");
        }
        line(out, &format!("const kiln_index {name} = {value};"));
    }
}

/// `const` pointers and element types of a kernel's parameters.
pub(super) fn parameter(source: Source, prims: &Prims, written: bool, name: &str) -> String {
    let constant = if written { "" } else { "const " };
    format!("{constant}{}* __restrict__ {name}", element(prims.dtype(source)))
}

/// Appends a line.
pub(super) fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}
