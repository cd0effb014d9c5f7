//! Element-wise kernels: a thread for each chunk of neighbours.
//!
//! Invariant: a chunk is whole: its lanes divide the number of elements.

use std::collections::BTreeMap;

use super::{
    Emitted, Kernel,
    body::{Body, CHUNK, LANE},
    params::Params,
};
use crate::{
    loops::Loops,
    schedule::Fused,
    size::{Atom, Bounds, Size},
};

/// Threads of a block.
const THREADS: i64 = 256;
/// Chunks that keep a device busy: fewer elements are walked in smaller ones.
const BUSY: i64 = 64 * 1024;

pub(super) fn emit(loops: &mut Loops, fused: &Fused, stored: &[usize], name: &str) -> Emitted {
    let numel = &fused.extents[0];
    let lanes = lanes(numel, 8);
    let split = Split::of(loops, fused, 0, lanes);
    let mut params = Params::default();
    let mut body = Body::new(&loops.exprs, &mut params, lanes, BTreeMap::new());
    for temp in stored {
        let (place, value) = &split.places[temp];
        body.store(*temp, place, *value, super::element_of(loops, *temp));
    }
    let (outer, inner) = (body.take_outer(), body.take_inner());
    let chunks = numel.div_floor(&Size::from(lanes));
    let limit = params.size(&chunks, &|_| String::new());
    let text = format!(
        "const kiln_index c = (kiln_index)blockIdx.x * {THREADS} + threadIdx.x;\n\
         if (c >= {limit}) return;\n{outer}{inner}"
    );
    let blocks = chunks.div_ceil(&Size::from(THREADS));
    Emitted {
        before: String::new(),
        kernel: Kernel::plain(name, "map", params, text, THREADS),
        grid: blocks,
        variant: format!("{lanes} elements a thread"),
    }
}

/// How many neighbours are one chunk: a power of two that divides `extent`.
pub(super) fn lanes(extent: &Size, most: i64) -> i64 {
    let mut lanes = extent.power_of_two(most);
    if let Some(known) = extent.known() {
        while lanes > 1 && known / lanes < BUSY && lanes > 4 {
            lanes /= 2;
        }
    }
    lanes.max(1)
}

/// A group's expressions with one variable in chunks and lanes.
pub(super) struct Split {
    pub(super) reductions: Vec<(usize, crate::loops::Id)>,
    pub(super) places: BTreeMap<usize, (Size, crate::loops::Id)>,
}

impl Split {
    /// The number of a reduction within its kernel: equal kernels have equal text.
    pub(super) fn place_of(&self, temp: usize) -> usize {
        self.reductions.iter().position(|(other, _)| *other == temp).unwrap_or_default()
    }

    /// `var` becomes `chunk * lanes + lane`.
    pub(super) fn of(loops: &mut Loops, fused: &Fused, var: usize, lanes: i64) -> Self {
        let along = match fused.extents.get(var) {
            Some(extent) if extent.is(1) => Size::default(),
            _ if lanes == 1 => Size::var(CHUNK),
            _ => &(&Size::var(CHUNK) * &Size::from(lanes)) + &Size::var(LANE),
        };
        let mut extents = vec![Size::from(1); LANE + 1];
        extents[..fused.extents.len()].clone_from_slice(&fused.extents);
        extents[CHUNK] =
            fused.extents.get(var).map_or(Size::from(1), |e| e.div_floor(&Size::from(lanes)));
        extents[LANE] = Size::from(lanes);
        let vars: Vec<Size> = (0..fused.extents.len())
            .map(|v| if v == var { along.clone() } else { Size::var(v) })
            .collect();
        let symbols = loops.symbols.clone();
        let bounds = Bounds { symbols: &symbols, vars: &extents };
        let mut id = |id| loops.exprs.substitute(id, &bounds, &vars, &mut |_, _, _| None);
        let reductions = fused.reductions.iter().map(|(temp, of)| (*temp, id(*of))).collect();
        let places = fused.places.iter().map(|(temp, (place, value))| {
            let place = place.substituted(&bounds, &|atom| match atom {
                Atom::Var(var) => vars.get(*var).cloned(),
                _ => None,
            });
            (*temp, (place, id(*value)))
        });
        let places = places.collect();
        Self { reductions, places }
    }
}
