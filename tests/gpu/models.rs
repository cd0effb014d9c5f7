//! transformers' models, against PyTorch in float64.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::{
    compile, expect_none,
    fixtures::{self, Compiled, given, view},
    in_parallel,
};

/// The greatest relative error to float64 of an output.
pub(crate) fn limit(name: &str) -> f64 {
    match name {
        _ if name.contains("f32") => 1e-5,
        // Sixteen layers of rounded residuals: PyTorch's own error is 1.3e-2.
        _ if name.starts_with("qwen3_lm_bf16") => 2e-2,
        _ => 1e-2,
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn models_are_pytorchs() {
    let found = fixtures::all("models");
    let (ran, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let wrong = in_parallel(found.len(), |index| {
        let fixture = &found[index];
        let context = |why: String| format!("{}: {why}", fixture.name);
        let Compiled { lowered, calls } = fixtures::compile(fixture).map_err(context)?;
        let module = compile::module(&lowered).map_err(context)?;
        for call in calls {
            let inputs = given(&lowered, &call.inputs).map_err(context)?;
            let outputs = module.run(&inputs);
            let outputs = outputs.map_err(|e| context(format!("{:?}: {e}", call.name)))?;
            for (wanted, output) in call.outputs.iter().zip(&outputs) {
                let ours = view(output).to_f64().map_err(|failure| context(failure.message))?;
                let error = relative_error(&ours, &wanted.values);
                ran.fetch_add(1, Ordering::Relaxed);
                let what = format!("{:?} {}", call.name, wanted.name);
                errors.lock().push(format!("{} {what}: {error:.2e}", fixture.name));
                if wanted.shape != output.shape || error.is_nan() || error > limit(&fixture.name) {
                    let (got, wanted) = (&output.shape, &wanted.shape);
                    let why = format!("{what} {got:?} for {wanted:?}: error {error:.2e}");
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
