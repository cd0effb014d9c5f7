//! Which attention kernel computes a problem, with which tiles.
//!
//! Invariant: a function of the problem and the target alone.

use kiln_proto::{Target, graph::DType};

use crate::codegen::{HOPPER_INSTRUCTIONS, INSTRUCTIONS};

const COMMON: &str = include_str!("common.cu");
const MMA: &str = include_str!("mma.cu");
const CORES: &str = include_str!("cores.cu");
const DECODE: &str = include_str!("decode.cu");
const DECODE_MMA: &str = include_str!("decode_mma.cu");
const WGMMA: &str = include_str!("wgmma.cu");

/// First architecture with the matrix instructions and background copies of `mma`.
const TENSOR_CORES: u32 = 80;
/// Most blocks of a cluster.
const MOST_CLUSTER: u64 = 8;
/// First architecture with clusters of blocks.
const CLUSTERS: u32 = 90;
/// Multiprocessors of a big device: fewer blocks than that leave some idle.
const PROCESSORS: u64 = 132;
/// Blocks that keep most of them busy.
const ENOUGH: u64 = 96;
/// Widest row of `mma`: its sums fill the registers.
const MMA_WIDEST: u64 = 256;
/// Rows of q in a tile of `wgmma`.
const WGMMA_ROWS: u64 = 128;
/// Fewer tiles than that leave `wgmma` behind `mma`.
const WGMMA_TILES: u64 = 96;
/// Rows of q that `decode` takes at once, at most.
const DECODE_ROWS: u64 = 8;
/// The same on the tensor cores.
const DECODE_MMA_ROWS: u64 = 16;
/// Widest row there.
const DECODE_MMA_WIDEST: u64 = 128;
/// Static shared memory that `decode` spends on its sums.
const DECODE_BYTES: u64 = 40 << 10;

/// What is known of a size: both bounds are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) least: u64,
    /// `u64::MAX`: unbounded.
    pub(crate) most: u64,
}

impl Bounds {
    pub(crate) fn known(size: u64) -> Self {
        Self { least: size, most: size }
    }

    /// The size itself, or what to expect of one that is not known.
    fn typical(self, guess: u64) -> u64 {
        guess.clamp(self.least, self.most)
    }
}

/// Sizes and types of an attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Problem {
    pub(crate) dtype: DType,
    pub(crate) batch: Bounds,
    /// Of q.
    pub(crate) heads: u64,
    /// Heads of q that read one head of k and v.
    pub(crate) group: u64,
    /// Positions of q.
    pub(crate) rows: Bounds,
    /// Positions of k and v.
    pub(crate) keys: Bounds,
    /// Last size of q and k.
    pub(crate) d: u64,
    /// Last size of v.
    pub(crate) e: u64,
    /// All rows start at multiples of 16 bytes.
    pub(crate) aligned: bool,
}

/// How many blocks: `ceil(S / rows) * (B * H / heads) * times`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) rows: u64,
    pub(crate) heads: u64,
    pub(crate) times: u64,
    /// More than these take turns.
    pub(crate) most: Option<u64>,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) variant: &'static str,
    template: &'static str,
    tiles: String,
    /// Texts that must come before it, in this order.
    pub(crate) sources: Vec<&'static str>,
    /// Of the kernel's declaration.
    pub(crate) attributes: String,
    pub(crate) threads: u32,
    /// For the launch bounds.
    pub(crate) blocks_per_sm: u32,
    /// Dynamic.
    pub(crate) shared_bytes: u32,
    pub(crate) grid: Grid,
    /// To show.
    pub(crate) why: String,
}

impl Choice {
    /// The template with its arguments, but the types that follow from the call's.
    pub(crate) fn call(&self, problem: &str) -> String {
        format!("{}<{problem}, {}>", self.template, self.tiles)
    }

    /// Blocks of one launch.
    #[cfg(test)]
    pub(crate) fn blocks(&self, batch: u64, heads: u64, rows: u64) -> u64 {
        let Grid { rows: tile, heads: shared, times, most } = self.grid;
        (rows.div_ceil(tile) * (batch * heads / shared) * times).min(most.unwrap_or(u64::MAX))
    }
}

impl Problem {
    /// Heads of q in all batches.
    fn all_heads(&self) -> u64 {
        self.batch.typical(8).max(1) * self.heads
    }

