//! Artifacts of the eager compiler: run by the interpreter, on the CPU; whole, or
//! stitched of pieces that all are such artifacts.
//!
//! Invariant: inputs are checked as for the GPU, with the same messages, and
//! nothing runs of a stitched artifact of which one piece does not fit.

use std::{path::Path, time::Instant};

use kiln_native::{
    eager::{self, Eager},
    interp::{self, Settings},
    plan::Plan,
    split::stitch::{self, Broken, Stitching},
};

use super::{
    ExecError, Tensor, Times, layout,
    program::{about, piece_names, read_stitching, unfit},
};

/// A program that runs on the CPU.
pub(super) enum Program {
    /// Of one artifact.
    Whole(Eager),
    /// Of several.
    Stitched(Stitching, Vec<Eager>),
}

/// Whether the artifact in `dir` is one of the eager compiler, or the first of its
/// pieces is.
pub(super) fn is_eager(dir: &Path) -> bool {
    let first = match layout::is_stitched(dir) {
        true => layout::piece_dir(dir, 0),
        false => dir.to_owned(),
    };
    first.join(eager::GRAPH).is_file()
}

impl Program {
    pub(super) fn load(dir: &Path) -> Result<Self, ExecError> {
        if !layout::is_stitched(dir) {
            return Ok(Self::Whole(load(dir)?));
        }
        let stitching = read_stitching(dir)?;
        let names = piece_names(dir, stitching.pieces.len());
        let mut pieces = Vec::with_capacity(names.len());
        for (piece, (name, interface)) in names.iter().zip(&stitching.pieces).enumerate() {
            let folder = layout::piece_dir(dir, piece);
            if !folder.join(eager::GRAPH).is_file() && folder.join(layout::CUBIN).is_file() {
                let why = "it is for a GPU, piece 0 for the CPU: all run on one of them";
                let path = folder.join(layout::CUBIN);
                return Err(about(name, ExecError::Artifact { path, why: why.to_owned() }));
            }
            let eager = load(&folder).map_err(|error| about(name, error))?;
            let fits = interface.check(eager.plan());
            fits.map_err(|why| unfit(dir, &names, &Broken::Unfit { piece, why }))?;
            pieces.push(eager);
        }
        Ok(Self::Stitched(stitching, pieces))
    }

    /// What it takes and gives.
    pub(super) fn plan(&self) -> Plan {
        match self {
            Self::Whole(eager) => eager.plan().clone(),
            Self::Stitched(stitching, _) => stitching.as_plan(),
        }
    }

    /// Runs once. `named` is its plan with the program's own names.
    pub(super) fn run(
        &self,
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
        let outputs = match self {
            Self::Whole(eager) => eager.run(&inputs, settings)?,
            Self::Stitched(stitching, pieces) => stitch::run(stitching, pieces, &inputs, settings)?,
        };
        let eager_us = start.elapsed().as_secs_f64() * 1e6;
        Ok((outputs, Times { repeat: 1, eager_us, ..Times::default() }))
    }
}

fn load(dir: &Path) -> Result<Eager, ExecError> {
    Ok(Eager::load(|name| std::fs::read(dir.join(name)))?)
}
