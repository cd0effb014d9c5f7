//! The attention kernels at sizes that fit none of their tiles, against f64.

use std::{ffi::c_void, fmt::Write, process::Command};

use kiln_proto::{Target, graph::DType};

use super::build::{bytes, floats, noise};
use crate::codegen::attention::{Bounds, Choice, Problem, choose};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mask {
    None,
    /// One for each head, added; some rows see nothing.
    Float,
    /// One for each batch; some rows see nothing.
    Bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    /// `[b, h, s, d]`.
    Dense,
    /// `[b, s, h, d]`, as a projection leaves it.
    Split,
    /// Rows that start anywhere.
    Odd,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    dtype: DType,
    /// b, h, g, s, t, d, e.
    sizes: [usize; 7],
    causal: bool,
    mask: Mask,
    layout: Layout,
    scale: f32,
}

const BASE: Case = Case {
    dtype: DType::BF16,
    sizes: [1, 2, 2, 33, 33, 64, 64],
    causal: false,
    mask: Mask::None,
    layout: Layout::Dense,
    scale: 0.3,
};

/// A kernel's template arguments, and what a launch takes.
struct Variant {
    call: String,
    threads: u32,
    blocks: u64,
    sources: Vec<&'static str>,
}

impl From<(Choice, [usize; 7])> for Variant {
    fn from((choice, [b, h, _, s, ..]): (Choice, [usize; 7])) -> Self {
        Self {
            call: choice.call("PROBLEM"),
            threads: choice.threads,
            blocks: choice.blocks(b as u64, h as u64, s as u64),
            sources: choice.sources,
        }
    }
}

fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "kiln_f16",
        DType::BF16 => "kiln_bf16",
        _ => "kiln_f32",
    }
}

impl Case {
    fn problem(&self) -> Problem {
        let [b, h, g, s, t, d, e] = self.sizes.map(|size| size as u64);
        Problem {
            dtype: self.dtype,
            batch: Bounds::known(b),
            heads: h,
            group: h / g,
            rows: Bounds::known(s),
            keys: Bounds::known(t),
            d,
            e,
            aligned: self.aligned(),
        }
    }

    fn aligned(&self) -> bool {
        let chunk = if self.dtype == DType::F32 { 4 } else { 8 };
        let [.., d, e] = self.sizes;
        self.layout != Layout::Odd && d % chunk == 0 && e % chunk == 0
    }

    /// Strides of `[b, heads, rows, width]`.
    fn strides(&self, heads: usize, rows: usize, width: usize) -> [usize; 3] {
        match self.layout {
            Layout::Dense => [heads * rows * width, rows * width, width],
            Layout::Split => [heads * rows * width, width, heads * width],
            Layout::Odd => [heads * rows * (width + 3), rows * (width + 3), width + 3],
        }
    }

    fn shapes(&self) -> [(usize, [usize; 3]); 3] {
        let [b, h, g, s, t, d, e] = self.sizes;
        [(h, s, d), (g, t, d), (g, t, e)].map(|(heads, rows, width)| {
            let strides = self.strides(heads, rows, width);
            (b * heads * rows * (width + 3), strides)
        })
    }

