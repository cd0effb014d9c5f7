//! The kernels that can be chosen: templates with arguments and what they need.
//!
//! Invariant: threads and shared memory are what the head of the template's
//! file says of its arguments.

use kiln_proto::graph::DType;

use super::choose::{Choice, CopyBox, Dense, Problem, Variant};
use crate::codegen::table;

/// A tile of the tensor cores, and how long it takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Of the product.
    pub(crate) rows: i64,
    /// Of the product.
    pub(crate) columns: i64,
    /// Warps down and across ([`Variant::Mma`]).
    pub(crate) warps: [i64; 2],
    /// Steps of 128 bytes along k that are in shared memory at once.
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

/// A tile of [`Variant::Persistent`]: microseconds of a block's start, of a step of 128
/// bytes along k, and of a tile's end, when nothing is multiplied.
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

/// Tiles of [`Variant::Wgmma`] and [`Variant::Persistent`] for floats of 8 bits: sums are kept
/// twice, so that none is as large as those of 16 bits. A step has 128 along k. No time was
/// fitted: they are those of 16 bits, whose steps have as many bytes.
pub(crate) const WGMMA_EIGHT: [Tile; 4] = [
    tile([64, 128], [4, 1], 8, 1, [2.75, 0.205, 0.205]),
    tile([64, 64], [4, 1], 6, 2, [2.1, 0.162, 0.134]),
    tile([64, 64], [4, 1], 8, 1, [2.6, 0.121, 0.121]),
    tile([64, 32], [4, 1], 12, 1, [3.0, 0.097, 0.097]),
];
pub(crate) const PERSISTENT_EIGHT: [Persistent; 4] = [
    persistent_tile([128, 192], 5, [0.5, 0.457, 2.15]),
    persistent_tile([128, 128], 7, [1.0, 0.32, 1.3]),
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

/// Elements of `dtype` that are a step of [`Variant::Wgmma`] and [`Variant::Persistent`] along k.
pub(crate) fn step(dtype: DType) -> i64 {
    128 / dtype.bytes() as i64
}

/// Of a tile of so many rows those that there may be, in whole groups of eight: a box that
/// reaches far behind a matrix takes as long as one that is full, and longer.
fn rows_of_box(problem: &Problem, rows: i64) -> i64 {
    let few = problem.m.known && problem.m.typical > 0 && problem.groups.is_none();
    if few { rows.min((problem.m.typical + 7) / 8 * 8) } else { rows }
}

/// Of a tile of so many rows or columns, whose dense dimension is `inner`.
fn boxed(inner: Dense, of_tile: i64, dtype: DType) -> CopyBox {
    let other = if inner == Dense::Reduced { of_tile } else { step(dtype) };
    CopyBox { inner, tile: [step(dtype) as u32, other as u32] }
}

/// One of [`WGMMA`].
pub(crate) fn wgmma(tile: &Tile, problem: &Problem) -> Choice {
    let Problem { dtype, a, b, .. } = *problem;
    let a_box = rows_of_box(problem, tile.rows);
    let Tile { rows, columns, stages, .. } = *tile;
    let (element, groups) = (table::element(dtype), rows / 64);
    let staged = (stages * (rows + columns) * 128).max(rows * (columns + 8) * 4);
    Choice {
        variant: Variant::Wgmma,
        call: format!("kiln_product_wgmma<P, {element}, {groups}, {columns}, {stages}>"),
        tile: [rows, columns],
        split: 1,
        threads: groups as u32 * 128 + 32,
        blocks: tile.resident as u32,
        shared_bytes: 1024 + staged as u32,
        maps: Some([boxed(a, a_box, dtype), boxed(b, columns, dtype)]),
        why: format!("wgmma: tile {rows}x{columns}x{}, {stages} stages", step(dtype)),
    }
}

/// One of [`PERSISTENT`]; of a twin each tile is two of half the columns.
pub(crate) fn persistent(tile: &Persistent, problem: &Problem, twin: bool) -> Choice {
    let Problem { dtype, a, b, .. } = *problem;
    let a_box = rows_of_box(problem, tile.rows);
    let Persistent { rows, columns, stages, .. } = *tile;
    let of_each = if twin { columns / 2 } else { columns };
    let (element, groups) = (table::element(dtype), rows / 64);
    Choice {
        variant: Variant::Persistent { stages, groups },
        call: format!("kiln_product_persistent<P, {element}, {groups}, {columns}, {stages}>"),
        tile: [rows, of_each],
        split: 1,
        threads: groups as u32 * 128 + 32,
        blocks: 1,
        shared_bytes: 1024 + (stages * (rows + columns) * 128) as u32,
        maps: Some([boxed(a, a_box, dtype), boxed(b, of_each, dtype)]),
        why: format!("persistent wgmma: tile {rows}x{columns}x{}, {stages} stages", step(dtype)),
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

/// Bytes of [`Variant::Stream`]'s ring, at most, of its stages, about, and of its barriers: a
/// multiprocessor has two blocks at once. On an H200 one block of twice the ring took 1.2 times as
/// long, as did 8 chunks of a column for each lane in place of 4.
const RING: i64 = 96 << 10;
const RING_STAGE: i64 = 16 << 10;
const RING_BARRIERS: i64 = 1 << 10;
/// Warps that multiply there, and chunks of 16 bytes that a lane keeps of the rows, at best and at
/// most.
const STREAM_WARPS: i64 = 8;
const STREAM_CHUNKS: [i64; 2] = [4, 16];

/// `columns` of a block stream through a ring, where at least two stages fit: of each column
/// `bytes`, and of twins two columns.
pub(crate) fn stream(rows: i64, columns: i64, bytes: i64, twins: bool) -> Option<Choice> {
    let of = if twins { 2 } else { 1 };
    let deep = (RING_STAGE / (bytes * of)).clamp(1, columns);
    let stages = (RING / (deep * bytes * of)).min(16);
    let each = |split: &i64| (bytes / 16 + split * 32 - 1) / (split * 32) * rows;
    let [good, most] = STREAM_CHUNKS;
    let split = [1, 2, 4].into_iter().find(|split| each(split) <= good).unwrap_or(STREAM_WARPS);
    let shared = RING_BARRIERS + stages * deep * bytes * of + rows * columns * split * of * 4;
    (stages >= 2 && each(&split) <= most).then(|| Choice {
        variant: Variant::Stream,
        call: format!("kiln_product_stream<P, {rows}, {split}, {columns}, {deep}, {stages}>"),
        tile: [rows, columns],
        split: 1,
        threads: STREAM_WARPS as u32 * 32 + 32,
        blocks: 2,
        shared_bytes: shared as u32,
        maps: None,
        why: format!("stream: {columns} columns, {stages} stages of {deep}, {split} warps each"),
    })
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
