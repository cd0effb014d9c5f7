//! Which kernel computes a product of matrices, and how it is launched.
//!
//! Invariant: a choice depends on the problem and the target alone, and is
//! right for every size that is not known; only its speed rests on the typical
//! one.

use std::fmt;

use kiln_proto::{Target, graph::DType};

/// First architecture with the instructions of [`Variant::Mma`].
const TENSOR_CORES: u32 = 80;
/// First architecture with clusters of blocks.
const CLUSTERS: u32 = 90;
/// Multiprocessors of a big device.
const PROCESSORS: i64 = 132;
/// Most rows of [`Variant::Vector`].
const VECTOR_ROWS: i64 = 8;

/// A size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The size where it is known, else what it often is.
    pub(crate) typical: i64,
    /// Whether it is exactly that.
    pub(crate) known: bool,
}

/// The dimension of an operand whose stride is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dense {
    /// The one that is summed over.
    Reduced,
    /// The other: rows of a, columns of b.
    Other,
    /// Neither, or it is not known.
    Neither,
}

/// `a[batch, m, k] x b[batch, k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) m: Extent,
    pub(crate) n: Extent,
    pub(crate) k: Extent,
    pub(crate) batch: Extent,
    /// Of both operands.
    pub(crate) dtype: DType,
    pub(crate) a: Dense,
    pub(crate) b: Dense,
    /// Every row and batch of both starts at a multiple of 16 bytes.
    pub(crate) aligned: bool,
}

/// A template of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    /// On the ordinary cores.
    Cores,
    /// On the tensor cores, a warp at a time.
    Mma,
    /// A few rows, on the ordinary cores as fast as the matrix is read.
    Vector,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cores => "cores",
            Self::Mma => "mma",
            Self::Vector => "vector",
        })
    }
}

/// A kernel and its launch: `ceil(m / tile[0]) * ceil(n / tile[1]) * batch *
/// split` blocks in x.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) variant: Variant,
    /// The template with its arguments; the problem's type is called `P`.
    pub(crate) call: String,
    /// Rows and columns of a block.
    pub(crate) tile: [i64; 2],
    /// Blocks of a cluster, which share the sums of a tile; 1: no cluster.
    pub(crate) split: u32,
    /// Of a block.
    pub(crate) threads: u32,
    /// Blocks that a multiprocessor is to hold at once, at least.
    pub(crate) blocks: u32,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
    /// What was chosen, to show.
    pub(crate) why: String,
}

/// The kernel for `problem`.
pub(crate) fn choose(problem: &Problem, target: Target) -> Choice {
    let wide = problem.dtype != DType::F32;
    choose_vector(problem)
        .or_else(|| (wide && target.compute >= TENSOR_CORES).then(|| choose_mma(problem, target)))
        .unwrap_or_else(|| choose_cores(problem))
}

impl Choice {
    /// The texts that its call needs, in order.
    pub(crate) fn sources(&self) -> [&'static str; 2] {
        let variant = match self.variant {
            Variant::Cores => include_str!("cores.cu"),
            Variant::Mma => include_str!("mma.cu"),
            Variant::Vector => include_str!("vector.cu"),
        };
        [include_str!("tensor.cu"), variant]
    }
}

/// The templates that `choices` call.
#[cfg(test)]
pub(crate) fn source(choices: &[Choice]) -> String {
    let mut variants: Vec<Variant> = choices.iter().map(|choice| choice.variant).collect();
    variants.sort_unstable();
    variants.dedup();
    let mut text = String::new();
    if !variants.is_empty() {
        text.push_str(include_str!("tensor.cu"));
    }
    for variant in variants {
        text.push_str(match variant {
            Variant::Cores => include_str!("cores.cu"),
            Variant::Mma => include_str!("mma.cu"),
            Variant::Vector => include_str!("vector.cu"),
        });
    }
    text
}