    fn typical_rows(&self) -> u64 {
        self.rows.typical(512).max(1)
    }
}

/// The kernel for `problem` on `target`.
pub(crate) fn choose(problem: &Problem, target: Target) -> Choice {
    let half = matches!(problem.dtype, DType::F16 | DType::BF16);
    let widest = problem.d.max(problem.e);
    // A warp of `mma` has sixteen rows, which half of them must fill.
    let most = if decodes_by_mma(problem, target) { DECODE_MMA_ROWS } else { DECODE_ROWS };
    let few = problem.rows.most.saturating_mul(problem.group) <= most;
    let tensor = half && target.compute >= TENSOR_CORES && widest <= MMA_WIDEST;
    if few && widest <= decode_widest(problem.dtype) {
        decode(problem, target)
    } else if tensor && suits_wgmma(problem, target) {
        wgmma(problem)
    } else if tensor {
        tiled(problem)
    } else {
        cores(problem)
    }
}

/// Whether `wgmma` can, and has tiles enough to be the fastest.
fn suits_wgmma(problem: &Problem, target: Target) -> bool {
    let width = |width: u64| matches!(width, 64 | 128);
    let tiles = problem.typical_rows().div_ceil(WGMMA_ROWS) * problem.all_heads();
    target.is_hopper_alone()
        && problem.aligned
        && width(problem.d)
        && width(problem.e)
        && problem.typical_rows() > WGMMA_ROWS / 2
        && tiles >= WGMMA_TILES
}

fn wgmma(problem: &Problem) -> Choice {
    let Problem { d, e, .. } = *problem;
    let (keys, stages) = (128, 3);
    // The tiles, and two gates with four for each stage.
    let shared = WGMMA_ROWS * d * 2 + stages * keys * (d + e) * 2 + 16 + stages * 32;
    Choice {
        variant: "wgmma",
        template: "kiln_attention_wgmma",
        tiles: format!("{keys}, {stages}, true"),
        sources: vec![INSTRUCTIONS, HOPPER_INSTRUCTIONS, COMMON, WGMMA],
        attributes: String::new(),
        threads: 384,
        blocks_per_sm: 1,
        shared_bytes: shared as u32,
        grid: Grid { rows: WGMMA_ROWS, heads: 1, times: 1, most: Some(PROCESSORS) },
        why: format!("wgmma {WGMMA_ROWS}x{keys}, {stages} stages"),
    }
}

/// Longest row of which the lanes of a warp hold at most four chunks.
fn decode_widest(dtype: DType) -> u64 {
    if dtype == DType::F32 { 256 } else { 512 }
}

/// The least power of two that is not less.
fn decode_rows(problem: &Problem) -> u64 {
    (problem.rows.most * problem.group).max(1).next_power_of_two()
}

/// Whether several rows are decoded on the tensor cores, if they are few enough.
fn decodes_by_mma(problem: &Problem, target: Target) -> bool {
    let half = matches!(problem.dtype, DType::F16 | DType::BF16);
    // Wider heads do not fit the registers.
    let fits =
        |width: u64, of: u64| width.is_multiple_of(of) && (of..=DECODE_MMA_WIDEST).contains(&width);
    let rows = problem.rows.most.saturating_mul(problem.group);
    half && target.compute >= TENSOR_CORES
        && problem.aligned
        && rows > 2
        && fits(problem.d, 32)
        && fits(problem.e, 64)
}

/// Blocks of a cluster that share the keys of one, where blocks are few and keys many.
fn cluster(target: Target, blocks: u64, warps: u64, steps: u64) -> u64 {
    let mut cluster = 1;
    if target.compute >= CLUSTERS {
        while cluster < MOST_CLUSTER
            && blocks * cluster <= PROCESSORS / 2
            && cluster * 2 * warps <= steps
        {
            cluster *= 2;
        }
    }
    cluster
}

fn of_cluster(blocks: u64) -> String {
    if blocks == 1 { String::new() } else { format!("__cluster_dims__({blocks}, 1, 1)") }
}

/// Few rows are one tile, whatever S is.
fn decode_grid(problem: &Problem, times: u64) -> Grid {
    Grid { rows: problem.rows.most.max(1), heads: problem.group, times, most: None }
}

