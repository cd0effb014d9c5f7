//! Exported programs in core operations.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use kiln_proto::graph::DType;
use safetensors::SafeTensors;

use super::fixture;
use crate::{
    bind,
    core::Program,
    decompose::decompose,
    interp::{Settings, Tensor, run},
    read_graph,
};

fn core(name: &str) -> Program {
    let graph = read_graph(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    decompose(&graph).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The archives in `folder`, and the names of their golden files.
fn archives(folder: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(folder);
    let mut names: Vec<String> = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let golden: Vec<String> =
        names.iter().filter_map(|n| n.strip_suffix(".safetensors").map(str::to_owned)).collect();
    let of = |archive: &String| {
        let found = golden.iter().filter(|name| archive.starts_with(*name));
        found.max_by_key(|name| name.len()).cloned()
    };
    let archives = names.iter().filter(|name| name.ends_with(".pt2"));
    archives.filter_map(|name| Some((name.clone(), of(name)?))).collect()
}

/// Numbers of `tensor` as elements of `dtype`.
fn cast(tensor: &safetensors::tensor::TensorView<'_>, dtype: DType) -> Vec<u8> {
    let from = match tensor.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F64 => DType::F64,
        safetensors::Dtype::BF16 => DType::BF16,
        safetensors::Dtype::F16 => DType::F16,
        _ => return tensor.data().to_vec(),
    };
    let floats = Tensor::dense(from, tensor.shape(), tensor.data()).to_f64().unwrap();
    let floats = floats.into_iter();
    match dtype {
        DType::F16 => floats.flat_map(|x| half::f16::from_f64(x).to_le_bytes()).collect(),
        DType::BF16 => floats.flat_map(|x| half::bf16::from_f64(x).to_le_bytes()).collect(),
        DType::F64 => floats.flat_map(f64::to_le_bytes).collect(),
        _ => floats.flat_map(|x| (x as f32).to_le_bytes()).collect(),
    }
}

/// Length of the difference over the length of the expected.
fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    if ours.iter().zip(golden).all(|(a, b)| a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let error = length(&mut ours.iter().zip(golden).map(|(a, b)| a - b));
    error / length(&mut golden.iter().copied())
}

/// Runs the archive on each call in the golden file.
fn check(name: &str, golden: &str) {
    let graph = read_graph(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let program = decompose(&graph).unwrap_or_else(|e| panic!("{name}: {e}"));
    let bytes = fixture(golden);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // Of whole models in bf16, rounded after each operation as PyTorch does, too.
    let limit = if name.contains("f32") { 1e-5 } else { 2e-2 };
    let calls: BTreeMap<&str, ()> = file
        .names()
        .into_iter()
        .map(|name| (name.rsplit_once('.').map_or("", |(call, _)| call), ()))
        .collect();
    let calls = calls.into_keys().filter(|call| call.is_empty() || name.contains("dynamic"));
    for call in calls {
        let named = |what: &str, i: usize| match call {
            "" => format!("{what}{i}"),
            call => format!("{call}.{what}{i}"),
        };
        let inputs: Vec<Tensor<'_>> = program
            .inputs
            .iter()
            .map(|input| {
                let i = input.position;
                let dtype = program.value(input.value).dtype;
                if let kiln_proto::graph::InputKind::Constant(c) = &graph.inputs[i].kind {
                    let shape = &program.value(input.value).shape;
                    let shape: Vec<usize> =
                        shape.iter().map(|s| s.known().unwrap() as usize).collect();
                    return Tensor::dense(dtype, &shape, c.data.clone());
                }
                let tensor =
                    file.tensor(&named("in", i)).or_else(|_| file.tensor(&format!("in{i}")));
                let tensor = tensor.unwrap_or_else(|e| panic!("{name} {i}: {e}"));
                Tensor::dense(dtype, tensor.shape(), Cow::Owned(cast(&tensor, dtype)))
            })
            .collect();
        let shapes: Vec<&[usize]> = inputs.iter().map(|t| t.shape.as_slice()).collect();
        bind::bind(&program, &shapes).unwrap_or_else(|e| panic!("{name} {call}: {e}"));
        let outputs = run(&program, &inputs, &Settings::default())
            .unwrap_or_else(|e| panic!("{name} {call}: {e}"));
        for (i, output) in outputs.iter().enumerate() {
            let expected = file.tensor(&named("out", i)).unwrap();
            assert_eq!(output.shape, expected.shape(), "{name} {call} out{i}");
            let expected = Tensor::dense(DType::F64, expected.shape(), cast(&expected, DType::F64));
            let error = relative_error(&output.to_f64().unwrap(), &expected.to_f64().unwrap());
            assert!(error <= limit, "{name} {call} out{i}: relative error {error:e}");
        }
    }
}

#[test]
fn every_block_decomposes() {
    for suffix in ["211", "new"] {
        for name in [
            "block_f32",
            "block_bf16",
            "block_f16",
            "block_f32_core",
            "block_bf16_core",
            "ops",
            "ops_core",
            "block_f32_dynamic",
        ] {
            let program = core(&format!("{name}.{suffix}.pt2"));
            assert!(!program.nodes.is_empty(), "{name}");
        }
    }
}

#[test]
fn every_model_is_pytorchs() {
    let mut failed = Vec::new();
    for (archive, golden) in archives("models") {
        let (archive, golden) =
            (format!("models/{archive}"), format!("models/{golden}.safetensors"));
        let result = std::panic::catch_unwind(|| check(&archive, &golden));
        if let Err(e) = result {
            failed.push(e.downcast_ref::<String>().cloned().unwrap_or_default());
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
