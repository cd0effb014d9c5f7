//! transformers' models, against PyTorch in float64.

use std::sync::atomic::{AtomicUsize, Ordering};

use kiln::exec;
use kiln_native::{Lowered, interp::Tensor, plan::CONSTANT};
use kiln_proto::graph::DType;
use parking_lot::Mutex;
use safetensors::SafeTensors;

use crate::{compile, expect_none, fixtures, in_parallel};

/// The greatest relative error to float64 of an output.
fn limit(name: &str) -> f64 {
    match name {
        _ if name.contains("f32") => 1e-5,
        // Sixteen layers of rounded residuals: PyTorch's own error is 1.3e-2.
        _ if name.starts_with("qwen3_lm_bf16") => 2e-2,
        _ => 1e-2,
    }
}

/// For the runtime: dense, by position; a constant is in the module already.
pub(crate) fn given(
    lowered: &Lowered,
    mut input: impl FnMut(usize, DType) -> Result<Tensor<'static>, String>,
) -> Result<Vec<exec::Tensor<'static>>, String> {
    let inputs = lowered.plan.inputs.iter().enumerate().map(|(index, wanted)| {
        if wanted.kind == CONSTANT {
            return Ok(exec::Tensor::nothing());
        }
        let tensor = input(index, wanted.dtype)?;
        let Tensor { dtype, shape, bytes, .. } = tensor;
        exec::Tensor::new(dtype, &shape, bytes.into_owned()).map_err(|e| e.to_string())
    });
    inputs.collect()
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn models_are_pytorchs() {
    let found = fixtures::all("models");
    assert!(!found.is_empty(), "no fixtures: set KILN_FIXTURES");
    let (ran, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let wrong = in_parallel(found.len(), |index| {
        let fixture = &found[index];
        let context = |why: String| format!("{}: {why}", fixture.name);
        let options = compile::options();
        let lowered = kiln_native::lower(&fixture.archive, &options, compile::target());
        let lowered = lowered.map_err(|failure| context(failure.message))?;
        let module = compile::module(&lowered).map_err(context)?;
        let golden = SafeTensors::deserialize(&fixture.golden).unwrap();
        let is_dynamic = !lowered.plan.symbols.is_empty();
        for call in fixtures::calls(&golden) {
            if !call.is_empty() && !is_dynamic {
                continue;
            }
            let inputs = given(&lowered, |index, dtype| {
                fixtures::cast(&fixtures::tensor(&golden, &call, &format!("in{index}"))?, dtype)
            });
            let outputs = module.run(&inputs.map_err(context)?);
            let outputs = outputs.map_err(|e| context(format!("{call:?}: {e}")))?;
            for (index, output) in outputs.iter().enumerate() {
                let name = format!("out{index}");
                let view = fixtures::tensor(&golden, &call, &name).map_err(context)?;
                let ours =
                    Tensor::dense(output.dtype, &output.shape, output.bytes.as_ref()).to_f64();
                let wanted = fixtures::cast(&view, DType::F64).map_err(context)?.to_f64();
                let (ours, wanted) = (ours.unwrap(), wanted.unwrap());
                let error = fixtures::relative_error(&ours, &wanted);
                ran.fetch_add(1, Ordering::Relaxed);
                errors.lock().push(format!("{} {call:?} {name}: {error:.2e}", fixture.name));
                if view.shape() != output.shape || error.is_nan() || error > limit(&fixture.name) {
                    let (got, wanted) = (&output.shape, view.shape());
                    let why = format!("{call:?} {name} {got:?} for {wanted:?}: error {error:.2e}");
                    return Err(context(why));
                }
            }
        }
        Ok(())
    });
    let mut errors = errors.into_inner();
    errors.sort();
    println!("{}", errors.join("\n"));
    expect_none("models", found.len(), &wrong);
    assert!(ran.into_inner() > found.len(), "outputs were compared");
}