/// Blocks of a launch without clusters.
fn tiles(problem: &Problem, [rows, columns]: [i64; 2]) -> i64 {
    let along = |extent: Extent, tile: i64| (extent.typical.max(1) + tile - 1) / tile;
    along(problem.m, rows) * along(problem.n, columns) * problem.batch.typical.max(1)
}

fn choose_vector(problem: &Problem) -> Option<Choice> {
    let Problem { m, n, k, batch, .. } = *problem;
    let per_load = 16 / problem.dtype.bytes() as i64;
    let whole = k.known && k.typical % per_load == 0 && k.typical > 0;
    let lies = problem.aligned && problem.a == Dense::Reduced && problem.b == Dense::Reduced;
    if !(m.known && (1..=VECTOR_ROWS).contains(&m.typical) && whole && lies) {
        return None;
    }
    // Enough warps to fill the device, each with a few long runs of loads.
    let columns = if m.typical > 2 { 4 } else { 2 };
    let loads = k.typical / (per_load * 32);
    let mut split = 1;
    while split < 8
        && n.typical * batch.typical * split / columns < PROCESSORS * 16
        && loads / (split * 2) >= 2
    {
        split *= 2;
    }
    Some(vector(m.typical, split.max(4), split, columns))
}

fn choose_mma(problem: &Problem, target: Target) -> Choice {
    let rows = problem.m.typical.max(1);
    let fitting = || MMA.iter().filter(|tile| tile[0] == 16 || tile[0] < 2 * rows);
    let enough = fitting().find(|tile| tiles(problem, [tile[0], tile[1]]) >= PROCESSORS);
    // Too few of any: parts of the sums make up for it.
    let small = || fitting().find(|tile| tile[0] * tile[1] <= 4096);
    let tile = *enough.or_else(small).unwrap_or(&MMA[MMA.len() - 1]);
    let blocks = tiles(problem, [tile[0], tile[1]]);
    let steps = (problem.k.typical + 63) / 64;
    let mut split = 1;
    while target.compute >= CLUSTERS
        && split < 8
        && blocks * split * 2 <= PROCESSORS * 2
        && steps / (split * 2) >= 4
    {
        split *= 2;
    }
    mma(tile, split)
}

fn choose_cores(problem: &Problem) -> Choice {
    let rows = problem.m.typical.max(1);
    let good =
        |tile: &&[i64; 4]| tile[0] < 2 * rows && tiles(problem, [tile[0], tile[1]]) >= PROCESSORS;
    cores(*CORES.iter().find(good).unwrap_or(&CORES[CORES.len() - 1]))
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
        why: format!("vector: {split} of {warps} warps for {columns} columns"),
    }
}

/// Tiles of [`Variant::Mma`]: rows, columns, warps along each, stages.
pub(crate) const MMA: [[i64; 5]; 6] = [
    [128, 128, 2, 4, 3],
    [128, 64, 4, 2, 4],
    [64, 64, 2, 2, 4],
    [64, 32, 4, 1, 4],
    [32, 64, 2, 2, 4],
    [16, 64, 1, 4, 4],
];

/// One of [`MMA`] with the sums in `split` parts.
pub(crate) fn mma(tile: [i64; 5], split: i64) -> Choice {
    let [rows, columns, down, across, stages] = tile;
    let staged = stages * (rows + columns) * 128;
    Choice {
        variant: Variant::Mma,
        call: format!(
            "kiln_product_mma<P, {rows}, {columns}, {down}, {across}, {stages}, {split}>"
        ),
        tile: [rows, columns],
        split: split as u32,
        threads: (down * across * 32) as u32,
        blocks: 1,
        shared_bytes: staged.max(rows * (columns + 8) * 4) as u32,
        why: format!("mma: tile {rows}x{columns}x64, {stages} stages, split {split}"),
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
        why: format!("cores: tile {rows}x{columns}x{depth}"),
    }
}
