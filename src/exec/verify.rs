//! Outputs against the reference interpreter's.
//!
//! Invariant: the judge computes in `f64` from the same inputs, and what it has
//! no number for (NaN, an infinity) must be the same here.

use std::path::Path;

use kiln_native::{
    eager::Eager,
    interp::{self, Precision, Settings},
    plan::{Plan, shown},
};
use kiln_proto::graph::{DType, Graph};

use super::{ExecError, Tensor, cpu::Program, tensors::names};

/// How far one output is from the interpreter's.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Verdict {
    /// `out0`.
    pub output: String,
    /// The largest difference over the largest magnitude.
    pub relative_error: f64,
    /// Beyond that it is wrong.
    pub limit: f64,
}

impl Verdict {
    /// Whether it is near enough.
    pub fn holds(&self) -> bool {
        self.relative_error <= self.limit
    }
}

/// An interpreter of the program that an artifact was compiled from.
pub(super) struct Judge {
    program: Program,
    memory_bytes: u64,
}

impl Judge {
    /// Of `graph`. `plan` is that of the artifact whose outputs are judged.
    pub(super) fn new(graph: &Graph, plan: &Plan) -> Result<Self, ExecError> {
        let judge = Eager::new(graph)?;
        same_program(plan, judge.plan())?;
        let memory_bytes = Settings::default().memory_bytes;
        Ok(Self { program: Program::of(judge), memory_bytes })
    }

    /// Of the program in the folder of an eager artifact, within so much memory.
    pub(super) fn load(dir: &Path, memory_bytes: u64) -> Result<Self, ExecError> {
        Ok(Self { program: Program::load(dir)?, memory_bytes })
    }

    /// Refuses to judge an artifact of `plan` that is another program's.
    pub(super) fn accept(&self, plan: &Plan) -> Result<(), ExecError> {
        same_program(plan, &self.program.plan())
    }

    /// What the outputs should be.
    pub(super) fn golden(
        &self,
        plan: &Plan,
        inputs: &[Tensor<'_>],
    ) -> Result<Vec<interp::Tensor<'static>>, ExecError> {
        self.run(plan, inputs, Precision::Exact)
    }

    /// The outputs with every step rounded to its type, as any device has to.
    pub(super) fn rounded(
        &self,
        plan: &Plan,
        inputs: &[Tensor<'_>],
    ) -> Result<Vec<interp::Tensor<'static>>, ExecError> {
        self.run(plan, inputs, Precision::Rounded)
    }

    fn run(
        &self,
        plan: &Plan,
        inputs: &[Tensor<'_>],
        precision: Precision,
    ) -> Result<Vec<interp::Tensor<'static>>, ExecError> {
        let settings = Settings { precision, memory_bytes: self.memory_bytes };
        Ok(self.program.run(plan, inputs, &settings)?.0)
    }
}

/// Compares `outputs` of `plan`, made of `inputs`, with what they should be; those behind
/// the plan's are what is left in inputs.
pub(super) fn compare(
    plan: &Plan,
    inputs: &[Tensor<'_>],
    outputs: &[Tensor<'_>],
    golden: &[interp::Tensor<'_>],
) -> Result<Vec<Verdict>, ExecError> {
    let coarsest = inputs.iter().map(|input| tolerance(input.dtype)).fold(0.0, f64::max);
    let verdict = |(output, (ours, golden)): (String, (&Tensor<'_>, &interp::Tensor<'_>))| {
        let numbers = interp::Tensor::dense(ours.dtype, &ours.shape, &*ours.bytes).to_f64()?;
        let limit = match tolerance(ours.dtype) {
            // Whole numbers are right or wrong.
            0.0 => 0.0,
            own => own.max(coarsest),
        };
        let relative_error = relative_error(&numbers, &golden.to_f64()?);
        Ok(Verdict { output, relative_error, limit })
    };
    names(plan).into_iter().zip(outputs.iter().zip(golden)).map(verdict).collect()
}

/// Runs `graph` on `inputs`, and compares. `plan` is that of the artifact whose
/// outputs are judged.
pub(super) fn verify(
    graph: &Graph,
    plan: &Plan,
    inputs: &[Tensor<'_>],
    outputs: &[Tensor<'_>],
) -> Result<Vec<Verdict>, ExecError> {
    let golden = Judge::new(graph, plan)?.golden(plan, inputs)?;
    compare(plan, inputs, outputs, &golden)
}

/// What rounding to the type may cost.
const fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-10,
        DType::F32 => 1e-5,
        DType::F16 | DType::BF16 => 1e-2,
        // One step at the end of the type, where sums in another order fall on its other side.
        DType::F8E4M3 => 0.08,
        DType::F8E5M2 => 0.15,
        _ => 0.0,
    }
}

fn relative_error(ours: &[f64], golden: &[f64]) -> f64 {
    if ours.len() != golden.len() {
        return f64::INFINITY;
    }
    let finite = golden.iter().filter(|x| x.is_finite());
    let magnitude = finite.fold(0.0f64, |most, x| most.max(x.abs()));
    let difference = |(a, b): (&f64, &f64)| match () {
        () if a.is_nan() && b.is_nan() => 0.0,
        () if a.is_finite() && b.is_finite() => (a - b).abs(),
        () if a == b => 0.0,
        () => f64::INFINITY,
    };
    let worst = ours.iter().zip(golden).map(difference).fold(0.0, f64::max);
    // Of nothing but zeros there is no relative error.
    if magnitude > 0.0 { worst / magnitude } else { worst }
}

/// The judge must judge the artifact's own program.
fn same_program(plan: &Plan, judge: &Plan) -> Result<(), ExecError> {
    let sides = [(&plan.inputs, &judge.inputs), (&plan.outputs, &judge.outputs)];
    for (ours, theirs) in sides {
        if ours.len() != theirs.len() {
            let (got, wanted) = (theirs.len(), ours.len());
            return Err(other(&format!("{got} inputs or outputs, not {wanted}")));
        }
        for (a, b) in ours.iter().zip(theirs) {
            if a.kind != b.kind || a.dtype != b.dtype || a.shape.len() != b.shape.len() {
                let why = format!(
                    "{} is {} {} {}, not {} {} {}",
                    a.name,
                    b.kind,
                    b.dtype,
                    shown(&b.shape),
                    a.kind,
                    a.dtype,
                    shown(&a.shape)
                );
                return Err(other(&why));
            }
        }
    }
    Ok(())
}

fn other(why: &str) -> ExecError {
    ExecError::Inputs(format!("the archive to verify with is another program's: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_relative_to_the_largest_number() {
        assert_eq!(relative_error(&[1.0, 0.5], &[1.0, 0.25]), 0.25);
        assert_eq!(relative_error(&[8.0], &[4.0]), 1.0);
        assert_eq!(relative_error(&[0.5, 0.0], &[0.0, 0.0]), 0.5);
        assert_eq!(relative_error(&[], &[]), 0.0);
    }

    #[test]
    fn what_is_no_number_must_be_the_same() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        assert_eq!(relative_error(&[nan, inf, -inf, 2.0], &[nan, inf, -inf, 2.0]), 0.0);
        for (ours, golden) in [(nan, 1.0), (1.0, nan), (inf, -inf), (inf, 1.0), (1.0, inf)] {
            assert_eq!(relative_error(&[ours, 3.0], &[golden, 3.0]), inf, "{ours} {golden}");
        }
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), inf);
    }
}
