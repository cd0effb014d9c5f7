//! Pieces of a stitched artifact, each judged by itself.
//!
//! Invariant: a piece is judged by the part of the program whose digests the
//! stitching has for it, and by no other.

use std::path::Path;

use kiln_native::{
    interp,
    plan::Plan,
    split::{self, Split, SplitError, stitch::Interface},
};
use kiln_proto::{ArtifactKey, graph::Graph};

use super::{
    ExecError, Module, Patched, Tensor, Verdict, cpu, layout, patched,
    program::{about, piece_names, read_stitching},
    trial::Trial,
    verify::{Judge, compare},
};

/// How far the outputs of one piece are from the interpreter's.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PieceVerdicts {
    /// Its position.
    pub piece: usize,
    /// Of its artifact, where that is known.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub key: Option<ArtifactKey>,
    /// Of each of its outputs.
    pub verdicts: Vec<Verdict>,
}

impl PieceVerdicts {
    /// As messages have it.
    pub fn name(&self) -> String {
        let key = self.key.map(|key| format!(" (key {key})")).unwrap_or_default();
        format!("piece {}{key}", self.piece)
    }
}

fn text<S: serde::Serializer>(key: &Option<ArtifactKey>, to: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(key) => to.collect_str(key),
        None => to.serialize_none(),
    }
}

/// Runs every piece of the stitched artifact in `dir` on inputs made up for it, and
/// compares with what the interpreter makes of its part of `graph`, which was split
/// by `settings`.
pub(super) fn verify(
    dir: &Path,
    graph: &Graph,
    settings: &split::Settings,
    device: usize,
) -> Result<Vec<PieceVerdicts>, ExecError> {
    let split = split::split(graph, settings).map_err(SplitError::into_failure)?;
    let stitching = read_stitching(dir)?;
    let names = piece_names(dir, stitching.pieces.len());
    let keys = layout::keys(dir, stitching.pieces.len());
    let judged = stitching.pieces.iter().zip(&names).enumerate().map(|(piece, (wanted, name))| {
        let verdicts = part(&split, wanted)
            .and_then(|graph| verify_piece(&layout::piece_dir(dir, piece), graph, device))
            .map_err(|error| about(name, error))?;
        Ok(PieceVerdicts { piece, key: keys.get(piece).copied(), verdicts })
    });
    judged.collect()
}

/// Runs the artifact in `dir` on inputs made up by their shapes and types, and
/// compares with what the interpreter makes of `graph`.
pub fn verify_piece(dir: &Path, graph: &Graph, device: usize) -> Result<Vec<Verdict>, ExecError> {
    let runner = Runner::load(dir, device)?;
    let plan = runner.plan();
    let judge = Judge::new(graph, &plan)?;
    let (inputs, golden) = tried(&judge, &plan)?;
    let outputs = runner.run(&plan, &inputs)?;
    compare(&plan, &inputs, &outputs, &golden)
}

/// The part of the program that a piece is of.
fn part<'s>(split: &'s Split, wanted: &Interface) -> Result<&'s Graph, ExecError> {
    let digests = [wanted.graph, wanted.inputs];
    let found = split.pieces.iter().find(|piece| piece.digests() == digests);
    found.map(|piece| split.graph(piece)).ok_or_else(|| {
        let why = "the archive to verify with has no such piece: it is another program's, or was \
                   split by other settings or another version of Kiln";
        ExecError::Inputs(why.to_owned())
    })
}

/// Inputs, and what the judge makes of them.
pub(super) fn tried(
    judge: &Judge,
    plan: &Plan,
) -> Result<(Vec<Tensor<'static>>, Vec<interp::Tensor<'static>>), ExecError> {
    let tried = |trial: Trial| {
        let inputs = trial.inputs(plan)?;
        let golden = judge.golden(plan, &inputs)?;
        Ok((inputs, golden))
    };
    let trial = Trial::of(plan);
    match tried(trial) {
        // A whole number was a position past the end of something: the first is
        // there, unless nothing is.
        Err(ExecError::Inputs(_)) => tried(Trial { bound: 1, ..trial }),
        done => done,
    }
}

/// An artifact that runs, on whatever it is for.
pub(super) enum Runner {
    Cpu(Box<cpu::Program>),
    Gpu(std::sync::Arc<Module>),
    Both(Box<Patched>),
}

impl Runner {
    pub(super) fn load(dir: &Path, device: usize) -> Result<Self, ExecError> {
        if patched::is_patched(dir) {
            return Ok(Self::Both(Box::new(Patched::load(dir, device)?)));
        }
        Ok(match cpu::is_eager(dir) {
            true => Self::Cpu(Box::new(cpu::Program::load(dir)?)),
            false => Self::Gpu(Module::load(dir, device)?),
        })
    }

    pub(super) fn plan(&self) -> Plan {
        match self {
            Self::Cpu(program) => program.plan(),
            Self::Gpu(module) => module.plan().clone(),
            Self::Both(whole) => whole.plan().clone(),
        }
    }

    /// The outputs, and behind them what is left in inputs.
    pub(super) fn run(
        &self,
        plan: &Plan,
        inputs: &[Tensor<'_>],
    ) -> Result<Vec<Tensor<'static>>, ExecError> {
        match self {
            Self::Cpu(program) => {
                let (outputs, _) = program.run(plan, inputs, &interp::Settings::default())?;
                Ok(outputs.into_iter().map(Tensor::from).collect())
            }
            Self::Gpu(module) => module.ran(inputs)?.all_outputs(),
            Self::Both(whole) => whole.run(inputs),
        }
    }
}
