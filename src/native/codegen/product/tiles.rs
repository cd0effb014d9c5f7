//! The kernels that can be chosen: templates with arguments and what they need.
//!
//! Invariant: threads and shared memory are what the head of the template's
//! file says of its arguments.

use kiln_proto::graph::DType;

use super::choose::{Choice, CopyBox, Dense, Variant};

/// A tile of the tensor cores, and how long it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Of the product.
    pub(crate) rows: i64,
    /// Of the product.
    pub(crate) columns: i64,
    /// Warps down and across ([`Variant::Mma`]).
    pub(crate) warps: [i64; 2],
    /// Steps of 64 along k that are in shared memory at once.
    pub(crate) stages: i64,
    /// Blocks on a multiprocessor.
    pub(crate) resident: i64,
    /// Microseconds at start and end of a block.
    pub(crate) fixed: f64,
    /// Microseconds of a step, alone on a multiprocessor.
    pub(crate) step: f64,
    /// Microseconds that a step adds where the multiprocessor is busy.
    pub(crate) share: f64,
}

const fn tile(shape: [i64; 2], warps: [i64; 2], stages: i64, resident: i64, us: [f64; 3]) -> Tile {
    let [rows, columns] = shape;
    let [fixed, step, share] = us;
    Tile { rows, columns, warps, stages, resident, fixed, step, share }
}

/// Tiles of [`Variant::Wgmma`]. The times fit 150 runs on an H100 (bf16, both operands
/// along k, M of 64 to 4096, N of 1024 to 6144, K of 1024 to 4096; weights of up to 1024
/// rows from memory, not from the cache; torch 2.11 beside it), most within 5%.
pub(crate) const WGMMA: [Tile; 11] = [
    tile([128, 256], [4, 2], 4, 1, [5.5, 0.625, 0.625]),
    tile([128, 192], [4, 2], 5, 1, [3.4, 0.56, 0.56]),
    tile([64, 256], [4, 1], 5, 1, [3.8, 0.37, 0.37]),
    tile([128, 128], [4, 2], 3, 2, [4.3, 0.36, 0.366]),
    tile([128, 128], [4, 2], 6, 1, [2.9, 0.39, 0.39]),
    tile([128, 96], [4, 2], 6, 1, [2.9, 0.31, 0.31]),
    tile([64, 128], [4, 1], 8, 1, [2.75, 0.205, 0.205]),
    tile([64, 96], [4, 1], 8, 1, [3.0, 0.135, 0.135]),
    tile([64, 64], [4, 1], 6, 2, [2.1, 0.162, 0.134]),
    tile([64, 64], [4, 1], 8, 1, [2.6, 0.121, 0.121]),
    tile([64, 32], [4, 1], 12, 1, [3.0, 0.097, 0.097]),
];

/// A tile of [`Variant::Persistent`]: microseconds of a block's start, of a step of 64 along
/// k, and of a tile's end, when nothing is multiplied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Persistent {
    pub(crate) rows: i64,
    pub(crate) columns: i64,
    /// Steps that are in shared memory at once.
    pub(crate) stages: i64,
    pub(crate) start: f64,
    pub(crate) step: f64,
    pub(crate) end: f64,
}

const fn persistent_tile(shape: [i64; 2], stages: i64, us: [f64; 3]) -> Persistent {
    let [rows, columns] = shape;
    let [start, step, end] = us;
    Persistent { rows, columns, stages, start, step, end }
}

/// Tiles of [`Variant::Persistent`]. The times fit some 20 runs each on an H200, of up to 400 us
/// (bf16, both operands along k, M of 64 to 8192, N of 1024 to 14336, K of 1024 to 14336), on
/// average within 4%.
pub(crate) const PERSISTENT: [Persistent; 7] = [
    persistent_tile([128, 256], 4, [0.0, 0.614, 2.75]),
    persistent_tile([128, 192], 5, [0.5, 0.457, 2.15]),
    persistent_tile([64, 256], 5, [0.8, 0.325, 1.9]),
    persistent_tile([128, 128], 7, [1.0, 0.32, 1.3]),
    persistent_tile([128, 96], 7, [1.0, 0.27, 1.0]),
    persistent_tile([64, 128], 8, [1.6, 0.202, 0.5]),
    persistent_tile([64, 64], 8, [1.6, 0.17, 0.1]),
];

/// Tiles of [`Variant::Mma`], the times from 180 such runs.
pub(crate) const MMA: [Tile; 6] = [
    tile([128, 128], [2, 4], 3, 1, [3.0, 1.2, 1.2]),
    tile([128, 64], [4, 2], 4, 2, [2.5, 0.8, 0.7]),
    tile([64, 64], [2, 2], 4, 3, [2.4, 0.5, 0.4]),
    tile([64, 32], [4, 1], 4, 4, [1.9, 0.38, 0.24]),
    tile([32, 64], [2, 2], 4, 4, [2.6, 0.32, 0.26]),
    tile([16, 64], [1, 4], 4, 4, [2.2, 0.24, 0.18]),
];

