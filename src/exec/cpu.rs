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
    ExecError, Tensor, Times, by_size, layout,
    program::{about, piece_names, read_stitching, unfit},
};

/// A program that runs on the CPU, with what there is of it for static sizes.
pub(super) struct Program {
    dynamic: One,
    sizes: Vec<Fixed>,
}

/// A program for one size alone.
struct Fixed {
    size: u64,
    plan: Plan,
    one: One,
}

/// One artifact.
enum One {
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
        let dynamic = One::load(dir)?;
        let (plan, mut sizes) = (dynamic.plan(), Vec::new());
        for (size, folder) in by_size::folders(dir)? {
            if !is_eager(&folder) {
                let why = "it is for a GPU, the dynamic one for the CPU".to_owned();
                return Err(ExecError::Artifact { path: folder, why });
            }
            let one = One::load(&folder)?;
            let fixed = one.plan();
            by_size::check(&plan, &fixed, &folder)?;
            sizes.push(Fixed { size, plan: fixed, one });
        }
        Ok(Self { dynamic, sizes })
    }

    /// One that was never an artifact.
    pub(super) fn of(eager: Eager) -> Self {
        Self { dynamic: One::Whole(eager), sizes: Vec::new() }
    }

    /// What it takes and gives, for all sizes.
    pub(super) fn plan(&self) -> Plan {
        self.dynamic.plan()
    }

    /// The static size whose code a call with inputs of these shapes runs, if one does.
    pub(super) fn size_for(&self, shapes: &[&[usize]]) -> Option<u64> {
        self.choose(&self.plan(), shapes).map(|fixed| fixed.size)
    }

    fn choose(&self, dynamic: &Plan, shapes: &[&[usize]]) -> Option<&Fixed> {
        let plans = self.sizes.iter().map(|fixed| &fixed.plan);
        by_size::choose(dynamic, plans, shapes).map(|at| &self.sizes[at])
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
        let chosen = self.choose(named, &shapes).map(|fixed| &fixed.one);
        chosen.unwrap_or(&self.dynamic).run(inputs, settings)
    }
}

impl One {
    fn load(dir: &Path) -> Result<Self, ExecError> {
        if !layout::is_stitched(dir) {
            return Ok(Self::Whole(load(dir)?));
        }
        let stitching = read_stitching(dir)?;
        let names = piece_names(dir, stitching.pieces.len());
        let mut pieces = Vec::with_capacity(names.len());
        for (piece, (name, interface)) in names.iter().zip(&stitching.pieces).enumerate() {
            let folder = layout::piece_dir(dir, piece);
            let eager = load(&folder).map_err(|error| about(name, error))?;
            let fits = interface.check(eager.plan());
            fits.map_err(|why| unfit(dir, &names, &Broken::Unfit { piece, why }))?;
            pieces.push(eager);
        }
        Ok(Self::Stitched(stitching, pieces))
    }

    fn plan(&self) -> Plan {
        match self {
            Self::Whole(eager) => eager.plan().clone(),
            Self::Stitched(stitching, _) => stitching.as_plan(),
        }
    }

    fn run(
        &self,
        inputs: &[Tensor<'_>],
        settings: &Settings,
    ) -> Result<(Vec<interp::Tensor<'static>>, Times), ExecError> {
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