    /// `symbolic`: sizes of sequences, the batch and what follows from them
    /// reach the kernel as arguments.
    fn emit(&self, to: &mut String, index: usize, variant: &Variant, symbolic: bool) {
        let [b, h, g, s, t, d, e] = self.sizes;
        let [(_, qs), (_, ks), (_, vs)] = self.shapes();
        let ty = element(self.dtype);
        let mut known = vec![("H", h), ("D", d), ("E", e), ("GROUP", h / g)];
        let names = ["B", "S", "T", "QB", "QH", "QS", "KB", "KG", "KT", "VB", "VG", "VT"];
        let values = [b, s, t, qs[0], qs[1], qs[2], ks[0], ks[1], ks[2], vs[0], vs[1], vs[2]];
        let mut members = String::new();
        if symbolic {
            write!(members, "kiln_index {};", names.join(", ")).unwrap();
        } else {
            known.extend(names.into_iter().zip(values));
        }
        for (name, value) in known {
            write!(members, "static constexpr kiln_index {name} = {value}; ").unwrap();
        }
        let mask = match self.mask {
            Mask::None => "x".to_owned(),
            Mask::Float => format!("x + ((const float*)mask)[(h * {s} + i) * {t} + j]"),
            Mask::Bool => format!(
                "((const unsigned char*)mask)[(b * {s} + i) * {t} + j] ? x : KILN_ATT_NOTHING"
            ),
        };
        let init: Vec<String> = values.iter().map(|v| format!("{v} + zero")).collect();
        let init = if symbolic { init.join(", ") } else { String::new() };
        writeln!(
            to,
            "struct problem{index} {{ {members} static constexpr float SCALE = {scale:?}f; static constexpr bool \
             CAUSAL = {causal}, ALIGNED = {aligned}; }};
             struct scores{index} {{ const void* mask; static constexpr bool NONE = {none}, EMPTY_ZERO = {zero};
             __device__ float operator()(kiln_index b, kiln_index h, kiln_index i, kiln_index j, float x) const {{
             if (i < 0 || i >= {s} || j < 0 || j >= {t}) abort();
             return {mask}; }} }};
             struct writes{index} {{ {ty}* out; template <int V> __device__ void row(kiln_index b, kiln_index h, \
             kiln_index i, kiln_index e, const float (&x)[V]) const {{
             static_assert({e} % {most} != 0 || V == {most});
             if (e % V != 0 || e + V > {e} || i >= {s} || h >= {h} || b >= {b}) abort();
             for (int n = 0; n < V; ++n) if (kiln_att_seen[{index}][((b * {h} + h) * {s} + i) * {e} + e + n]++) abort();
             kiln_store(out + ((b * {s} + i) * {h} + h) * {e} + e, x); }} }};
             extern \"C\" __global__ void k{index}(const {ty}* q, const {ty}* k, const {ty}* v, const void* mask, \
             {ty}* out, kiln_index zero) {{
             const problem{index} p{{{init}}};
             {call}(q, k, v, p, scores{index}{{mask}}, writes{index}{{out}}); }}",
            scale = self.scale,
            causal = self.causal,
            aligned = self.aligned(),
            none = self.mask == Mask::None,
            zero = self.mask == Mask::Bool,
            most = if self.dtype == DType::F32 { 4 } else { 8 },
            call = variant.call.replace("PROBLEM", &format!("problem{index}")),
        )
        .unwrap();
    }

    fn mask(&self, seed: &mut u64) -> Vec<f32> {
        let [b, h, _, s, t, ..] = self.sizes;
        let planes = if self.mask == Mask::Float { h } else { b };
        let mut mask = noise(planes * s * t, seed);
        for (i, row) in mask.chunks_mut(t.max(1)).enumerate() {
            // Every fifth row sees nothing, every third only what comes late.
            for (j, x) in row.iter_mut().enumerate() {
                let hidden = i % 5 == 4 || (i % 3 == 2 && j < t / 2) || *x > 0.7;
                *x = if hidden { f32::NEG_INFINITY } else { *x };
            }
        }
        mask
    }

    /// In the order `[b, s, h, e]`.
    fn expect(&self, [q, k, v]: [&[f32]; 3], mask: &[f32]) -> Vec<f64> {
        let [b, h, g, s, t, _, e] = self.sizes;
        let [(_, qs), (_, ks), (_, vs)] = self.shapes();
        let d = self.sizes[5];
        let mut out = Vec::new();
        for (b, i, h) in
            (0..b).flat_map(|b| (0..s).flat_map(move |i| (0..h).map(move |h| (b, i, h))))
        {
            let kv = h / (self.sizes[1] / g);
            let scores: Vec<f64> = (0..t)
                .map(|j| {
                    let at = |x: &[f32], st: [usize; 3], at: [usize; 3], n: usize| {
                        f64::from(x[at[0] * st[0] + at[1] * st[1] + at[2] * st[2] + n])
                    };
                    let dot: f64 =
                        (0..d).map(|n| at(q, qs, [b, h, i], n) * at(k, ks, [b, kv, j], n)).sum();
                    let x = dot * f64::from(self.scale);
                    let masked = match self.mask {
                        Mask::None => x,
                        Mask::Float => x + f64::from(mask[(h * s + i) * t + j]),
                        Mask::Bool if mask[(b * s + i) * t + j] == f32::NEG_INFINITY => {
                            f64::NEG_INFINITY
                        }
                        Mask::Bool => x,
                    };
                    if self.causal && j > i { f64::NEG_INFINITY } else { masked }
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let empty = most == f64::NEG_INFINITY;
            let weights: Vec<f64> = scores.iter().map(|x| (x - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for n in 0..e {
                let at = |j: usize| f64::from(v[b * vs[0] + kv * vs[1] + j * vs[2] + n]);
                let value: f64 = weights.iter().enumerate().map(|(j, w)| w / sum * at(j)).sum();
                out.push(match empty {
                    true if self.mask == Mask::Float && t > 0 => f64::NAN,
                    true => 0.0,
                    false => value,
                });
            }
        }
        out
    }
}

type Entry = unsafe extern "C" fn(u32, u32, u32, u32, *mut *mut c_void);

/// Emulates each case with its variant.
fn check(cases: &[(Case, Variant)]) {
    let mut sources: Vec<&str> = Vec::new();
    for text in cases.iter().flat_map(|(_, variant)| &variant.sources) {
        if !sources.contains(text) {
            sources.push(text);
        }
    }
    let most = cases.iter().map(|(c, _)| c.sizes.iter().product::<usize>()).max().unwrap_or(0);
    let mut module = [
        include_str!("emulator.h"),
        include_str!("emulator_attention.h"),
        include_str!("../codegen/preamble.cu"),
    ]
    .join("\n");
    module += &sources.join("\n");
    // Each element is written once.
    writeln!(module, "\nstatic std::vector<unsigned char> kiln_att_seen[{}];", cases.len())
        .unwrap();
    for (index, (case, variant)) in cases.iter().enumerate() {
        case.emit(&mut module, index, variant, index % 2 == 1);
        writeln!(module, "KILN_ENTRY(k{index}, 1)").unwrap();
    }
    writeln!(
        module,
        "extern \"C\" void prepare() {{ for (auto& seen : kiln_att_seen) seen.assign({most}, 0); }}"
    )
    .unwrap();
    module += include_str!("emulator_tail.h");
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("module.cpp"), dir.path().join("module.so"));
    std::fs::write(&source, module).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library was just built from sources of this crate.
    let library = unsafe { libloading::Library::new(&library).unwrap() };
    // SAFETY: it was written with this signature.
    unsafe { library.get::<extern "C" fn()>(b"prepare").unwrap()() };
    for (index, (case, variant)) in cases.iter().enumerate() {
        run(&library, index, case, variant);
    }
}

fn run(library: &libloading::Library, index: usize, case: &Case, variant: &Variant) {
    let mut seed = 11 + index as u64;
    let data = case.shapes().map(|(count, _)| noise(count, &mut seed));
    let mask = case.mask(&mut seed);
    let held: Vec<Vec<u128>> = data
        .iter()
        .map(|x| match case.dtype {
            DType::F16 => x.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            dtype => bytes(x, dtype),
        })
        .map(|bytes| words(&bytes))
        .collect();
    let mask_bytes: Vec<u8> = match case.mask {
        Mask::Bool => mask.iter().map(|x| u8::from(*x != f32::NEG_INFINITY)).collect(),
        _ => mask.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let mask_words = words(&mask_bytes);
    let [b, h, _, s, _, _, e] = case.sizes;
    let size = if case.dtype == DType::F32 { 4 } else { 2 };
    let mut out = words(&vec![0xff; b * h * s * e * size]);
    let pointer = |x: &[u128]| x.as_ptr() as *mut c_void;
    let mut args = [
        pointer(&held[0]),
        pointer(&held[1]),
        pointer(&held[2]),
        pointer(&mask_words),
        out.as_mut_ptr().cast(),
        std::ptr::null_mut(),
    ];
    // SAFETY: the kernel was written with these parameters, of these sizes.
    unsafe {
        let entry = library.get::<Entry>(format!("emulate_k{index}").as_bytes()).unwrap();
        entry(variant.blocks as u32, 1, 1, variant.threads, args.as_mut_ptr());
    }
    let bytes: Vec<u8> =
        out.iter().flat_map(|word| word.to_ne_bytes()).take(b * h * s * e * size).collect();
    let ours = floats(case.dtype, &bytes);
    let expected = case.expect([&data[0], &data[1], &data[2]], &mask);
    let limit = match case.dtype {
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    };
    assert_eq!(ours.len(), expected.len());
    for (at, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        let same = (ours - expected).abs() < limit || (ours.is_nan() && expected.is_nan());
        assert!(same, "{case:?} by {} at {at}: {ours} for {expected}", variant.call);
    }
}

fn words(bytes: &[u8]) -> Vec<u128> {
    let mut words = vec![0u128; bytes.len().div_ceil(16).max(1)];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(16)) {
        let mut padded = [0; 16];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u128::from_ne_bytes(padded);
    }
    words
}

fn chosen(case: Case) -> (Case, Variant) {
    let choice = choose(&case.problem(), Target::cubin(80));
    (case, (choice, case.sizes).into())
}

/// `kiln_attention_mma` with tiles of its own.
fn tiled(case: Case, [rows, keys, split]: [u64; 3]) -> (Case, Variant) {
    let (_, mut variant) =
        chosen(Case { sizes: [1, 1, 1, 64, 64, 64, 64], dtype: DType::F16, ..BASE });
    let [b, h, _, s, ..] = case.sizes;
    variant.call = format!("kiln_attention_mma<PROBLEM, {rows}, {keys}, {split}>");
    variant.threads = (rows * 2 * split) as u32;
    variant.blocks = (s as u64).div_ceil(rows) * (b * h) as u64;
    (case, variant)
}

#[test]
fn tensor_cores_compute_tails_masks_and_groups() {
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        tiled(sizes([1, 2, 2, 33, 33, 64, 64]), [32, 32, 1]),
        tiled(Case { causal: true, ..sizes([2, 2, 1, 50, 50, 32, 32]) }, [16, 32, 1]),
        tiled(
            Case { causal: true, layout: Layout::Split, ..sizes([1, 4, 2, 70, 70, 16, 16]) },
            [64, 64, 1],
        ),
        tiled(Case { mask: Mask::Float, ..sizes([2, 2, 1, 19, 75, 48, 80]) }, [16, 32, 2]),
        tiled(
            Case { mask: Mask::Bool, causal: true, ..sizes([2, 2, 2, 40, 40, 40, 24]) },
            [32, 64, 4],
        ),
        tiled(Case { layout: Layout::Odd, ..sizes([1, 2, 1, 17, 35, 20, 10]) }, [16, 64, 2]),
        tiled(Case { causal: true, ..sizes([1, 1, 1, 20, 90, 16, 7]) }, [16, 64, 4]),
        tiled(Case { causal: true, ..sizes([1, 1, 1, 90, 20, 16, 32]) }, [32, 32, 2]),
        tiled(
            Case { scale: -0.2, dtype: DType::F16, ..sizes([1, 2, 2, 16, 40, 160, 144]) },
            [16, 32, 1],
        ),
        tiled(
            Case { dtype: DType::F16, mask: Mask::Bool, ..sizes([1, 1, 1, 10, 33, 256, 256]) },
            [16, 32, 2],
        ),
        tiled(sizes([2, 1, 1, 5, 0, 32, 32]), [16, 32, 1]),
        tiled(Case { mask: Mask::Float, ..sizes([1, 1, 1, 5, 0, 32, 32]) }, [16, 32, 2]),
    ]);
}

