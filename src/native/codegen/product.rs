//! Products: tiles on the tensor cores (16-bit) or the ordinary cores, with
//! what follows element by element done before the store.

#[cfg_attr(not(test), expect(dead_code, reason = "the new code generator calls it"))]
pub(crate) mod choose;
pub(crate) mod tiles;

use std::collections::BTreeSet;

use kiln_proto::{Target, graph::DType};

use super::{
    Emitted, Params,
    body::{Body, Coordinate, declare, lanes, line, placed, walks},
    elementwise::{named, touched},
    table::element,
};
use crate::{
    fuse::Group,
    prim::{Access, Compute, Prims},
};

/// First architecture with the instruction that the tensor tiles use.
const TENSOR_CORES: u32 = 80;
/// Multiprocessors of a big device: fewer tiles than that leave some idle.
const MANY_TILES: usize = 132;
/// Most batches at once; blocks loop over the rest.
const MOST_BATCHES: usize = 65_535;

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    columns: usize,
    threads: usize,
    /// The template and its first arguments.
    call: &'static str,
}

pub(super) fn emit(prims: &Prims, group: &Group, params: &Params, target: Target) -> Emitted {
    let found = group.members.iter().find_map(|member| match &prims.list[member.prim].compute {
        Compute::Product { a, b } => Some((member.prim, a, b)),
        Compute::Map(..) | Compute::Sum { .. } => None,
    });
    let Some((product, a, b)) = found else {
        return Emitted { text: String::new(), grid: [1; 3], threads: 32 };
    };
    let rank = group.shape.len();
    let (m, n) = (group.shape[rank - 2], group.shape[rank - 1]);
    let k = a.walk.shape[rank - 1];
    let batch = &group.shape[..rank - 2];
    let batches: usize = batch.iter().product();

    let mut coordinates = named(batch, "b");
    coordinates.push(Coordinate { size: m, name: "m".to_owned() });
    coordinates.push(Coordinate { size: n, name: "n".to_owned() });
    let members = placed(group, walks(group));
    let dtype = prims.dtype(a.source);
    let tensor = dtype != DType::F32 && target.compute >= TENSOR_CORES;
    let tile = tile(m, n, batches, tensor);
    let most = if tensor { 2 } else { 4 };
    let mut lanes = lanes(prims, &coordinates, &touched(&members, params), most);
    while !n.is_multiple_of(lanes) {
        lanes /= 2;
    }
    let body = Body { prims, coordinates, members, lanes, params };

    let mut text = String::new();
    let aligned = is_aligned(a, rank) && is_aligned(b, rank);
    line(
        &mut text,
        &format!(
            "using problem = kiln_problem<{m}, {n}, {k}, {}, {}, {}, {}, {aligned}>;",
            a.walk.strides[rank - 2],
            a.walk.strides[rank - 1],
            b.walk.strides[rank - 2],
            b.walk.strides[rank - 1],
        ),
    );
    line(
        &mut text,
        &format!("for (kiln_index batch = blockIdx.z; batch < {batches}; batch += gridDim.z) {{"),
    );
    declare(&mut text, &named(batch, "b"), "batch");
    let element = element(dtype);
    for (name, access) in [("a", a), ("b", b)] {
        let mut pointer = params.name(access.source);
        for (i, stride) in access.walk.strides[..rank - 2].iter().enumerate() {
            if *stride != 0 {
                pointer = format!("{pointer} + b{i} * {stride}");
            }
        }
        line(&mut text, &format!("const {element}* {name} = {pointer};"));
    }
    let call = tile.call;
    line(
        &mut text,
        &format!("{call}, {lanes}>(a, b, [&](kiln_index m, kiln_index n, const float* product) {{"),
    );
    let maps: BTreeSet<usize> =
        body.members.iter().map(|member| member.prim).filter(|prim| *prim != product).collect();
    let given = format!("const float t{product} = product[v];");
    body.element_wise(&mut text, &maps, &given, &params.writes);
    line(&mut text, "});");
    line(&mut text, "}");
    let grid = [
        m.div_ceil(tile.rows) as u64,
        n.div_ceil(tile.columns) as u64,
        batches.min(MOST_BATCHES) as u64,
    ];
    Emitted { text, grid, threads: tile.threads as u32 }
}

/// The largest tile of which there are enough to keep a device busy.
fn tile(m: usize, n: usize, batches: usize, tensor: bool) -> Tile {
    let tiles: [Tile; 3] = match tensor {
        true => [
            Tile {
                rows: 128,
                columns: 128,
                threads: 256,
                call: "kiln_product_tensor<problem, 128, 128, 2, 4",
            },
            Tile {
                rows: 64,
                columns: 64,
                threads: 128,
                call: "kiln_product_tensor<problem, 64, 64, 2, 2",
            },
            Tile {
                rows: 16,
                columns: 64,
                threads: 64,
                call: "kiln_product_tensor<problem, 16, 64, 1, 2",
            },
        ],
        false => [
            Tile {
                rows: 128,
                columns: 128,
                threads: 256,
                call: "kiln_product_cores<problem, 128, 128, 8, 8, 8",
            },
            Tile {
                rows: 64,
                columns: 64,
                threads: 256,
                call: "kiln_product_cores<problem, 64, 64, 16, 4, 4",
            },
            Tile {
                rows: 16,
                columns: 64,
                threads: 128,
                call: "kiln_product_cores<problem, 16, 64, 16, 2, 4",
            },
        ],
    };
    let fits = |tile: &&Tile| tile.rows < 2 * m.next_multiple_of(16);
    let enough =
        |tile: &&Tile| m.div_ceil(tile.rows) * n.div_ceil(tile.columns) * batches >= MANY_TILES;
    let (small, large) = (&tiles[2], &tiles[..2]);
    let chosen = large.iter().filter(fits).find(enough).or(large.iter().rfind(fits));
    *chosen.unwrap_or(small)
}

/// Whether each batch of `access` starts at a multiple of eight elements.
fn is_aligned(access: &Access, rank: usize) -> bool {
    let batch = access.walk.strides[..rank - 2].iter().zip(&access.walk.shape);
    batch.filter(|(_, size)| **size > 1).all(|(stride, _)| stride.is_multiple_of(8))
}
