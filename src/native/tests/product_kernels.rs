//! Every template of products on the CPU emulator, at sizes and strides that
//! fit no tile, against sums in f64.

use std::ffi::c_void;

use kiln_proto::graph::DType;

use super::{
    build::{bytes, floats, noise},
    emulator::{Aligned, Kernels},
};
use crate::codegen::product::{
    choose::{Choice, Variant, source},
    tiles::{CORES, MMA, Tile, cores, mma, stream, vector},
};

const PREAMBLE: &str = include_str!("../codegen/preamble.cu");

/// How an operand lies in memory; `Padded` along k, rows further apart.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    AlongK,
    Across,
    Padded,
    Odd,
}

#[derive(Debug, Clone)]
struct Case {
    choice: Choice,
    dtype: DType,
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: Layout,
    b: Layout,
    /// Whether sizes and strides are the kernel's parameters.
    symbolic: bool,
}

/// Strides of batch, the other dimension and k.
fn strides(layout: Layout, other: usize, k: usize) -> [usize; 3] {
    match layout {
        Layout::AlongK => [other * k, k, 1],
        Layout::Across => [other * k, 1, other],
        Layout::Padded => {
            let pitch = k.next_multiple_of(8) + 8;
            [other * pitch, pitch, 1]
        }
        Layout::Odd => [other * k * 2 + 1, k * 2, 2],
    }
}

impl Case {
    fn aligned(&self, of: [usize; 3], layout: Layout) -> bool {
        let [batch, other, k] = of;
        let rows = if layout == Layout::Across { k } else { other };
        let per = 16 / self.dtype.bytes() as usize;
        layout != Layout::Odd && rows.is_multiple_of(per) && batch.is_multiple_of(per)
    }

    /// The problem, the epilogue (three times the sum, plus the column) and the kernel.
    fn text(&self, name: &str) -> String {
        let Self { choice, batch, m, n, k, a, b, .. } = self;
        let element = if self.dtype == DType::F32 { "kiln_f32" } else { "kiln_bf16" };
        let (sa, sb) = (strides(*a, *m, *k), strides(*b, *n, *k));
        let aligned = self.aligned(sa, *a) && self.aligned(sb, *b);
        let size = |name: &str, value: usize| match self.symbolic {
            true => format!("  kiln_index {name};\n"),
            false => format!("  enum : kiln_index {{ {name} = {value} }};\n"),
        };
        let sizes: String = [
            ("M", *m),
            ("N", *n),
            ("K", *k),
            ("BATCH", *batch),
            ("AM", sa[1]),
            ("AK", sa[2]),
            ("BK", sb[2]),
            ("BN", sb[1]),
        ]
        .map(|(name, value)| size(name, value))
        .concat();
        let values = match self.symbolic {
            true => format!("{m}, {n}, {k}, {batch}, {}, {}, {}, {}", sa[1], sa[2], sb[2], sb[1]),
            false => String::new(),
        };
        let cluster = match choice.split {
            1 => String::new(),
            split => format!("__cluster_dims__({split}, 1, 1) "),
        };
        let fours = |layout: Layout, other: usize| {
            let along = if layout == Layout::Across { other } else { *k };
            along.is_multiple_of(4) && !self.symbolic
        };
        let along = |layout: Layout| matches!(layout, Layout::AlongK | Layout::Padded);
        format!(
            "struct {name}_problem {{
{sizes}
  enum : bool {{ ALIGNED = {aligned}, WIDE = {wide}, B_GIVEN = {given}, TWIN = false,\n\
         GROUPED = false }};
  enum : bool {{ A_FOURS = {a_fours}, B_FOURS = {b_fours} }};
  enum : bool {{ A_ALONG_K = {a_k}, A_ALONG_M = {a_m}, B_ALONG_K = {b_k}, B_ALONG_N = {b_n} }};
  __device__ __forceinline__ kiln_index A_BATCH(kiln_index z) const {{ return z * {a_batch}; }}
  __device__ __forceinline__ kiln_index B_BATCH(kiln_index z) const {{ return z * {b_batch}; }}
}};
struct {name}_write {{
  {element}* out;
  template <int V>
  __device__ __forceinline__ void row(kiln_index z, kiln_index m, kiln_index n,
                                      const float (&x)[V]) const {{
    float y[V];
    for (int v = 0; v < V; ++v) y[v] = 3.0f * x[v] + (float)(n + v);
    kiln_store(out + (z * {m} + m) * {n} + n, y);
  }}
}};
extern \"C\" __global__ void __launch_bounds__({threads}, {blocks}) {cluster}{name}(
    const {element}* a, const {element}* b, {element}* out) {{
  using P = {name}_problem;
  const P p{{{values}}};
  {call}(a, b, p, {name}_write{{out}}, blockIdx.x);
}}
",
            wide = n.is_multiple_of(8) && !self.symbolic,
            given = m.is_multiple_of(2),
            a_fours = fours(*a, *m),
            b_fours = fours(*b, *n),
            a_k = along(*a),
            a_m = *a == Layout::Across,
            b_k = along(*b),
            b_n = *b == Layout::Across,
            a_batch = sa[0],
            b_batch = sb[0],
            threads = choice.threads,
            blocks = choice.blocks,
            call = choice.call,
        )
    }

    fn grid(&self) -> [u32; 3] {
        let tiles = self.m.div_ceil(self.choice.tile[0] as usize)
            * self.n.div_ceil(self.choice.tile[1] as usize)
            * self.batch;
        [tiles as u32 * self.choice.split, 1, 1]
    }
}

