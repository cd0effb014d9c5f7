//! Maps: a thread for each few neighbours of the iteration space.

use std::collections::BTreeSet;

use super::{
    Emitted, Params,
    body::{Body, Coordinate, declare, lanes, line, placed, walks},
};
use crate::{
    fuse::Group,
    prim::{Prims, Source},
    strided::collapse,
};

const THREADS: usize = 256;

pub(super) fn emit(prims: &Prims, group: &Group, params: &Params) -> Emitted {
    let (shape, walks, _) = collapse(&group.shape, &walks(group), 0);
    let coordinates = named(&shape, "x");
    let members = placed(group, walks);
    let touched = touched(&members, params);
    let lanes = lanes(prims, &coordinates, &touched, 8);
    let total: usize = shape.iter().product();
    let body = Body { prims, coordinates, members, lanes, params };
    let mut text = String::new();
    line(
        &mut text,
        &format!(
            "const kiln_index i = ((kiln_index)blockIdx.x * {THREADS} + threadIdx.x) * {lanes};"
        ),
    );
    line(&mut text, &format!("if (i >= {total}LL) return;"));
    declare(&mut text, &body.coordinates, "i");
    let wanted: BTreeSet<usize> = body.members.iter().map(|member| member.prim).collect();
    body.element_wise(&mut text, &wanted, "", &params.writes);
    let blocks = total.div_ceil(lanes).div_ceil(THREADS);
    Emitted { text, grid: [blocks as u64, 1, 1], threads: THREADS as u32 }
}

/// Coordinates called `prefix0`, `prefix1`, ...
pub(super) fn named(shape: &[usize], prefix: &str) -> Vec<Coordinate> {
    let name =
        |(i, size): (usize, &usize)| Coordinate { size: *size, name: format!("{prefix}{i}") };
    shape.iter().enumerate().map(name).collect()
}

/// The walks that touch memory: reads from elsewhere, and what is written.
pub(super) fn touched(
    members: &[super::body::Placed],
    params: &Params,
) -> Vec<(Source, Vec<usize>)> {
    let mut touched = Vec::new();
    for member in members {
        touched.extend(
            member.reads.iter().filter(|(source, _)| params.reads.contains(source)).cloned(),
        );
        if params.writes.contains(&member.prim) {
            touched.push((Source::Prim(member.prim), member.place.clone()));
        }
    }
    touched
}
