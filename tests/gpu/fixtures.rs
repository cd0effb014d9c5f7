//! Exported archives with golden calls: `NAME.safetensors` beside `NAME_*.pt2`.
//!
//! A golden file has `in0`, ... and `out0`, ... of a first call; what a further
//! call has of its own is `CALL.in3`, `CALL.out0`. Floats are cast to what the
//! program takes; goldens hold only what every float type can.

use std::{borrow::Cow, path::PathBuf};

use half::{bf16, f16};
use kiln_native::interp::Tensor;
use kiln_proto::graph::DType;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// An archive and the file with its calls.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) archive: Vec<u8>,
    pub(crate) golden: Vec<u8>,
}

/// The repository's fixtures, or those that were carried here.
fn folder() -> PathBuf {
    let carried = std::env::var_os("KILN_FIXTURES").map(PathBuf::from);
    carried.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")))
}

/// All archives in a folder of fixtures that have a golden file.
pub(crate) fn all(below: &str) -> Vec<Fixture> {
    let folder = folder().join(below);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let stems: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".safetensors")).collect();
    let found = names.iter().filter(|name| name.ends_with(".pt2")).filter_map(|name| {
        let stem = name.split_once('.').map_or(name.as_str(), |(stem, _)| stem);
        let fits =
            |s: &&&str| stem.strip_prefix(**s).is_some_and(|r| r.is_empty() || r.starts_with('_'));
        let golden = stems.iter().filter(fits).max_by_key(|stem| stem.len())?;
        Some(Fixture {
            name: name.clone(),
            archive: std::fs::read(folder.join(name)).unwrap(),
            golden: std::fs::read(folder.join(format!("{golden}.safetensors"))).unwrap(),
        })
    });
    found.collect()
}

/// The calls of a golden file: the first is `""`.
pub(crate) fn calls(golden: &SafeTensors<'_>) -> Vec<String> {
    let of = |name: &str| name.rsplit_once('.').map_or(String::new(), |(call, _)| call.to_owned());
    let mut calls: Vec<String> = golden.names().into_iter().map(of).collect();
    calls.sort();
    calls.dedup();
    calls
}

/// `in3` or `out0` of a call; inputs that it does not have are the first call's.
pub(crate) fn tensor<'a>(
    golden: &'a SafeTensors<'_>,
    call: &str,
    name: &str,
) -> Result<TensorView<'a>, String> {
    let own = if call.is_empty() { name.to_owned() } else { format!("{call}.{name}") };
    let found = golden.tensor(&own);
    let found = found.or_else(|error| match name.starts_with("in") {
        true => golden.tensor(name),
        false => Err(error),
    });
    found.map_err(|e| format!("{own}: {e}"))
}

/// Elements as `dtype`, where both are floats.
pub(crate) fn cast(view: &TensorView<'_>, dtype: DType) -> Result<Tensor<'static>, String> {
    let from = match view.dtype() {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::BOOL => DType::Bool,
        other => return Err(format!("elements of {other:?}")),
    };
    let given = Tensor::dense(from, view.shape(), view.data().to_vec());
    if from == dtype {
        return Ok(given);
    }
    let floats = given.to_f64().map_err(|e| e.message)?.into_iter();
    let bytes: Vec<u8> = match dtype {
        DType::F64 => floats.flat_map(f64::to_le_bytes).collect(),
        DType::F32 => floats.flat_map(|x| (x as f32).to_le_bytes()).collect(),
        DType::F16 => floats.flat_map(|x| f16::from_f64(x).to_le_bytes()).collect(),
        DType::BF16 => floats.flat_map(|x| bf16::from_f64(x).to_le_bytes()).collect(),
        other => return Err(format!("{from} given for {other}")),
    };
    Ok(Tensor::dense(dtype, view.shape(), Cow::Owned(bytes)))
}

/// Length of the difference over the length of what is right; NaN must meet NaN
/// and infinity itself.
pub(crate) fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    if ours.len() != golden.len() {
        return f64::INFINITY;
    }
    let (mut error, mut length) = (0.0, 0.0);
    for (a, b) in ours.iter().zip(golden) {
        if a == b || (a.is_nan() && b.is_nan()) {
            length += if b.is_finite() { b * b } else { 0.0 };
            continue;
        }
        if !a.is_finite() || !b.is_finite() {
            return f64::INFINITY;
        }
        error += (a - b) * (a - b);
        length += b * b;
    }
    if error == 0.0 { 0.0 } else { (error / length).sqrt() }
}