fn decode(problem: &Problem, target: Target) -> Choice {
    if decodes_by_mma(problem, target) {
        return decode_by_mma(problem, target);
    }
    let widest = problem.d.max(problem.e);
    let chunk = if problem.dtype == DType::F32 { 4 } else { 8 };
    let lanes = widest.div_ceil(chunk).next_power_of_two().min(32);
    let chunks = widest.div_ceil(chunk * lanes);
    // Registers: each row has a part of q and of the sums in each lane.
    let rows = decode_rows(problem).min((8 / chunks).max(1));
    let parts = (problem.rows.most * problem.group).max(1).div_ceil(rows);
    // A warp reads `32 / lanes` keys at a time and four times that ahead.
    let steps = problem.keys.most.div_ceil(32 / lanes * 4).max(1);
    let fits = (DECODE_BYTES / (rows * problem.e.max(1) * 4)).max(1);
    let warps = steps.min(8).min(fits).next_power_of_two();
    let warps = if warps > fits { warps / 2 } else { warps };
    let blocks = problem.all_heads() / problem.group * parts;
    let cluster = cluster(target, blocks, warps, steps);
    // All that a processor can hold, where keys are many and blocks still few.
    let warps =
        match cluster == MOST_CLUSTER && rows <= 2 && fits >= 16 && cluster * warps * 4 <= steps {
            true => 16,
            false => warps,
        };
    Choice {
        variant: "decode",
        template: "kiln_attention_decode",
        tiles: format!("{rows}, {warps}, {cluster}"),
        sources: vec![INSTRUCTIONS, COMMON, DECODE],
        attributes: of_cluster(cluster),
        threads: warps as u32 * 32,
        blocks_per_sm: 1,
        shared_bytes: 0,
        grid: decode_grid(problem, parts * cluster),
        why: format!("decode {rows} rows, {warps} warps, cluster of {cluster}"),
    }
}

fn decode_by_mma(problem: &Problem, target: Target) -> Choice {
    const KEYS: u64 = 16;
    let all = (problem.rows.most * problem.group).max(1);
    let rows = all.next_power_of_two().min(DECODE_MMA_ROWS);
    let parts = all.div_ceil(rows);
    let steps = problem.keys.most.div_ceil(KEYS).max(1);
    let fits = (DECODE_BYTES / (rows * problem.e * 4)).max(1).ilog2();
    let warps = steps.min(8).next_power_of_two().min(1 << fits);
    let blocks = problem.all_heads() / problem.group * parts;
    let cluster = cluster(target, blocks, warps, steps);
    Choice {
        variant: "decode mma",
        template: "kiln_attention_decode_mma",
        tiles: format!("{rows}, {warps}, {cluster}"),
        sources: vec![INSTRUCTIONS, COMMON, DECODE, DECODE_MMA],
        attributes: of_cluster(cluster),
        threads: warps as u32 * 32,
        blocks_per_sm: 1,
        shared_bytes: 0,
        grid: decode_grid(problem, parts * cluster),
        why: format!("decode {rows} rows by mma, {warps} warps, cluster of {cluster}"),
    }
}

fn tiled(problem: &Problem) -> Choice {
    let padded = |width: u64| width.next_multiple_of(16);
    let (d, e) = (padded(problem.d), padded(problem.e));
    let rows = problem.typical_rows();
    let blocks = |tile: &u64| rows.div_ceil(*tile) * problem.all_heads() >= ENOUGH;
    // The most rows that still keep the processors busy, not many of them empty.
    let fits = |tile: &u64| *tile < 2 * rows.next_multiple_of(16);
    let rows = [64, 32].into_iter().filter(fits).find(blocks).unwrap_or(16);
    let wide = d.max(e) > 128;
    let keys: u64 = if wide { 32 } else { 64 };
    // Warps that share rows: four warps keep a processor's four schedulers busy.
    let split = (64 / rows).min(keys / 16);
    let keys = if problem.keys.most <= keys / 2 { keys / 2 } else { keys };
    let split = split.min(keys / 16);
    let tiles = 2 * (rows * (d + 8) + 2 * keys * (d + 8) + 2 * keys * (e + 8));
    let sums = 4 * (split * rows * (e + 8) + 2 * split * rows);
    let shared = if split > 1 { tiles.max(sums) } else { tiles };
    let threads = rows * 2 * split;
    Choice {
        variant: "mma",
        template: "kiln_attention_mma",
        tiles: format!("{rows}, {keys}, {split}"),
        sources: vec![INSTRUCTIONS, COMMON, MMA],
        attributes: String::new(),
        threads: threads as u32,
        blocks_per_sm: if wide { 1 } else { 2 },
        shared_bytes: shared as u32,
        grid: Grid { rows, heads: 1, times: 1, most: None },
        why: format!("mma {rows}x{keys}, keys in {split} parts"),
    }
}

