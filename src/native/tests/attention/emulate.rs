//! Cases and their kernels as one module for the emulator, and its results beside
//! the reference's.
//!
//! Invariant: the module ends the process where a kernel reads a score or writes an
//! element that is none, or writes one twice.

use std::{ffi::c_void, fmt::Write};

use kiln_proto::graph::DType;

use super::{
    case::{Case, Mask},
    variant::Variant,
};
use crate::tests::{
    build::{bytes, floats, noise},
    emulator::compile,
};

fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "kiln_f16",
        DType::BF16 => "kiln_bf16",
        _ => "kiln_f32",
    }
}

impl Case {
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
            write!(members, "enum : kiln_index {{ {name} = {value} }}; ").unwrap();
        }
        let mask = match self.mask {
            Mask::None => "x".to_owned(),
            Mask::Float | Mask::Lowest => {
                format!("x + ((const float*)mask)[(h * {s} + i) * {t} + j]")
            }
            Mask::Bool => format!(
                "((const unsigned char*)mask)[(b * {s} + i) * {t} + j] ? x : KILN_ATT_NOTHING"
            ),
        };
        let init: Vec<String> = values.iter().map(|v| format!("{v} + zero")).collect();
        let init = if symbolic { init.join(", ") } else { String::new() };
        writeln!(
            to,
            "struct problem{index} {{ {members} static constexpr float scale() {{ return {scale:?}f; }} enum : bool {{ \
             CAUSAL = {causal}, ALIGNED = {aligned} }}; }};
             struct scores{index} {{ const void* mask; enum : bool {{ NONE = {none}, EMPTY_ZERO = {zero} }};
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
}

type Entry = unsafe extern "C" fn(u32, u32, u32, u32, *mut *mut c_void);

/// Emulates each case with its variant.
pub(super) fn check(cases: &[(Case, Variant)]) {
    let mut sources: Vec<&str> = Vec::new();
    for text in cases.iter().flat_map(|(_, variant)| &variant.sources) {
        if !sources.contains(text) {
            sources.push(text);
        }
    }
    let most = cases.iter().map(|(c, _)| c.sizes.iter().product::<usize>()).max().unwrap_or(0);
    let mut module = include_str!("../../codegen/preamble.cu").to_owned();
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
        "extern \"C\" __attribute__((visibility(\"default\"))) void prepare() {{ for (auto& seen : kiln_att_seen) seen.assign({most}, 0); }}"
    )
    .unwrap();
    module += include_str!("../emulator_tail.h");
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("module.cpp"), dir.path().join("module.so"));
    std::fs::write(&source, module).unwrap();
    compile(&source, &library);
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
