//! Which kernel computes a product of matrices, and how it is launched.
//!
//! Invariant: a choice depends on the problem and the target alone, and is
//! right for every size that is not known; only its speed rests on the typical
//! one.

use std::fmt;

use kiln_proto::{Target, graph::DType};

use super::tiles::{
    CORES, MMA, PERSISTENT, PERSISTENT_EIGHT, Persistent, Tile, WGMMA, WGMMA_EIGHT, cores, mma,
    persistent, step, stream, vector, wgmma,
};
use crate::codegen::{HOPPER_INSTRUCTIONS, INSTRUCTIONS};

#[cfg(test)]
mod tests;

/// First architecture with the instructions of [`Variant::Mma`].
const TENSOR_CORES: u32 = 80;
/// First architecture with clusters of blocks, and the one of [`Variant::Wgmma`].
const HOPPER: u32 = 90;
/// First architecture whose blocks have less shared memory than Hopper's: 99 KiB.
const DESKS: u32 = 120;
/// Multiprocessors of the device that the times were measured on.
pub(crate) const PROCESSORS: i64 = 132;
/// Most rows of [`Variant::Vector`].
const VECTOR_ROWS: i64 = 8;
/// The same where there are tensor cores for the type: with eight rows, a step of a layer of
/// Llama 3 8B's size took 264 us this way on an H200, and 179 us on them.
const VECTOR_ROWS_OF_HALVES: i64 = 2;
/// Most rows of [`Variant::Stream`], its columns in a block, and the least bytes of its matrices:
/// of 34 MB an H200 took 12 us the other way and 7 us this way, of 13 MB and less it took longer.
const STREAM_ROWS: i64 = 2;
const STREAM_COLUMNS: i64 = 256;
const STREAM_BYTES: i64 = 24 << 20;
/// Columns that keep a device busy at two for a warp.
const MANY_COLUMNS: i64 = 8192;

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
    /// Columns of up to three other products of `a` in the same launch.
    pub(crate) beside: [i64; 3],
    pub(crate) k: Extent,
    pub(crate) batch: Extent,
    /// Of both operands.
    pub(crate) dtype: DType,
    pub(crate) a: Dense,
    pub(crate) b: Dense,
    /// Every row and batch of both starts at a multiple of 16 bytes.
    pub(crate) aligned: bool,
    /// Of rows in groups.
    pub(crate) groups: Option<Grouped>,
}

/// Rows in groups, each by a matrix of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grouped {
    /// How many groups there often are.
    pub(crate) count: i64,
    /// One tensor map can have all their matrices.
    pub(crate) as_one: bool,
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
    /// The same, where the matrix comes through shared memory.
    Stream,
    /// On the tensor cores, four warps at a time, operands by tensor maps.
    Wgmma,
    /// The same, one tile after another: steps in shared memory, and groups of four warps.
    Persistent { stages: i64, groups: i64 },
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cores => "cores",
            Self::Mma => "mma",
            Self::Vector => "vector",
            Self::Stream => "stream",
            Self::Wgmma => "wgmma",
            Self::Persistent { .. } => "persistent wgmma",
        })
    }
}

/// The boxes that a tensor map copies: its inner dimension is the dense one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopyBox {
    /// [`Dense::Reduced`] or [`Dense::Other`].
    pub(crate) inner: Dense,
    /// Elements, inner dimension first.
    pub(crate) tile: [u32; 2],
}

/// A kernel and its launch: `ceil(m / tile[0]) * ceil(n / tile[1]) * batch *
/// split` blocks in x; of [`Variant::Persistent`] a block for each multiprocessor at most.
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
    /// Of the tensor maps of a and b (swizzled by 128 bytes) that the kernel takes
    /// instead of their pointers.
    pub(crate) maps: Option<[CopyBox; 2]>,
    /// What was chosen, to show.
    pub(crate) why: String,
}

/// The kernel for `problem`.
pub(crate) fn choose(problem: &Problem, target: Target) -> Choice {
    let choice = vector_for(problem, 1, target)
        .or_else(|| best(problem, target).map(|(_, choice)| choice))
        .unwrap_or_else(|| cores_for(problem));
    in_memory(problem, choice)
}

