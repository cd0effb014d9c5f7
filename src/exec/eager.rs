//! Artifacts of the eager compiler, on the CPU.
//!
//! Invariant: they take and give the same files as modules on a device do.

use std::{collections::HashMap, fs, path::Path};

use kiln_native::{
    eager::{Eager, GRAPH},
    interp::{self, Settings},
};
use kiln_proto::Failure;

use super::{
    Exec, ExecError, Report, Tensor, Times,
    module::{read, read_signature},
    read_inputs, verified, write_outputs,
};

/// Whether the artifact in `dir` is one.
pub(super) fn is_one(dir: &Path) -> bool {
    dir.join(GRAPH).is_file()
}

/// Runs it once: nothing here is worth timing.
pub(super) fn exec(exec: &Exec) -> Result<Report, ExecError> {
    let dir = &exec.dir;
    let eager = Eager::load(|name| fs::read(dir.join(name)))
        .map_err(|failure| ExecError::Artifact { path: dir.clone(), why: failure.message })?;
    let signature = read_signature(dir, eager.plan())?;
    let file = read(&exec.inputs)?;
    let inputs = read_inputs(&file, eager.plan(), signature.as_ref())?;
    let given: Vec<interp::Tensor<'_>> = inputs
        .iter()
        .map(|given| interp::Tensor::dense(given.dtype, &given.shape, &*given.bytes))
        .collect();
    let refused = |failure: Failure| ExecError::Inputs(failure.message);
    let outputs = eager.run(&given, &Settings::default()).map_err(refused)?;
    let outputs: Vec<Tensor<'_>> = outputs
        .into_iter()
        .map(|interp::Tensor { dtype, shape, bytes, .. }| Tensor { dtype, shape, bytes })
        .collect();
    write_outputs(&exec.output, &outputs, HashMap::new())?;
    let verified = verified(exec, &inputs, &outputs)?;
    Ok(Report { device: "CPU".to_owned(), times: Times::default(), verified })
}