fn cores(problem: &Problem) -> Choice {
    // Each thread writes whole vectors: 16 of them make a row.
    let width: u64 = if problem.dtype == DType::F32 && problem.e <= 64 { 64 } else { 128 };
    let enough = problem.typical_rows().div_ceil(64) * problem.all_heads() >= ENOUGH;
    let rows: u64 = if enough { 64 } else { 32 };
    Choice {
        variant: "cores",
        template: "kiln_attention_cores",
        tiles: format!("{rows}, 64, {width}"),
        sources: vec![INSTRUCTIONS, COMMON, CORES],
        attributes: String::new(),
        threads: 256,
        blocks_per_sm: 1,
        shared_bytes: 0,
        grid: Grid { rows, heads: 1, times: problem.e.max(1).div_ceil(width), most: None },
        why: format!("cores {rows}x64, {width} columns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Problem = Problem {
        dtype: DType::BF16,
        batch: Bounds { least: 4, most: 4 },
        heads: 32,
        group: 1,
        rows: Bounds { least: 2048, most: 2048 },
        keys: Bounds { least: 2048, most: 2048 },
        d: 128,
        e: 128,
        aligned: true,
    };

    fn hopper() -> Target {
        Target { arch_specific: true, ..Target::cubin(90) }
    }

    fn rows(rows: u64) -> Problem {
        Problem { batch: Bounds::known(1), heads: 16, group: 2, rows: Bounds::known(rows), ..HALF }
    }

    #[test]
    fn large_problems_take_the_architectures_own_instructions_where_they_may() {
        assert_eq!(choose(&HALF, hopper()).variant, "wgmma");
        assert_eq!(choose(&HALF, Target::cubin(90)).variant, "mma");
        assert_eq!(choose(&HALF, Target::cubin(75)).variant, "cores");
        assert_eq!(choose(&Problem { d: 80, ..HALF }, hopper()).variant, "mma");
        assert_eq!(choose(&Problem { aligned: false, ..HALF }, hopper()).variant, "mma");
        assert_eq!(choose(&Problem { dtype: DType::F32, ..HALF }, hopper()).variant, "cores");
        assert_eq!(choose(&Problem { e: 512, ..HALF }, hopper()).variant, "cores");
    }

    #[test]
    fn few_rows_are_decoded_by_as_many_blocks_as_the_keys_keep_busy() {
        let choice = |keys| choose(&Problem { keys: Bounds::known(keys), ..rows(1) }, hopper());
        assert_eq!(choice(1).call("p"), "kiln_attention_decode<p, 2, 1, 1>");
        assert_eq!(choice(4096).call("p"), "kiln_attention_decode<p, 2, 16, 8>");
        assert_eq!(choice(4096).blocks(1, 16, 1), 64);
        assert_eq!(choice(4096).attributes, "__cluster_dims__(8, 1, 1)");
        let ampere = choose(&rows(1), Target::cubin(80));
        assert_eq!(ampere.attributes, "");
    }

    #[test]
    fn every_choice_fits_a_block_of_its_architecture() {
        for dtype in [DType::F16, DType::F32] {
            for d in [8, 64, 72, 128, 200, 256, 512, 1024] {
                for count in [1, 3, 8, 9, 40, 256, 4096] {
                    let problem = Problem { dtype, d, e: d, ..rows(count) };
                    for target in [Target::cubin(86), hopper()] {
                        let choice = choose(&problem, target);
                        let most = if target.compute == 86 { 99 << 10 } else { 227 << 10 };
                        assert!(choice.shared_bytes <= most, "{choice:?}");
                        assert!((32..=1024).contains(&choice.threads), "{choice:?}");
                        assert!(choice.blocks(1, 16, count) >= 1, "{choice:?}");
                    }
                }
            }
        }
    }
}