/// What is in shared memory of f64 are sums and operands of twice the size.
fn in_memory(problem: &Problem, choice: Choice) -> Choice {
    match problem.dtype {
        DType::F64 => Choice { shared_bytes: 2 * choice.shared_bytes, ..choice },
        _ => choice,
    }
}

/// The kernel for two such products whose elements meet, if there is one that takes no longer
/// than both.
pub(crate) fn twin(problem: &Problem, target: Target) -> Option<Choice> {
    if let Some(choice) = vector_for(problem, 2, target) {
        return Some(in_memory(problem, choice));
    }
    let alone = best(problem, target).map(|(alone, _)| alone)?;
    let fits = |tile: &&Persistent| {
        let whole = if problem.b == Dense::Reduced { 32 } else { 64 };
        by_map(problem, target) && in_packs(problem) && tile.columns / 2 % whole == 0
    };
    let timed = persistent_tiles(problem.dtype)
        .iter()
        .filter(fits)
        .map(|tile| (persistent_time(problem, tile, true), tile));
    let (time, tile) = timed.min_by(|a, b| a.0.total_cmp(&b.0))?;
    (time <= 2.0 * alone).then(|| persistent(tile, problem, true))
}

impl Choice {
    /// The texts that its call needs, in order.
    pub(crate) fn sources(&self) -> Vec<&'static str> {
        let tiles = [INSTRUCTIONS, include_str!("tensor.cu")];
        let variant: &[&'static str] = match self.variant {
            Variant::Cores => &[include_str!("cores.cu")],
            Variant::Mma => &[include_str!("mma.cu")],
            Variant::Vector => &[include_str!("vector.cu")],
            Variant::Stream => &[HOPPER_INSTRUCTIONS, include_str!("stream.cu")],
            Variant::Wgmma => &[HOPPER_INSTRUCTIONS, include_str!("wgmma.cu")],
            Variant::Persistent { .. } => {
                &[HOPPER_INSTRUCTIONS, include_str!("wgmma.cu"), include_str!("persistent.cu")]
            }
        };
        [&tiles, variant].concat()
    }
}

/// The templates that `choices` call.
#[cfg(test)]
pub(crate) fn source(choices: &[Choice]) -> String {
    let mut parts: Vec<&'static str> = choices.iter().flat_map(Choice::sources).collect();
    let mut seen = std::collections::BTreeSet::new();
    parts.retain(|part| seen.insert(*part));
    parts.concat()
}

/// Tiles of a problem.
fn count(problem: &Problem, rows: i64, columns: i64) -> i64 {
    let along = |extent: Extent, tile: i64| (extent.typical.max(1) + tile - 1) / tile;
    let beside: i64 = problem.beside.iter().map(|n| (n + columns - 1) / columns).sum();
    let down = match problem.groups {
        None => along(problem.m, rows),
        // As if all groups were of one size.
        Some(Grouped { count, .. }) => {
            let all = problem.m.typical.max(1);
            let groups = count.clamp(1, all);
            groups * ((all / groups + rows - 1) / rows)
        }
    };
    down * (along(problem.n, columns) + beside) * problem.batch.typical.max(1)
}

