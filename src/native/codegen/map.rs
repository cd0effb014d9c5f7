//! Element-wise kernels: a thread for each chunk of neighbours.
//!
//! Invariant: a chunk is whole: its lanes divide the number of elements.

use std::collections::BTreeMap;

use kiln_proto::graph::DType;

use super::{
    Emitted, Kernel,
    body::{Body, CHUNK, LANE},
    params::Params,
};
use crate::{
    core::Fun,
    loops::{Expr, Id, Loops, Source},
    schedule::Fused,
    size::{Atom, Bounds, Size},
};

/// Threads of a block.
const THREADS: i64 = 256;
/// Chunks that keep a device busy: fewer elements are walked in smaller ones.
const BUSY: i64 = 64 * 1024;
/// Places that a thread looks at where few of many are changed.
const LOOKED_AT: i64 = 16;
/// Threads of a warp.
const WARP: i64 = 32;

pub(super) fn emit(loops: &mut Loops, fused: &Fused, stored: &[usize], name: &str) -> Emitted {
    let numel = &fused.extents[0];
    let lanes = lanes(numel, 8);
    let split = Split::of(loops, fused, 0, lanes);
    if let Some(sparse) = Sparse::of(loops, fused, &split, stored) {
        return sparse.emit(loops, &split, numel, lanes, name);
    }
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

/// What a program changes of its inputs where it says which elements, some chunks of them as a
/// whole: the others are neither read nor written.
struct Sparse {
    /// Chunks that are changed together.
    together: i64,
    /// Whether they are.
    changed: Id,
    /// What is stored then, by temporary.
    values: Vec<(usize, Id)>,
}

impl Sparse {
    /// `None`: something stored is not of that kind, or they are not changed together.
    fn of(loops: &mut Loops, fused: &Fused, split: &Split, stored: &[usize]) -> Option<Self> {
        let lanes = lanes(&fused.extents[0], 8);
        let changes = |loops: &mut Loops, split: &Split| -> Option<Vec<(usize, Id, Id)>> {
            let each = stored.iter().map(|temp| {
                let (place, value) = &split.places[temp];
                let dtype = loops.temps[*temp].dtype;
                let (cond, new) = change(loops, loops.updated(*temp)?, place, (*value, dtype))?;
                Some((*temp, cond, loops.exprs.rounded(new, dtype)))
            });
            each.collect()
        };
        let values = changes(loops, split)?.iter().map(|(temp, _, new)| (*temp, *new)).collect();
        let (together, changed) = [16, 8, 4, 2, 1].into_iter().find_map(|together| {
            let all = lanes * together;
            if fused.extents[0].power_of_two(all) != all {
                return None;
            }
            let split = Split::of(loops, fused, 0, all);
            let changes = changes(loops, &split)?;
            let cond = changes.first().map(|(_, cond, _)| *cond)?;
            let same = changes.iter().all(|(_, other, _)| *other == cond);
            (same && is_alike(loops, cond)).then_some((together, cond))
        })?;
        Some(Self { together, changed, values })
    }

    fn emit(&self, loops: &Loops, split: &Split, numel: &Size, lanes: i64, name: &str) -> Emitted {
        let together = self.together;
        let mut params = Params::default();
        let mut body = Body::new(&loops.exprs, &mut params, lanes * together, BTreeMap::new());
        let changed = body.value(self.changed);
        let look = body.take_outer() + &body.take_inner();
        let mut body = Body::new(&loops.exprs, &mut params, lanes, BTreeMap::new());
        for (temp, value) in &self.values {
            let place = &split.places[temp].0;
            body.store(*temp, place, *value, super::element_of(loops, *temp));
        }
        let (outer, inner) = (body.take_outer(), body.take_inner());
        let count = numel.div_floor(&Size::from(lanes * together));
        let limit = params.size(&count, &|_| String::new());
        let many = count.known().is_none_or(|count| count >= LOOKED_AT * BUSY);
        let looks = if many { LOOKED_AT } else { 1 };
        let each = THREADS * looks;
        // Looks do not wait for each other, and what one finds the warp does together.
        let text = format!(
            "const kiln_index first = (kiln_index)blockIdx.x * {each} + threadIdx.x;\n\
             unsigned found = 0;\n\
             #pragma unroll\n\
             for (int i = 0; i < {looks}; ++i) {{\n\
             const kiln_index c = first + i * {THREADS};\n\
             if (c >= {limit}) break;\n\
             {look}found |= (unsigned)({changed}) << i;\n}}\n\
             const int lane = threadIdx.x % {WARP};\n{outer}\
             #pragma unroll 1\n\
             for (int i = 0; i < {looks}; ++i) {{\n\
             const unsigned by = kiln_ballot(found >> i & 1);\n\
             if (by == 0) continue;\n\
             const kiln_index at = (first - lane + i * {THREADS}) * {together};\n\
             #pragma unroll 1\n\
             for (int j = lane; j < {WARP} * {together}; j += {WARP}) {{\n\
             if ((by >> j / {together} & 1) == 0) continue;\n\
             const kiln_index c = at + j;\n{inner}}}\n}}\n"
        );
        Emitted {
            before: String::new(),
            kernel: Kernel::plain(name, "map", params, text, THREADS),
            grid: count.div_ceil(&Size::from(each)),
            variant: format!("{lanes} elements at once, what is changed alone"),
        }
    }
}

/// Whether `cond` is the same for all lanes of a chunk.
fn is_alike(loops: &Loops, cond: Id) -> bool {
    let by_lane = |size: &Size| size.has_var(LANE);
    loops.exprs.reachable([cond]).iter().all(|part| match loops.exprs.get(*part) {
        Expr::Load { index, .. } | Expr::Index(index) => !by_lane(index),
        Expr::Below(a, b) => !by_lane(a) && !by_lane(b),
        Expr::Result(..) => false,
        _ => true,
    })
}

/// When the value, of that type, differs from what is at `place` of the input, and what it is then.
fn change(
    loops: &Loops,
    input: usize,
    place: &Size,
    (value, dtype): (Id, DType),
) -> Option<(Id, Id)> {
    let exprs = &loops.exprs;
    let mut value = value;
    // What is there is of that type already: a rounding to it changes nothing of it.
    while let Expr::Round(to, of) = exprs.get(value)
        && *to == dtype
    {
        value = *of;
    }
    let (cond, new, old) = match exprs.get(value) {
        Expr::Apply(Fun::Where, _, of) => (of[0], of[1], of[2]),
        Expr::Guard { cond, yes, no } => (*cond, *yes, *no),
        _ => return None,
    };
    match exprs.get(old) {
        Expr::Load { source, index, .. } if *source == Source::Input(input) && index == place => {
            Some((cond, new))
        }
        _ => None,
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
    pub(super) reductions: Vec<(usize, Id)>,
    pub(super) places: BTreeMap<usize, (Size, Id)>,
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
