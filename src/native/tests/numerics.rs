//! Generated kernels against PyTorch, run by the emulator.

use kiln_proto::graph::DType;
use safetensors::SafeTensors;

use super::{build::floats, compile, emulator::Module, fixture};

/// Largest difference over the largest magnitude, as the check on the GPU has it.
fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let magnitude = golden.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let worst = ours.iter().zip(golden).map(|(a, b)| (a - b).abs());
    worst.fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { most.max(x) }) / magnitude
}

fn check(archive: &str, golden: &str, given: &[(&str, &str)], limit: f64) {
    let lowered = compile(archive, given).unwrap();
    let golden = fixture(golden);
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let inputs: Vec<Vec<u8>> = (0..lowered.plan.inputs.len())
        .map(|i| golden.tensor(&format!("in{i}")).unwrap().data().to_vec())
        .collect();
    // Fixed or not, the sizes are those of the recorded inputs.
    let shapes: Vec<Vec<usize>> = (0..inputs.len())
        .map(|i| golden.tensor(&format!("in{i}")).unwrap().shape().to_vec())
        .collect();
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let call = lowered.plan.call(&shapes).unwrap();
    let outputs = Module::build(&lowered).run_shaped(&inputs, &shapes);
    for (i, (output, bytes)) in lowered.plan.outputs.iter().zip(&outputs).enumerate() {
        let expected = golden.tensor(&format!("out{i}")).unwrap();
        assert_eq!(call.outputs[i].shape, expected.shape(), "{archive} out{i}");
        let expected = floats(DType::F32, expected.data());
        let error = relative_error(&floats(output.dtype, bytes), &expected);
        assert!(error < limit, "{archive} {given:?} out{i}: relative error {error:e}");
    }
}

#[test]
fn the_block_in_f32_is_pytorchs() {
    check("block_f32.211.pt2", "block_f32.safetensors", &[], 1e-6);
    check("block_f32.211.pt2", "block_f32.safetensors", &[("fuse", "off")], 1e-6);
}

#[test]
fn the_block_with_a_free_batch_is_pytorchs() {
    check("block_f32_dynamic.211.pt2", "block_f32.safetensors", &[], 1e-6);
    check("block_f32_dynamic.new.pt2", "block_f32.safetensors", &[("fuse", "off")], 1e-6);
}

#[test]
fn the_decomposed_block_is_pytorchs() {
    check("block_f32_core.new.pt2", "block_f32.safetensors", &[], 1e-6);
    check("block_bf16_core.new.pt2", "block_bf16.safetensors", &[], 1e-2);
}

#[test]
fn the_block_in_short_types_is_pytorchs() {
    check("block_bf16.211.pt2", "block_bf16.safetensors", &[], 1e-2);
    check("block_f16.new.pt2", "block_f16.safetensors", &[], 2e-3);
}

#[test]
fn every_operation_is_pytorchs() {
    check("ops.211.pt2", "ops.safetensors", &[], 1e-5);
    check("ops.211.pt2", "ops.safetensors", &[("fuse", "off")], 1e-5);
    check("ops_core.new.pt2", "ops.safetensors", &[], 1e-5);
}

#[test]
fn the_block_takes_four_kernels() {
    for name in ["block_f32.211.pt2", "block_bf16.new.pt2", "block_bf16_core.new.pt2"] {
        let plan = compile(name, &[]).unwrap().plan;
        let names: Vec<&str> = plan.kernels.iter().map(|k| k.name.as_str()).collect();
        assert_eq!(names, ["k0_rows", "k1_product", "k2_product", "k3_product"], "{name}");
    }
}