/// Builds and runs all `cases`, and compares every element.
fn check(cases: &[Case]) {
    let name = |i: usize| format!("case{i}");
    let choices: Vec<Choice> = cases.iter().map(|case| case.choice.clone()).collect();
    let texts = cases.iter().enumerate().map(|(i, case)| case.text(&name(i)));
    let text = format!("{PREAMBLE}\n{}\n{}", source(&choices), texts.collect::<String>());
    let names: Vec<String> = (0..cases.len()).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let kernels = Kernels::build(&text, &names);
    let mut seed = 7;
    for (case, name) in cases.iter().zip(names) {
        let Case { dtype, batch, m, n, k, a, b, .. } = *case;
        let (sa, sb) = (strides(a, m, k), strides(b, n, k));
        let count = |s: [usize; 3]| batch * s[0] + s[0];
        let (xa, xb) = (noise(count(sa), &mut seed), noise(count(sb), &mut seed));
        let mut memory =
            [bytes(&xa, dtype), bytes(&xb, dtype), vec![0xff; batch * m * n * bytes_of(dtype)]]
                .map(|bytes| Aligned::of(&bytes));
        let mut args: Vec<*mut c_void> = memory.iter_mut().map(|memory| memory.at(0)).collect();
        // SAFETY: the kernel's parameters are these pointers, to as much as its sizes need.
        unsafe { kernels.launch(name, case.grid(), case.choice.threads, &mut args) };
        let ours = floats(dtype, &memory[2].to_vec());
        let limit = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
        for (i, ours) in ours.iter().enumerate() {
            let (z, row, column) = (i / (m * n), i / n % m, i % n);
            let at = |x: &[f32], s: [usize; 3], other: usize, k: usize| {
                f64::from(x[z * s[0] + other * s[1] + k * s[2]])
            };
            let sum: f64 = (0..k).map(|k| at(&xa, sa, row, k) * at(&xb, sb, column, k)).sum();
            let right = 3.0 * sum + column as f64;
            let error = (ours - right).abs() / (right.abs() + (k as f64).sqrt() + 1.0);
            assert!(error < limit, "{case:?} at [{z}, {row}, {column}]: {ours} for {right}");
        }
    }
}

fn bytes_of(dtype: DType) -> usize {
    dtype.bytes() as usize
}

