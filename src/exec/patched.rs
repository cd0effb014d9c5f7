//! A stitched whole of pieces that run in different places: those for the GPU there, those
//! that the eager compiler made by the interpreter on the CPU.
//!
//! What a piece leaves goes through the host's memory, so such a whole is slow, and no CUDA
//! graph can hold it: it answers while what was wanted is compiled again.
//!
//! Invariant: nothing runs unless every piece is there and is what is stitched; each piece
//! runs as it would by itself.

use std::{path::Path, time::Instant};

use kiln_native::{
    Signature, eager,
    interp::{self, Settings},
    plan::Plan,
    split::stitch::{self, Broken, Stitching},
};
use kiln_proto::{Failure, FailureKind};

use super::{
    ExecError, Tensor, Times,
    layout::{self, CUBIN},
    pieces::Runner,
    program::{about, piece_names, read_signature, read_stitching, rename, unfit},
};

/// A whole, ready to run.
pub struct Patched {
    stitching: Stitching,
    names: Vec<String>,
    pieces: Vec<Runner>,
    plan: Plan,
    signature: Option<Signature>,
}

/// Whether the artifact in `dir` has pieces for the GPU and pieces for the CPU.
pub(super) fn is_patched(dir: &Path) -> bool {
    let Ok(stitching) = read_stitching(dir) else { return false };
    let pieces = || (0..stitching.pieces.len()).map(|piece| layout::piece_dir(dir, piece));
    layout::is_stitched(dir)
        && pieces().any(|piece| piece.join(CUBIN).is_file())
        && pieces().any(|piece| piece.join(eager::GRAPH).is_file())
}

impl Patched {
    /// Loads the artifact in `dir`, its pieces for a GPU onto device `ordinal`.
    pub fn load(dir: &Path, ordinal: usize) -> Result<Self, ExecError> {
        let stitching = read_stitching(dir)?;
        let names = piece_names(dir, stitching.pieces.len());
        let mut pieces = Vec::with_capacity(names.len());
        for (piece, (name, interface)) in names.iter().zip(&stitching.pieces).enumerate() {
            let folder = layout::piece_dir(dir, piece);
            let runner = Runner::load(&folder, ordinal).map_err(|error| about(name, error))?;
            let fits = interface.check(&runner.plan());
            fits.map_err(|why| unfit(dir, &names, &Broken::Unfit { piece, why }))?;
            pieces.push(runner);
        }
        let mut plan = stitching.as_plan();
        let signature = read_signature(dir, &plan)?;
        rename(&mut plan, signature.as_ref());
        Ok(Self { stitching, names, pieces, plan, signature })
    }

    /// What it takes and gives.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the program calls its inputs, where that is known.
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// Where it runs.
    pub fn device(&self) -> String {
        let gpu = self.pieces.iter().find_map(|piece| match piece {
            Runner::Gpu(module) => Some(module.device()),
            _ => None,
        });
        gpu.map_or_else(|| "cpu".to_owned(), |gpu| format!("{gpu} and cpu"))
    }

    /// Runs once, from host memory to host memory. `inputs` are in the plan's order; what is
    /// given for a constant is not read.
    pub fn run(&self, inputs: &[Tensor<'_>]) -> Result<Vec<Tensor<'static>>, ExecError> {
        self.timed(inputs).map(|(outputs, _)| outputs)
    }

    pub(super) fn timed(
        &self,
        inputs: &[Tensor<'_>],
    ) -> Result<(Vec<Tensor<'static>>, Times), ExecError> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|input| input.shape.as_slice()).collect();
        self.plan.call(&shapes)?;
        let inputs: Vec<interp::Tensor<'_>> = inputs
            .iter()
            .map(|Tensor { dtype, shape, bytes }| interp::Tensor::dense(*dtype, shape, &**bytes))
            .collect();
        let start = Instant::now();
        // A failure has not all that an error of the device says.
        let mut broke = None;
        let ran =
            stitch::run_with(&self.stitching, &inputs, &Settings::default(), &mut |at, args| {
                self.call(at, args).map_err(|error| {
                    let why = error.to_string();
                    broke = Some(error);
                    Failure::new(FailureKind::Crashed, why)
                })
            });
        let eager_us = start.elapsed().as_secs_f64() * 1e6;
        match (ran, broke) {
            (_, Some(error)) => Err(error),
            (ran, None) => {
                let outputs = ran?.into_iter().map(Tensor::from).collect();
                Ok((outputs, Times { repeat: 1, eager_us, ..Times::default() }))
            }
        }
    }

    fn call(
        &self,
        at: usize,
        args: &[interp::Tensor<'_>],
    ) -> Result<Vec<interp::Tensor<'static>>, ExecError> {
        // Every call is of a piece that there is: that was checked as it was read.
        let (piece, name) = (&self.pieces[at], &self.names[at]);
        let dense = args.iter().map(|arg| Ok(Tensor::from(arg.to_dense()?)));
        let args: Vec<Tensor<'_>> = dense.collect::<Result<_, Failure>>()?;
        let results = piece.run(&piece.plan(), &args).map_err(|error| about(name, error))?;
        let back = |Tensor { dtype, shape, bytes }: Tensor<'static>| {
            interp::Tensor::dense(dtype, &shape, bytes)
        };
        Ok(results.into_iter().map(back).collect())
    }
}
