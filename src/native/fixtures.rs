//! The fixtures of `tests/fixtures`: programs that PyTorch exported, with inputs
//! and results.
//!
//! Invariant: inputs lie in memory as the program says, strides included, so
//! that whatever runs the program sees what PyTorch saw.

use std::{
    collections::BTreeSet,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use kiln_proto::graph::{DType, Graph, InputKind};
use safetensors::{SafeTensors, tensor::TensorView};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{bind, core::Program, interp::Tensor};

/// An archive and what it was called with.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// File name of the archive.
    pub name: String,
    /// What `torch.export` wrote.
    pub archive: Vec<u8>,
    golden: Vec<u8>,
}

/// One call of a program.
#[derive(Debug, Clone)]
pub struct Call {
    /// Empty for the first.
    pub name: String,
    /// By position in the graph's inputs, constants among them.
    pub inputs: Vec<Tensor<'static>>,
    /// By position in the graph's outputs.
    pub outputs: Vec<Expected>,
}

/// What an output should be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// What it tries.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// In row-major order.
    pub values: Vec<f64>,
    /// How many operations it takes, each of which rounds: about. None for what
    /// comes from the ends of a type, which is judged by its own size alone.
    pub steps: f64,
}

fn steps(archive: &str, output: &str) -> f64 {
    // Attention rounds scores and probabilities too.
    let is_chain = archive.starts_with("attention")
        || ["attention", "pieces"].iter().any(|chain| output.starts_with(chain));
    match () {
        () if is_chain => 16.0,
        () if output.contains("edge") => 0.0,
        () => 1.0,
    }
}

/// The archives in `tests/fixtures/FOLDER` with results, by name.
pub fn load(folder: &str) -> Vec<Fixture> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(folder);
    load_from(&path)
}

/// The archives in `folder` with results, by name. Those of one golden file
/// share the start of their names.
pub fn load_from(folder: &Path) -> Vec<Fixture> {
    let read = |path: &Path| match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => panic!("{}: {e}", path.display()),
    };
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(e) => panic!("{}: {e}", folder.display()),
    };
    paths.sort();
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let is = |path: &&PathBuf, kind: &str| path.extension().is_some_and(|e| e == kind);
    let golden: Vec<&PathBuf> = paths.iter().filter(|path| is(path, "safetensors")).collect();
    let of = |archive: &Path| {
        let archive = stem(archive)?;
        let fits = |path: &&&PathBuf| stem(path).is_some_and(|stem| archive.starts_with(&stem));
        golden.iter().filter(fits).max_by_key(|path| path.as_os_str().len()).copied()
    };
    let archives = paths.iter().filter(|path| is(path, "pt2"));
    archives
        .filter_map(|path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some(Fixture { name, archive: read(path), golden: read(of(path)?) })
        })
        .collect()
}

impl Fixture {
    /// The calls that `program`, which came from `graph`, can take.
    pub fn calls(&self, graph: &Graph, program: &Program) -> Result<Vec<Call>, String> {
        let file = SafeTensors::deserialize(&self.golden).map_err(|e| e.to_string())?;
        let (_, header) = SafeTensors::read_metadata(&self.golden).map_err(|e| e.to_string())?;
        let names = header.metadata().as_ref().and_then(|all| all.get("names"));
        let names: Vec<String> =
            names.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        let calls: BTreeSet<&str> = file
            .names()
            .into_iter()
            .map(|name| name.rsplit_once('.').map_or("", |(call, _)| call))
            .collect();
        // Fixed sizes are those of the first call.
        let calls = calls.into_iter().filter(|call| call.is_empty() || !program.symbols.is_empty());
        calls.map(|call| self.call(call, &file, &names, graph, program)).collect()
    }

    fn call(
        &self,
        call: &str,
        file: &SafeTensors<'_>,
        names: &[String],
        graph: &Graph,
        program: &Program,
    ) -> Result<Call, String> {
        // What a further call does not give is as in the first.
        let tensor = |what: &str, i: usize| {
            let own = format!("{call}.{what}{i}");
            let found = file.tensor(&own).or_else(|_| file.tensor(&format!("{what}{i}")));
            found.map_err(|e| format!("{what}{i} of {call:?}: {e}"))
        };
        let mut dense = Vec::new();
        for (i, input) in graph.inputs.iter().enumerate() {
            let ty = &graph.value(input.value).ty;
            dense.push(if let InputKind::Constant(constant) = &input.kind {
                let sizes = ty.shape.iter().filter_map(|size| usize::try_from(size.known()?).ok());
                Tensor::dense(ty.dtype, &sizes.collect::<Vec<_>>(), constant.data.clone())
            } else {
                let view = tensor("in", i)?;
                Tensor::dense(ty.dtype, view.shape(), bytes(&numbers(&view)?, &view, ty.dtype))
            });
        }
        let shapes: Vec<&[usize]> =
            program.inputs.iter().map(|input| dense[input.position].shape.as_slice()).collect();
        let symbols = bind::bind(program, &shapes).map_err(|e| e.to_string())?;
        for input in &program.inputs {
            let strides = input.strides.iter().map(|stride| {
                stride.value(&symbols).and_then(|stride| usize::try_from(stride).ok())
            });
            let strides: Option<Vec<usize>> = strides.collect();
            let tensor = &mut dense[input.position];
            *tensor = laid_out(tensor, &strides.ok_or("a stride that is none")?);
        }
        let outputs = (0..graph.outputs.len()).map(|i| {
            let view = tensor("out", i)?;
            let name = names.get(i).cloned().unwrap_or_else(|| format!("out{i}"));
            let steps = steps(&self.name, &name);
            Ok(Expected { name, shape: view.shape().to_vec(), values: numbers(&view)?, steps })
        });
        let outputs = outputs.collect::<Result<_, String>>()?;
        Ok(Call { name: call.to_owned(), inputs: dense, outputs })
    }
}