/// Sizes in which every edge of a tile occurs, and sizes of one and none.
fn cases(choice: &Choice, dtype: DType) -> Vec<Case> {
    use Layout::{Across, AlongK, Odd, Padded};
    let [tile_m, tile_n] = choice.tile.map(|size| size as usize);
    let case = |batch, [m, n, k]: [usize; 3], a, b, symbolic| {
        let choice = choice.clone();
        Case { choice, dtype, batch, m, n, k, a, b, symbolic }
    };
    if choice.variant == Variant::Vector {
        let m = tile_m;
        return vec![
            case(2, [m, tile_n + 3, 8 * 67], AlongK, AlongK, false),
            case(1, [m, 2 * tile_n, 8], AlongK, AlongK, false),
            case(2, [m, 1, 8 * 150], Padded, AlongK, true),
            case(1, [m, tile_n, 0], AlongK, AlongK, false),
        ];
    }
    vec![
        // Whole chunks; more steps than stages; odd sizes; one of each; no sum at all.
        case(1, [tile_m + 8, tile_n + 8, 72], AlongK, AlongK, false),
        case(2, [16, 24, 328], Across, Across, false),
        case(1, [17, 24, 200], AlongK, Across, true),
        case(1, [tile_m + 3, 5, 67], AlongK, Across, false),
        case(1, [tile_m - 3, tile_n - 7, 75], Across, AlongK, false),
        case(1, [5, 9, 39], Padded, Padded, false),
        case(1, [9, 11, 70], Odd, Odd, false),
        case(1, [1, 1, 1], AlongK, AlongK, false),
        case(1, [9, 8, 0], AlongK, AlongK, false),
    ]
}

#[test]
fn products_on_the_ordinary_cores_are_right_at_every_edge() {
    let single = CORES.iter().flat_map(|tile| cases(&cores(*tile), DType::F32));
    let half = CORES.iter().flat_map(|tile| cases(&cores(*tile), DType::BF16).into_iter().take(2));
    check(&single.chain(half).collect::<Vec<_>>());
}

#[test]
fn products_on_the_tensor_cores_are_right_at_every_edge() {
    check(&MMA.iter().flat_map(|tile| cases(&mma(tile, 1), DType::BF16)).collect::<Vec<_>>());
}

#[test]
fn parts_of_a_sum_meet_in_the_cluster() {
    let all = MMA[2..].iter().zip([2, 8, 4, 8]);
    let of =
        |(tile, split): (&Tile, i64)| cases(&mma(tile, split), DType::BF16).into_iter().take(3);
    check(&all.flat_map(of).collect::<Vec<_>>());
}

#[test]
fn products_of_few_rows_are_right_for_every_share_of_the_work() {
    let all = [(1, 4, 1, 2), (1, 8, 8, 2), (2, 4, 2, 2), (3, 4, 4, 4), (8, 8, 2, 4), (1, 4, 1, 8)];
    let of = |(rows, warps, split, columns)| vector(rows, warps, split, columns);
    let mut all: Vec<Case> = all.into_iter().flat_map(|all| cases(&of(all), DType::BF16)).collect();
    all.extend(cases(&of((1, 4, 2, 2)), DType::F32));
    check(&all);
}

#[test]
fn what_streams_through_a_ring_is_right_for_every_share_of_the_work() {
    use Layout::{AlongK, Padded};
    // Columns of a block; all columns; k: one step, chunks that are no whole share, more steps
    // than stages, a stage of many columns that is cut off, all shares of a column.
    let sizes = [(5, 13, 8 * 67), (40, 45, 8 * 150), (40, 95, 64), (24, 51, 4096), (9, 9, 14_336)];
    let mut all = Vec::new();
    for (columns, n, k) in sizes {
        for (rows, dtype, a) in
            [(1, DType::BF16, AlongK), (2, DType::BF16, Padded), (1, DType::F32, AlongK)]
        {
            let choice = stream(rows, columns, k * dtype.bytes() as i64, false);
            // Of the longest columns in 32 bits there is no ring of two.
            let Some(choice) = choice else { continue };
            let [m, n, k] = [rows, n, k].map(|size| size as usize);
            let (batch, b) = (2, a);
            all.push(Case { choice, dtype, batch, m, n, k, a, b, symbolic: false });
        }
    }
    assert!(all.len() > 12, "{}", all.len());
    check(&all);
}
