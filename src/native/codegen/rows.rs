//! Rows with sums along them: a warp or a block for each row.
//!
//! The row is walked once for each layer of sums that wait for each other, and
//! once more for what is stored; values of whole rows are held by every thread.
//! Invariant: all threads of a row run the same sums in the same order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Emitted, Params,
    body::{Body, Placed, declare, lanes, line, placed, walks},
    elementwise::{named, touched},
};
use crate::{
    fuse::Group,
    prim::{Compute, Prims, Source},
    strided::collapse,
};

/// Threads of a block whose warps have a row each.
const WARPS_BLOCK: usize = 128;

pub(super) fn emit(prims: &Prims, group: &Group, lead: usize, params: &Params) -> Emitted {
    let (shape, walks, lead) = collapse(&group.shape, &walks(group), lead);
    let rows: usize = shape[..lead].iter().product();
    let columns: usize = shape[lead..].iter().product();
    let mut coordinates = named(&shape[..lead], "y");
    // A row of one element has a column all the same.
    let inner = if lead == shape.len() { vec![1] } else { shape[lead..].to_vec() };
    let mut members = placed(group, walks);
    if lead == shape.len() {
        for member in &mut members {
            member.place.push(0);
            member.reads.iter_mut().for_each(|(_, strides)| strides.push(0));
        }
    }
    let row_coordinates = coordinates.clone();
    let column_coordinates = named(&inner, "x");
    coordinates.extend(column_coordinates.clone());
    let layers = Layers::of(prims, group, &members);
    let along: Vec<Placed> =
        members.iter().filter(|m| !layers.row_values.contains(&m.prim)).cloned().collect();
    let lanes = lanes(prims, &coordinates, &touched(&along, params), 8);
    let chunks = columns.div_ceil(lanes);
    let threads = row_threads(rows, chunks);
    let body = Body { prims, coordinates, members, lanes, params };

    let mut text = String::new();
    if threads == 32 {
        let per_block = WARPS_BLOCK / 32;
        line(&mut text, "const int lane = threadIdx.x % 32;");
        line(
            &mut text,
            &format!(
                "const kiln_index row = (kiln_index)blockIdx.x * {per_block} + threadIdx.x / 32;"
            ),
        );
        line(&mut text, &format!("if (row >= {rows}LL) return;"));
    } else {
        line(&mut text, "const int lane = threadIdx.x;");
        line(&mut text, "const kiln_index row = blockIdx.x;");
    }
    declare(&mut text, &row_coordinates, "row");
    let walk = |text: &mut String, inside: &dyn Fn(&mut String)| {
        let step = threads * lanes;
        line(
            text,
            &format!("for (kiln_index c = lane * {lanes}; c < {columns}LL; c += {step}) {{"),
        );
        declare(text, &column_coordinates, "c");
        inside(text);
        line(text, "}");
    };
    for layer in 0..layers.count {
        let sums = layers.sums(layer);
        for sum in &sums {
            line(&mut text, &format!("float s{sum} = 0.0f;"));
        }
        let mut wanted = body.needed(&sums, &layers.along);
        wanted.extend(&sums);
        walk(&mut text, &|text| {
            body.loads(text, &wanted);
            line(text, "#pragma unroll");
            line(text, &format!("for (int v = 0; v < {lanes}; ++v) {{"));
            body.compute(text, &wanted);
            for sum in &sums {
                line(text, &format!("s{sum} += {};", body.summand(*sum, &wanted)));
            }
            line(text, "}");
        });
        for sum in &sums {
            line(&mut text, &format!("const float t{sum} = kiln_sum<{threads}>(s{sum});"));
        }
        // What these sums decide for the whole row.
        for prim in layers.row_values_after(layer) {
            body.row_value(&mut text, prim);
        }
    }
    let stored: Vec<usize> =
        params.writes.iter().copied().filter(|prim| layers.along.contains(prim)).collect();
    if !stored.is_empty() {
        let wanted = body.needed(&stored, &layers.along);
        walk(&mut text, &|text| body.element_wise(text, &wanted, "", &stored));
    }
    let of_rows: Vec<usize> =
        params.writes.iter().copied().filter(|prim| !layers.along.contains(prim)).collect();
    if !of_rows.is_empty() {
        line(&mut text, "if (lane == 0) {");
        for prim in of_rows {
            body.store_row_value(&mut text, prim);
        }
        line(&mut text, "}");
    }
    match threads {
        32 => Emitted {
            text,
            grid: [rows.div_ceil(WARPS_BLOCK / 32) as u64, 1, 1],
            threads: WARPS_BLOCK as u32,
        },
        _ => Emitted { text, grid: [rows as u64, 1, 1], threads: threads as u32 },
    }
}

/// Threads of a row: a warp where rows are short or many, else a block.
fn row_threads(rows: usize, chunks: usize) -> usize {
    if chunks <= 32 || (rows >= 8192 && chunks <= 128) {
        return 32;
    }
    chunks.div_ceil(2).next_power_of_two().clamp(64, 512)
}

/// Which members wait for which sums.
struct Layers {
    /// How many walks of sums there are.
    count: usize,
    /// Of each member: the walk of a sum, or the first walk after its sums.
    layer: BTreeMap<usize, usize>,
    /// Sums.
    all_sums: BTreeSet<usize>,
    /// Maps with one value for a row.
    row_values: BTreeSet<usize>,
    /// Maps with a value for each element.
    along: BTreeSet<usize>,
}

impl Layers {
    fn of(prims: &Prims, group: &Group, members: &[Placed]) -> Self {
        let columns: usize = group.shape.iter().product::<usize>() / group.rows();
        let mut layers = Self {
            count: 0,
            layer: BTreeMap::new(),
            all_sums: BTreeSet::new(),
            row_values: BTreeSet::new(),
            along: BTreeSet::new(),
        };
        for member in members {
            let prim = &prims.list[member.prim];
            let mut layer = 0;
            for (source, _) in &member.reads {
                let Source::Prim(read) = source else { continue };
                if let Some(of_read) = layers.layer.get(read) {
                    layer = layer.max(of_read + usize::from(layers.all_sums.contains(read)));
                }
            }
            layers.layer.insert(member.prim, layer);
            if matches!(prim.compute, Compute::Sum { .. }) {
                layers.all_sums.insert(member.prim);
                layers.count = layers.count.max(layer + 1);
            } else if columns > 1 && prim.shape.iter().product::<usize>() == group.rows() {
                layers.row_values.insert(member.prim);
            } else {
                layers.along.insert(member.prim);
            }
        }
        layers
    }

    fn sums(&self, layer: usize) -> Vec<usize> {
        self.all_sums.iter().copied().filter(|sum| self.layer[sum] == layer).collect()
    }

    /// Row values that can be computed once the sums of `layer` are there, and not before.
    fn row_values_after(&self, layer: usize) -> Vec<usize> {
        let at = |prim: &usize| match layer {
            0 => self.layer[prim] <= 1,
            _ => self.layer[prim] == layer + 1,
        };
        self.row_values.iter().copied().filter(at).collect()
    }
}