#[test]
fn ordinary_cores_compute_any_width_and_type() {
    let sizes = |sizes| Case { dtype: DType::F32, sizes, ..BASE };
    let forced = |case: Case, [rows, keys, width]: [u64; 3]| {
        let [b, h, _, s, _, _, e] = case.sizes;
        let (_, mut variant) = chosen(Case { dtype: DType::F32, ..BASE });
        variant.call = format!("kiln_attention_cores<PROBLEM, {rows}, {keys}, {width}>");
        variant.blocks = (s as u64).div_ceil(rows) * (b * h) as u64 * (e as u64).div_ceil(width);
        (case, variant)
    };
    check(&[
        forced(sizes([1, 2, 2, 33, 33, 64, 64]), [32, 64, 64]),
        forced(Case { causal: true, ..sizes([2, 2, 1, 40, 40, 36, 32]) }, [32, 64, 64]),
        forced(Case { mask: Mask::Float, ..sizes([1, 2, 1, 30, 70, 33, 51]) }, [64, 64, 64]),
        forced(
            Case {
                mask: Mask::Bool,
                causal: true,
                layout: Layout::Odd,
                ..sizes([2, 1, 1, 65, 66, 7, 140])
            },
            [64, 64, 128],
        ),
        forced(
            Case { scale: -0.1, layout: Layout::Split, ..sizes([1, 2, 2, 9, 12, 300, 260]) },
            [32, 64, 128],
        ),
        forced(Case { dtype: DType::BF16, ..sizes([1, 1, 1, 9, 12, 300, 264]) }, [32, 64, 128]),
        forced(sizes([1, 1, 1, 3, 0, 8, 8]), [32, 64, 64]),
    ]);
}

