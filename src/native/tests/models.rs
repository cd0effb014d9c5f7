//! Whole models: all of them compile, and kernels of some give PyTorch's numbers
//! in the emulator. All run on a GPU in `make test-gpu`.

use super::{EMULATED, emulator::Module, options};
use crate::{
    decompose::decompose,
    fixtures::{Fixture, load},
    interp::Tensor,
    lower, read_graph,
};

/// Those that the emulator runs: it takes seconds for each.
const RUN: [&str; 7] = [
    "gpt2_gelu_block_f32_dynamic_core.new",
    "qwen3_masked_bf16_static_core.211",
    "qwen3_block_f32_dynamic.new",
    "gpt2_block_bf16_static_core.new",
    "bert_f32_static.new",
    "vit_f32_static.new",
    "llama_block_bf16_static.new",
];

#[test]
fn every_model_compiles() {
    for fixture in load("models") {
        let lowered = lower(&fixture.archive, &options(&[]), EMULATED);
        let lowered = lowered.unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
        let kernels = &lowered.plan.kernels;
        assert!(kernels.iter().all(|kernel| !kernel.computes.is_empty()), "{}", fixture.name);
    }
}

#[test]
fn kernels_of_models_give_pytorchs_numbers() {
    let fixtures: Vec<Fixture> =
        load("models").into_iter().filter(|f| RUN.iter().any(|run| f.name.contains(run))).collect();
    assert_eq!(fixtures.len(), RUN.len());
    for fixture in &fixtures {
        let lowered = lower(&fixture.archive, &options(&[]), EMULATED).unwrap();
        let module = Module::build(&lowered);
        let graph = read_graph(&fixture.archive).unwrap();
        let program = decompose(&graph).unwrap();
        let limit = if fixture.name.contains("f32") { 1e-5 } else { 1e-2 };
        for call in fixture.calls(&graph, &program).unwrap() {
            let inputs: Vec<Vec<u8>> = call.inputs.iter().map(|t| t.bytes.to_vec()).collect();
            let shapes: Vec<&[usize]> = call.inputs.iter().map(|t| t.shape.as_slice()).collect();
            let found = module.run_shaped(&inputs, &shapes);
            for ((found, expected), output) in found.iter().zip(&call.outputs).zip(&program.outputs)
            {
                let dtype = program.value(*output).dtype;
                let found = Tensor::dense(dtype, &expected.shape, found.as_slice());
                let error = relative_error(&found.to_f64().unwrap(), &expected.values);
                assert!(error <= limit, "{} {}: {error:e}", fixture.name, call.name);
            }
        }
    }
}

/// Length of the difference over the length of the expected.
fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = length(&mut ours.iter().zip(golden).map(|(a, b)| a - b));
    error / length(&mut golden.iter().copied())
}