/// The elements of `view` as numbers.
fn numbers(view: &TensorView<'_>) -> Result<Vec<f64>, String> {
    let dtype = dtype(view)?;
    Tensor::dense(dtype, view.shape(), view.data()).to_f64().map_err(|e| e.to_string())
}

fn dtype(view: &TensorView<'_>) -> Result<DType, String> {
    use safetensors::Dtype;
    Ok(match view.dtype() {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        other => return Err(format!("a tensor of {other:?}")),
    })
}

/// `numbers`, which are those of `view`, as elements of `dtype`.
fn bytes(numbers: &[f64], view: &TensorView<'_>, dtype: DType) -> Vec<u8> {
    let numbers = numbers.iter();
    match dtype {
        DType::F64 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
        DType::F32 => numbers.flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        DType::F16 => numbers.flat_map(|x| f16::from_f64(*x).to_le_bytes()).collect(),
        DType::BF16 => numbers.flat_map(|x| bf16::from_f64(*x).to_le_bytes()).collect(),
        // Whole numbers are stored as what they are: floats do not hold all.
        _ => view.data().to_vec(),
    }
}

/// A dense tensor in memory with other strides.
fn laid_out(tensor: &Tensor<'_>, strides: &[usize]) -> Tensor<'static> {
    let Tensor { dtype, shape, bytes, .. } = tensor;
    let width = dtype.bytes() as usize;
    let last: usize = shape.iter().zip(strides).map(|(n, s)| n.saturating_sub(1) * s).sum();
    let count: usize = shape.iter().product();
    let mut out = vec![0; if count == 0 { 0 } else { (last + 1) * width }];
    for i in 0..count {
        let (mut left, mut at) = (i, 0);
        for (size, stride) in shape.iter().zip(strides).rev() {
            at += left % size * stride;
            left /= size;
        }
        out[at * width..][..width].copy_from_slice(&bytes[i * width..][..width]);
    }
    let (shape, strides) = (shape.clone(), strides.to_vec());
    Tensor { dtype: *dtype, shape, strides, bytes: out.into() }
}

/// How far an element may be off: a part of its size, and a number that does
/// not depend on it, for what cancels.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Relative.
    pub relative: f64,
    /// Absolute.
    pub absolute: f64,
}

impl Tolerance {
    /// For one operation in `dtype`.
    pub const fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Self { relative: 1e-11, absolute: 4e-13 },
            DType::F32 => Self { relative: 1e-5, absolute: 4e-6 },
            DType::F16 => Self { relative: 2e-3, absolute: 2e-4 },
            DType::BF16 => Self { relative: 1.6e-2, absolute: 2e-3 },
            _ => Self { relative: 0.0, absolute: 0.0 },
        }
    }
}

impl Expected {
    /// What is wrong with `got`, if anything: NaN is NaN, infinities have a sign.
    pub fn mismatch(&self, got: &Tensor<'_>, tolerance: Tolerance) -> Option<String> {
        if got.shape != self.shape {
            return Some(format!("{}: shape {:?}, not {:?}", self.name, got.shape, self.shape));
        }
        let values = match got.to_f64() {
            Ok(values) => values,
            Err(failure) => return Some(format!("{}: {failure}", self.name)),
        };
        let far = |(ours, expected): (&f64, &f64)| {
            // Numbers near the least normal one may be flushed to zero.
            let size = expected.abs().max(1e-30);
            let limit = tolerance.relative * size + self.steps * tolerance.absolute;
            let same = ours == expected || (ours.is_nan() && expected.is_nan());
            !(same || expected.is_finite() && (ours - expected).abs() <= limit)
        };
        let wrong: Vec<usize> =
            (0..values.len()).filter(|i| far((&values[*i], &self.values[*i]))).collect();
        let first = *wrong.first()?;
        Some(format!(
            "{}: element {first} is {:e}, not {:e}; {} of {} differ",
            self.name,
            values[first],
            self.values[first],
            wrong.len(),
            values.len()
        ))
    }
}

/// `archive` as the exporter wrote it: with `bytes` in each of its weights, and
/// sample inputs of as many.
pub fn with_weights(archive: &[u8], bytes: usize) -> Vec<u8> {
    let copy = || -> Result<Vec<u8>, zip::result::ZipError> {
        let mut from = ZipArchive::new(Cursor::new(archive))?;
        let mut to = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let (weight, mut folder) = (vec![7; bytes], String::new());
        for index in 0..from.len() {
            let entry = from.by_index_raw(index)?;
            let name = entry.name()?.into_owned();
            folder = name.split('/').next().unwrap_or_default().to_owned();
            if name.contains("/data/weights/weight_") {
                to.start_file(name, stored)?;
                to.write_all(&weight)?;
            } else {
                to.raw_copy_file(entry)?;
            }
        }
        to.start_file(format!("{folder}/data/sample_inputs/model.pt"), stored)?;
        to.write_all(&weight)?;
        Ok(to.finish()?.into_inner())
    };
    copy().unwrap_or_else(|e| panic!("a fixture is no archive: {e}"))
}