#[test]
fn decoding_shares_keys_among_heads() {
    let forced = |case: Case, [rows, warps]: [u64; 2]| {
        let [b, h, g, s, ..] = case.sizes;
        let (_, mut variant) = chosen(Case { sizes: [1, 1, 1, 1, 1, 8, 8], ..BASE });
        variant.call = format!("kiln_attention_decode<PROBLEM, {rows}, {warps}, 1>");
        variant.blocks = ((s * h / g) as u64).div_ceil(rows) * (b * g) as u64;
        variant.threads = warps as u32 * 32;
        (case, variant)
    };
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        forced(sizes([2, 4, 2, 1, 300, 128, 128]), [2, 4]),
        forced(sizes([2, 4, 2, 1, 1, 128, 128]), [2, 1]),
        forced(Case { causal: true, ..sizes([1, 2, 2, 5, 40, 64, 32]) }, [8, 2]),
        forced(Case { causal: true, mask: Mask::Float, ..sizes([1, 4, 1, 3, 90, 32, 64]) }, [4, 2]),
        forced(Case { mask: Mask::Bool, ..sizes([5, 3, 1, 1, 33, 80, 96]) }, [1, 2]),
        forced(
            Case { mask: Mask::Bool, dtype: DType::F32, ..sizes([5, 2, 1, 1, 70, 256, 200]) },
            [2, 2],
        ),
        forced(
            Case { layout: Layout::Odd, dtype: DType::F16, ..sizes([1, 2, 1, 2, 37, 9, 13]) },
            [4, 1],
        ),
        forced(
            Case { layout: Layout::Split, scale: -0.2, ..sizes([1, 2, 2, 1, 50, 512, 300]) },
            [1, 4],
        ),
        forced(sizes([1, 2, 2, 1, 0, 16, 16]), [1, 2]),
    ]);
}