/// Of a tile of so many rows or columns, whose dense dimension is `inner`.
fn boxed(inner: Dense, of_tile: i64) -> CopyBox {
    let other = if inner == Dense::Reduced { of_tile } else { 64 };
    CopyBox { inner, tile: [64, other as u32] }
}

fn element(dtype: DType) -> &'static str {
    if dtype == DType::F16 { "kiln_f16" } else { "kiln_bf16" }
}

/// One of [`WGMMA`].
pub(crate) fn wgmma(tile: &Tile, dtype: DType, a: Dense, b: Dense) -> Choice {
    let Tile { rows, columns, stages, .. } = *tile;
    let (element, groups) = (element(dtype), rows / 64);
    let staged = (stages * (rows + columns) * 128).max(rows * (columns + 8) * 4);
    Choice {
        variant: Variant::Wgmma,
        call: format!("kiln_product_wgmma<P, {element}, {groups}, {columns}, {stages}>"),
        tile: [rows, columns],
        split: 1,
        threads: groups as u32 * 128 + 32,
        blocks: tile.resident as u32,
        shared_bytes: 1024 + staged as u32,
        maps: Some([boxed(a, rows), boxed(b, columns)]),
        why: format!("wgmma: tile {rows}x{columns}x64, {stages} stages"),
    }
}

/// One of [`PERSISTENT`]; of a twin each tile is two of half the columns.
pub(crate) fn persistent(
    tile: &Persistent,
    dtype: DType,
    a: Dense,
    b: Dense,
    twin: bool,
) -> Choice {
    let Persistent { rows, columns, stages, .. } = *tile;
    let of_each = if twin { columns / 2 } else { columns };
    let (element, groups) = (element(dtype), rows / 64);
    Choice {
        variant: Variant::Persistent { stages, groups },
        call: format!("kiln_product_persistent<P, {element}, {groups}, {columns}, {stages}>"),
        tile: [rows, of_each],
        split: 1,
        threads: groups as u32 * 128 + 32,
        blocks: 1,
        shared_bytes: 1024 + (stages * (rows + columns) * 128) as u32,
        maps: Some([boxed(a, rows), boxed(b, of_each)]),
        why: format!("persistent wgmma: tile {rows}x{columns}x64, {stages} stages"),
    }
}

/// One of [`MMA`] with the sums in `split` parts.
pub(crate) fn mma(tile: &Tile, split: i64) -> Choice {
    let Tile { rows, columns, warps: [down, across], stages, .. } = *tile;
    let staged = (stages * (rows + columns) * 128).max(rows * (columns + 8) * 4);
    Choice {
        variant: Variant::Mma,
        call: format!(
            "kiln_product_mma<P, {rows}, {columns}, {down}, {across}, {stages}, {split}>"
        ),
        tile: [rows, columns],
        split: split as u32,
        threads: (down * across * 32) as u32,
        blocks: 1,
        shared_bytes: staged as u32,
        maps: None,
        why: format!("mma: tile {rows}x{columns}x64, {stages} stages, split {split}"),
    }
}

/// `split` of `warps` warps sum `columns` columns of `rows` rows.
pub(crate) fn vector(rows: i64, warps: i64, split: i64, columns: i64) -> Choice {
    Choice {
        variant: Variant::Vector,
        call: format!("kiln_product_vector<P, {rows}, {warps}, {split}, {columns}>"),
        tile: [rows, warps / split * columns],
        split: 1,
        threads: warps as u32 * 32,
        blocks: 1,
        shared_bytes: (warps * columns * rows * 4) as u32,
        maps: None,
        why: format!("vector: {split} of {warps} warps for {columns} columns"),
    }
}

/// Tiles of [`Variant::Cores`]: rows, columns, depth, rows of a thread.
pub(crate) const CORES: [[i64; 4]; 3] = [[128, 128, 8, 8], [64, 64, 16, 4], [32, 32, 32, 4]];

/// One of [`CORES`].
pub(crate) fn cores(tile: [i64; 4]) -> Choice {
    let [rows, columns, depth, of_thread] = tile;
    Choice {
        variant: Variant::Cores,
        call: format!("kiln_product_cores<P, {rows}, {columns}, {depth}, {of_thread}>"),
        tile: [rows, columns],
        split: 1,
        threads: (rows / of_thread * columns / 8) as u32,
        blocks: 1,
        shared_bytes: (2 * depth * (rows + columns + 8) * 4) as u32,
        maps: None,
        why: format!("cores: tile {rows}x{columns}x{depth}"),
    }
}
