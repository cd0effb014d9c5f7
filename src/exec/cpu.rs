//! Artifacts of the eager compiler: run by the interpreter, on the CPU.
//!
//! Invariant: inputs are checked as for the GPU, with the same messages.

use std::{path::Path, time::Instant};

use kiln_native::{
    eager::{self, Eager},
    interp::{self, Settings},
    plan::Plan,
};

use super::{ExecError, Tensor, Times};

/// Whether the artifact in `dir` is one of the eager compiler.
pub(super) fn is_eager(dir: &Path) -> bool {
    dir.join(eager::GRAPH).is_file()
}

pub(super) fn load(dir: &Path) -> Result<Eager, ExecError> {
    Ok(Eager::load(|name| std::fs::read(dir.join(name)))?)
}

/// Runs once. `named` is the program's plan with the program's own names.
pub(super) fn run(
    eager: &Eager,
    named: &Plan,
    inputs: &[Tensor<'_>],
    settings: &Settings,
) -> Result<(Vec<interp::Tensor<'static>>, Times), ExecError> {
    let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.shape.as_slice()).collect();
    named.call(&shapes)?;
    let inputs: Vec<interp::Tensor<'_>> = inputs
        .iter()
        .map(|Tensor { dtype, shape, bytes }| interp::Tensor::dense(*dtype, shape, &**bytes))
        .collect();
    let start = Instant::now();
    let outputs = eager.run(&inputs, settings)?;
    let eager_us = start.elapsed().as_secs_f64() * 1e6;
    Ok((outputs, Times { repeat: 1, eager_us, ..Times::default() }))
}