#[test]
fn hopper_walks_its_tiles_in_pairs() {
    // Blocks that take turns, or more than there are tiles.
    let forced = |case: Case, keys: u64, turns: bool, blocks: u64| {
        let hopper = Target { arch_specific: true, ..Target::cubin(90) };
        let large = Problem {
            batch: Bounds::known(64),
            ..Case { sizes: [1, 4, 4, 512, 512, 64, 64], ..BASE }.problem()
        };
        let mut variant = Variant::from((choose(&large, hopper), case.sizes));
        variant.call = format!("kiln_attention_wgmma<PROBLEM, {keys}, 2, {turns}>");
        variant.blocks = blocks;
        (case, variant)
    };
    let sizes = |sizes| Case { sizes, ..BASE };
    check(&[
        forced(Case { causal: true, ..sizes([1, 2, 1, 300, 300, 64, 64]) }, 128, false, 2),
        forced(Case { causal: true, ..sizes([1, 1, 1, 200, 200, 64, 128]) }, 64, true, 2),
        forced(Case { layout: Layout::Split, ..sizes([2, 1, 1, 70, 290, 128, 64]) }, 128, true, 1),
        forced(
            Case { mask: Mask::Float, dtype: DType::F16, ..sizes([1, 2, 2, 40, 150, 64, 64]) },
            128,
            false,
            1,
        ),
        forced(
            Case {
                mask: Mask::Bool,
                causal: true,
                scale: -0.2,
                ..sizes([1, 1, 1, 150, 30, 64, 64])
            },
            64,
            false,
            1,
        ),
        forced(sizes([1, 2, 1, 3, 0, 64, 64]), 128, false, 2),
    ]);
}

#[test]
fn choices_compute_what_they_are_chosen_for() {
    let sizes = |dtype, sizes| chosen(Case { dtype, sizes, causal: true, ..BASE });
    check(&[
        sizes(DType::BF16, [1, 2, 1, 40, 40, 128, 128]),
        sizes(DType::F16, [1, 1, 1, 20, 20, 256, 256]),
        sizes(DType::F32, [1, 2, 1, 40, 40, 64, 64]),
        sizes(DType::BF16, [1, 4, 2, 1, 200, 128, 128]),
        sizes(DType::F32, [1, 4, 2, 3, 20, 64, 64]),
        sizes(DType::BF16, [1, 1, 1, 1, 9, 600, 600]),
        sizes(DType::F16, [1, 2, 1, 9, 9, 64, 64]),
    ]);
}