/// For `of` matrices at once.
fn vector_for(problem: &Problem, of: u32, target: Target) -> Option<Choice> {
    let Problem { m, k, batch, .. } = *problem;
    let columns_of_all = problem.n.typical * i64::from(of) + problem.beside.iter().sum::<i64>();
    let per_load = 16 / problem.dtype.bytes() as i64;
    let whole = k.known && k.typical % per_load == 0 && k.typical > 0;
    let lies = problem.aligned && problem.a == Dense::Reduced && problem.b == Dense::Reduced;
    let halves = matches!(problem.dtype, DType::F16 | DType::BF16);
    let most = match halves && target.compute >= TENSOR_CORES {
        true => VECTOR_ROWS_OF_HALVES,
        false => VECTOR_ROWS,
    };
    if problem.groups.is_some() || !(m.known && (1..=most).contains(&m.typical) && whole && lies) {
        return None;
    }
    if let Some(choice) = stream_for(problem, of, target) {
        return Some(choice);
    }
    // Of 4 and 8 warps, 1 to 8 of them and 1 to 4 columns together, these were the
    // fastest or within 4% for K of 1024 to 14336, N of 1024 to 28672 and 151936.
    let loads = k.typical / (per_load * 32);
    let many = columns_of_all * batch.typical >= MANY_COLUMNS;
    let (warps, split, columns) = match loads {
        0..8 if many => (4, 1, 2),
        0..4 if m.typical >= 4 => (4, 1, 2),
        0..4 => (4, 1, 1),
        4 if m.typical >= 4 => (4, 1, 2),
        4..8 => (4, 2, 1),
        8..32 => (8, 4, 1),
        _ => (8, 8, 1),
    };
    let one = vector(m.typical, warps, split, columns);
    Some(Choice { shared_bytes: one.shared_bytes * of, ..one })
}

/// The same by bulk copies, where the matrix is large enough and each column of it one copy.
fn stream_for(problem: &Problem, of: u32, target: Target) -> Option<Choice> {
    let Problem { m, k, batch, dtype, .. } = *problem;
    let bytes = k.typical * dtype.bytes() as i64;
    let columns = problem.n.typical + problem.beside.iter().sum::<i64>();
    // To widen 8 bits takes a processor longer than to read them, and 64 take twice the room.
    let widens = matches!(dtype, DType::F16 | DType::BF16 | DType::F32);
    // Later ones for desks have half of Hopper's shared memory.
    let holds = (HOPPER..DESKS).contains(&target.compute);
    let one = batch.known && batch.typical == 1;
    let fits = holds && one && m.typical <= STREAM_ROWS && widens;
    if !fits || columns * bytes * i64::from(of) < STREAM_BYTES {
        return None;
    }
    let blocks = 2 * PROCESSORS;
    let each = ((columns + blocks - 1) / blocks).clamp(1, STREAM_COLUMNS);
    stream(m.typical, each, bytes, of == 2)
}

/// Whether tensor maps can copy both operands.
fn by_map(problem: &Problem, target: Target) -> bool {
    let Problem { k, batch, a, b, groups, .. } = *problem;
    let as_one = groups.is_none_or(|groups| groups.as_one);
    let one = as_one && batch.known && batch.typical == 1;
    let dense = problem.aligned && a != Dense::Neither && b != Dense::Neither;
    target.is_hopper_alone() && one && dense && k.known && k.typical > 0
}

/// Whether every part has as many columns as a template takes at once.
fn in_packs(problem: &Problem) -> bool {
    let Problem { n, beside, .. } = problem;
    n.known && beside.iter().chain([&n.typical]).all(|columns| columns % 8 == 0)
}

fn is_eight(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

fn persistent_tiles(dtype: DType) -> &'static [Persistent] {
    if is_eight(dtype) { &PERSISTENT_EIGHT } else { &PERSISTENT }
}

