//! `kiln exec --verify`: what came out, against the reference interpreter.
//!
//! Invariant: the judge starts from the exported program alone; nothing of the
//! artifact takes part but its outputs.

use std::path::Path;

use kiln_native::{
    eager::Eager,
    interp::{self, Precision, Settings},
};
use kiln_proto::{Failure, graph::DType};

use super::{ExecError, Tensor, module::read};

/// How far an output is from what it should be.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Deviation {
    /// Which one: `out0`.
    pub output: String,
    /// Largest difference over the largest magnitude; of whole numbers and truth
    /// values the share that differs. Infinite where one is NaN and one is not.
    pub error: f64,
    /// What its type allows.
    pub limit: f64,
}

/// Runs the exported program in `archive` on `inputs` in 64 bits and compares.
pub(super) fn verify(
    archive: &Path,
    inputs: &[Tensor<'_>],
    outputs: &[Tensor<'_>],
) -> Result<Vec<Deviation>, ExecError> {
    let refuse = |failure: Failure| ExecError::Artifact {
        path: archive.to_owned(),
        why: failure.to_string(),
    };
    let graph = kiln_native::read_graph(&read(archive)?).map_err(refuse)?;
    let judge = Eager::new(&graph).map_err(refuse)?;
    let inputs: Vec<interp::Tensor<'_>> = inputs.iter().map(borrowed).collect();
    let settings = Settings { precision: Precision::Exact, ..Settings::default() };
    let expected = judge.run(&inputs, &settings).map_err(refuse)?;
    if expected.len() != outputs.len() {
        let (got, wanted) = (outputs.len(), expected.len());
        let why = format!("{wanted} outputs, the artifact has {got}: it is of another program");
        return Err(ExecError::Artifact { path: archive.to_owned(), why });
    }
    let mut deviations = Vec::with_capacity(outputs.len());
    for (i, (ours, expected)) in outputs.iter().zip(&expected).enumerate() {
        let output = format!("out{i}");
        if ours.shape != expected.shape {
            let (got, wanted) = (&ours.shape, &expected.shape);
            let why = format!("{output} is {wanted:?}, the artifact's {got:?}");
            return Err(ExecError::Artifact { path: archive.to_owned(), why });
        }
        let limit = limit(ours.dtype);
        let (ours, expected) = (borrowed(ours).to_f64(), expected.to_f64());
        let (ours, expected) = (ours.map_err(refuse)?, expected.map_err(refuse)?);
        let error = if limit == 0.0 { share(&ours, &expected) } else { error(&ours, &expected) };
        deviations.push(Deviation { output, error, limit });
    }
    let wrong: Vec<String> = deviations
        .iter()
        .filter(|found| found.error > found.limit)
        .map(|Deviation { output, error, limit }| format!("{output} by {error:.1e} ({limit:e})"))
        .collect();
    match wrong.is_empty() {
        true => Ok(deviations),
        false => Err(ExecError::Wrong(wrong.join(", "))),
    }
}

fn borrowed<'a>(tensor: &'a Tensor<'_>) -> interp::Tensor<'a> {
    interp::Tensor::dense(tensor.dtype, &tensor.shape, &*tensor.bytes)
}

/// What rounding at every step may come to.
const fn limit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 | DType::BF16 => 1e-2,
        DType::F32 => 1e-5,
        DType::F64 => 1e-12,
        _ => 0.0,
    }
}

fn error(ours: &[f64], expected: &[f64]) -> f64 {
    let finite = expected.iter().filter(|x| x.is_finite());
    let magnitude = finite.fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
    let apart = |(a, b): (&f64, &f64)| match () {
        () if a == b || (a.is_nan() && b.is_nan()) => 0.0,
        () if a.is_finite() && b.is_finite() => (a - b).abs(),
        () => f64::INFINITY,
    };
    ours.iter().zip(expected).map(apart).fold(0.0, f64::max) / magnitude
}

fn share(ours: &[f64], expected: &[f64]) -> f64 {
    let differing = ours.iter().zip(expected).filter(|(a, b)| a != b).count();
    differing as f64 / ours.len().max(1) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> String {
        format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn torchs_own_outputs_pass_and_others_do_not() {
        let golden = std::fs::read(fixture("block_f32.safetensors")).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
        let tensor = |name: &str| {
            let view = golden.tensor(name).unwrap();
            Tensor::new(DType::F32, view.shape(), view.data().to_vec()).unwrap()
        };
        let archive = fixture("block_f32.new.pt2");
        let count = (0..).find(|i| golden.tensor(&format!("in{i}")).is_err()).unwrap();
        let inputs: Vec<Tensor<'_>> = (0..count).map(|i| tensor(&format!("in{i}"))).collect();
        let outputs = vec![tensor("out0")];
        let verify = |outputs: &[Tensor<'_>]| verify(archive.as_ref(), &inputs, outputs);
        let found = verify(&outputs).unwrap();
        assert!(found[0].error < 1e-6 && found[0].output == "out0", "{found:?}");

        let changed = |element: f32| {
            let mut wrong = outputs.clone();
            wrong[0].bytes.to_mut()[..4].copy_from_slice(&element.to_le_bytes());
            verify(&wrong).unwrap_err().to_string()
        };
        for element in [1000.0, f32::NAN, f32::INFINITY] {
            assert!(changed(element).contains("out0 by"), "{element}");
        }
        assert!(verify(&[]).unwrap_err().to_string().contains("another program"));
        let mut other = outputs.clone();
        other[0].shape.push(1);
        assert!(verify(&other).unwrap_err().to_string().contains("out0 is"));
    }

    #[test]
    fn what_is_not_finite_must_agree_and_does_not_count_as_magnitude() {
        let nan = f64::NAN;
        let inf = f64::INFINITY;
        assert_eq!(error(&[nan, inf, 2.0], &[nan, inf, 1.0]), 1.0);
        assert_eq!(error(&[inf], &[-inf]), inf);
        assert_eq!(error(&[1.0], &[nan]), inf);
        assert_eq!(error(&[], &[]), 0.0);
        assert_eq!(error(&[0.0], &[0.0]), 0.0);
        assert_eq!(share(&[1.0, 0.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.0]), 0.25);
    }
}