/// The fastest kernel of the tensor cores, and its microseconds.
fn best(problem: &Problem, target: Target) -> Option<(f64, Choice)> {
    let Problem { dtype, a, b, .. } = *problem;
    let by_map = by_map(problem, target);
    let eight = is_eight(dtype);
    let halves = matches!(dtype, DType::F16 | DType::BF16) && target.compute >= TENSOR_CORES;
    // Of 8 bits there is no other template than by tensor maps, along k.
    let along = [a, b] == [Dense::Reduced; 2];
    if !(halves || eight && by_map && along) {
        return None;
    }
    let mut best: Option<(f64, Choice)> = None;
    let mut offer = |time: f64, choice: &dyn Fn() -> Choice| {
        if best.as_ref().is_none_or(|(least, _)| time < *least) {
            best = Some((time, choice()));
        }
    };
    let fits = |columns: i64| by_map && (b == Dense::Reduced || columns % 64 == 0);
    let alone = problem.groups.is_none();
    let tiles: &[Tile] = if eight { &WGMMA_EIGHT } else { &WGMMA };
    for tile in tiles.iter().filter(|tile| alone && fits(tile.columns)) {
        offer(time(problem, tile, 1), &|| wgmma(tile, problem));
    }
    // Of fewer tiles the other is 3 to 10% faster.
    let many = |tile: &Persistent| {
        in_packs(problem) && (!alone || count(problem, tile.rows, tile.columns) > PROCESSORS)
    };
    for tile in persistent_tiles(dtype).iter().filter(|tile| fits(tile.columns) && many(tile)) {
        offer(persistent_time(problem, tile, false), &|| persistent(tile, problem, false));
    }
    let most = if target.compute >= HOPPER { 8 } else { 1 };
    let splits = [1, 2, 4, 8].into_iter().filter(|split| *split <= most);
    let of_each = |split| MMA.iter().map(move |tile| (time(problem, tile, split), tile, split));
    let fastest = splits.flat_map(of_each).min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((time, tile, split)) = fastest.filter(|_| !eight) {
        offer(time.max(bytes_of_b(problem) / MMA_READS), &|| mma(tile, split));
    }
    best
}

/// From one launch to the next, in microseconds.
const LAUNCH: f64 = 1.2;

/// Bytes of b that [`Variant::Mma`] reads in a microsecond, at most: 117 MB for eight rows took it
/// 57 us on an H200, where tensor maps took 35.
const MMA_READS: f64 = 2.1e6;

/// What is read of b, of groups that have a row at least.
fn bytes_of_b(problem: &Problem) -> f64 {
    let matrices = match problem.groups {
        Some(Grouped { count, .. }) => count.clamp(1, problem.m.typical.max(1)),
        None => problem.batch.typical.max(1),
    };
    let columns = problem.n.typical + problem.beside.iter().sum::<i64>();
    (matrices * columns * problem.k.typical) as f64 * problem.dtype.bytes() as f64
}

/// Of a tile, along k.
fn steps(problem: &Problem) -> i64 {
    let step = step(problem.dtype);
    ((problem.k.typical + step - 1) / step).max(1)
}

/// Microseconds of a launch of blocks that compute one tile after another.
fn persistent_time(problem: &Problem, tile: &Persistent, twin: bool) -> f64 {
    let columns = if twin { tile.columns / 2 } else { tile.columns };
    let tiles = count(problem, tile.rows, columns);
    let of_each = (tiles + PROCESSORS - 1) / PROCESSORS;
    let steps = steps(problem);
    LAUNCH + tile.start + of_each as f64 * (steps as f64 * tile.step + tile.end)
}

/// Microseconds of a launch: waves of blocks, each with its start and end, and
/// steps of 128 bytes along k that take as long as one block's latency or as all blocks of
/// a multiprocessor together, whatever is more.
fn time(problem: &Problem, tile: &Tile, split: i64) -> f64 {
    /// To add up the parts of a cluster.
    const MEET: f64 = 1.3;
    let blocks = count(problem, tile.rows, tile.columns) * split;
    let steps = steps(problem) as f64 / split as f64;
    let wave =
        |on_each: i64| tile.fixed + steps.ceil() * tile.step.max(on_each as f64 * tile.share);
    let at_once = PROCESSORS * tile.resident;
    let (full, left) = (blocks / at_once, blocks % at_once);
    let rest = if left > 0 { wave((left + PROCESSORS - 1) / PROCESSORS) } else { 0.0 };
    let meet = if split > 1 { MEET } else { 0.0 };
    LAUNCH + full as f64 * wave(tile.resident) + rest + meet
}

fn cores_for(problem: &Problem) -> Choice {
    let rows = problem.m.typical.max(1);
    let good =
        |tile: &&[i64; 4]| tile[0] < 2 * rows && count(problem, tile[0], tile[1]) >= PROCESSORS;
    cores(*CORES.iter().find(good).unwrap_or(&CORES[CORES.len() - 1]))
}
