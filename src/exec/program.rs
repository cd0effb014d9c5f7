//! What the folder of an artifact has for a GPU: a plan and its machine code, or
//! a stitching and those of its pieces.
//!
//! Invariant: read without the driver. What was read hangs together: nothing runs
//! of a stitched artifact of which one piece is missing or another's, nor of one whose
//! artifacts for static sizes are another program's.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use kiln_native::{
    SIGNATURE_FILE, SIGNATURE_VERSION, Signature, eager,
    plan::{self, Call, CallError, Kernel, Plan},
    split::stitch::{Broken, Copied, Linked, LinkedCall, Stitching},
    version,
};
use kiln_proto::ArtifactKey;

use super::{
    ExecError, by_size,
    layout::{self, CUBIN, INDUCTOR, PLAN, STITCHING},
    patched,
};

/// A compiled graph, not yet on a device.
pub(super) struct Program {
    /// What it takes and gives, and what it runs on.
    pub(super) plan: Plan,
    /// Of all its modules.
    pub(super) kernels: Vec<Kernel>,
    /// By module; of a stitched one, by piece.
    pub(super) codes: Vec<Code>,
    pub(super) signature: Option<Signature>,
    linked: Option<Linked>,
    sizes: Vec<Fixed>,
}

/// A program for one size alone.
struct Fixed {
    size: u64,
    /// Where its kernels begin among those of all.
    first: usize,
    program: Program,
}

/// Machine code.
pub(super) struct Code {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    /// Which of [`Program::kernels`] it has.
    pub(super) kernels: Range<usize>,
}

/// What one call does, in order: launches, then copies.
pub(super) struct Steps {
    pub(super) call: Call,
    pub(super) copies: Vec<Copied>,
    /// For each launch, its call of a piece; empty where nothing is stitched.
    of: Vec<usize>,
    /// For each launch, whether it may begin while one of another piece runs.
    follows: Vec<bool>,
}

impl Steps {
    /// Whether a launch may begin before the one before it has ended, where its
    /// kernel allows that. The first of a piece only if all of it waits for what
    /// others leave it: it would read that too early else.
    pub(super) fn may_overlap(&self, launch: usize) -> bool {
        launch > 0 && self.follows.get(launch) != Some(&false)
    }

    /// A launch of `kernel` as people see it: with its call, where there are several.
    pub(super) fn label(&self, launch: usize, kernel: &Kernel) -> String {
        match self.of.get(launch) {
            Some(call) => format!("{call}/{}", kernel.name),
            None => kernel.name.clone(),
        }
    }
}

impl Program {
    /// Reads the artifact in `dir`, with those for static sizes beside it, and checks that
    /// all hangs together.
    pub(super) fn read(dir: &Path) -> Result<Self, ExecError> {
        let mut program = Self::read_one(dir)?;
        for (size, folder) in by_size::folders(dir)? {
            // A fallback, which the dynamic one is better than.
            if patched::is_patched(&folder) {
                continue;
            }
            let mut fixed = Self::read_one(&folder)?;
            by_size::check(&program.plan, &fixed.plan, &folder)?;
            let first = program.kernels.len();
            program.kernels.extend_from_slice(&fixed.kernels);
            let codes = std::mem::take(&mut fixed.codes).into_iter().map(|code| {
                let Range { start, end } = code.kernels;
                Code { kernels: first + start..first + end, ..code }
            });
            program.codes.extend(codes);
            program.sizes.push(Fixed { size, first, program: fixed });
        }
        Ok(program)
    }

    fn read_one(dir: &Path) -> Result<Self, ExecError> {
        refuse_inductor(dir)?;
        let mut program = match layout::is_stitched(dir) {
            true => Self::read_stitched(dir)?,
            false => Self::read_whole(dir)?,
        };
        rename(&mut program.plan, program.signature.as_ref());
        if let (Some(linked), Some(signature)) = (&mut program.linked, &program.signature) {
            linked.name_inputs(signature.inputs.iter().map(|input| input.name.as_str()));
        }
        Ok(program)
    }

    fn read_whole(dir: &Path) -> Result<Self, ExecError> {
        let plan = read_plan(dir)?;
        let signature = read_signature(dir, &plan)?;
        let code = Code { kernels: 0..plan.kernels.len(), ..read_code(dir)? };
        let kernels = plan.kernels.clone();
        let (linked, sizes) = (None, Vec::new());
        Ok(Self { plan, kernels, codes: vec![code], signature, linked, sizes })
    }

    fn read_stitched(dir: &Path) -> Result<Self, ExecError> {
        let stitching = read_stitching(dir)?;
        let names = piece_names(dir, stitching.pieces.len());
        let (mut plans, mut codes, mut count) = (Vec::new(), Vec::new(), 0);
        for (piece, name) in names.iter().enumerate() {
            let folder = layout::piece_dir(dir, piece);
            let read = || {
                refuse_eager(&folder)?;
                Ok((read_plan(&folder)?, read_code(&folder)?))
            };
            let (plan, code) = read().map_err(|error| about(name, error))?;
            codes.push(Code { kernels: count..count + plan.kernels.len(), ..code });
            count += plan.kernels.len();
            plans.push(plan);
        }
        let mut linked =
            Linked::new(stitching, plans).map_err(|broken| unfit(dir, &names, &broken))?;
        linked.name_pieces(names.into_iter());
        let (plan, kernels) = (linked.interface(), linked.kernels().cloned().collect());
        let signature = read_signature(dir, &plan)?;
        Ok(Self { plan, kernels, codes, signature, linked: Some(linked), sizes: Vec::new() })
    }

    /// What a call with inputs of these shapes does.
    pub(super) fn steps(&self, shapes: &[&[usize]]) -> Result<Steps, CallError> {
        let Some(Fixed { first, program, .. }) = self.choose(shapes) else {
            return self.steps_of(shapes);
        };
        let mut steps = program.steps_of(shapes)?;
        steps.call.launches.iter_mut().for_each(|launch| launch.kernel += first);
        Ok(steps)
    }

    /// The static size whose code a call with inputs of these shapes runs, if one does.
    pub(super) fn size_for(&self, shapes: &[&[usize]]) -> Option<u64> {
        self.choose(shapes).map(|fixed| fixed.size)
    }

    fn choose(&self, shapes: &[&[usize]]) -> Option<&Fixed> {
        let plans = self.sizes.iter().map(|fixed| &fixed.program.plan);
        by_size::choose(&self.plan, plans, shapes).map(|at| &self.sizes[at])
    }

    fn steps_of(&self, shapes: &[&[usize]]) -> Result<Steps, CallError> {
        Ok(match &self.linked {
            None => {
                let call = self.plan.call(shapes)?;
                Steps { call, copies: Vec::new(), of: Vec::new(), follows: Vec::new() }
            }
            Some(linked) => {
                let LinkedCall { call, of, follows, copies } = linked.call(shapes)?;
                Steps { call, copies, of, follows }
            }
        })
    }
}

/// What the pieces in `dir` are called: `piece 3 (key 1f2e...)`, where keys are known.
pub(super) fn piece_names(dir: &Path, count: usize) -> Vec<String> {
    let keys: Vec<ArtifactKey> = layout::keys(dir, count);
    let name = |piece: usize| match keys.get(piece) {
        Some(key) => format!("piece {piece} (key {key})"),
        None => format!("piece {piece}"),
    };
    (0..count).map(name).collect()
}

/// What happened to a piece.
pub(super) fn about(name: &str, error: ExecError) -> ExecError {
    ExecError::Piece { name: name.to_owned(), error: Box::new(error) }
}

/// A stitching that cannot be run with the pieces beside it.
pub(super) fn unfit(dir: &Path, names: &[String], broken: &Broken) -> ExecError {
    match broken {
        Broken::Unfit { piece, why } => {
            let path = layout::piece_dir(dir, *piece).join(PLAN);
            let name = names.get(*piece).map_or("a piece", String::as_str);
            about(name, ExecError::Artifact { path, why: why.clone() })
        }
        broken => ExecError::Artifact { path: dir.join(STITCHING), why: broken.to_string() },
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, ExecError> {
    std::fs::read(path).map_err(|error| ExecError::File { path: path.to_owned(), error })
}

/// Reads how the artifact in `dir` is stitched.
pub(super) fn read_stitching(dir: &Path) -> Result<Stitching, ExecError> {
    let path = dir.join(STITCHING);
    if let Some(other) = [CUBIN, PLAN, eager::GRAPH].iter().find(|name| dir.join(name).exists()) {
        let why =
            format!("{other} is beside it, of another artifact: write each to its own folder");
        return Err(ExecError::Artifact { path, why });
    }
    Stitching::read(&read(&path)?).map_err(|broken| {
        let why = broken.to_string();
        match broken {
            Broken::Version(_) => ExecError::OtherVersion { path, why },
            _ => ExecError::Artifact { path, why },
        }
    })
}

/// Reads the plan in `dir` and checks that it hangs together.
fn read_plan(dir: &Path) -> Result<Plan, ExecError> {
    let path: PathBuf = dir.join(PLAN);
    let bytes = read(&path)?;
    of_known_version(&path, &bytes, plan::PLAIN, plan::VERSION)?;
    parse_plan(&bytes).map_err(|why| ExecError::Artifact { path, why })
}

fn read_code(dir: &Path) -> Result<Code, ExecError> {
    let path = dir.join(CUBIN);
    let bytes = read(&path)?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ExecError::Artifact { path, why: "no machine code".to_owned() });
    }
    Ok(Code { path, bytes, kernels: 0..0 })
}

/// Names all that only Python can run.
fn refuse_inductor(dir: &Path) -> Result<(), ExecError> {
    let is_inductors = |dir: &Path| dir.join(INDUCTOR).exists();
    let what = match layout::is_stitched(dir) {
        false if is_inductors(dir) => "the artifact was compiled by Inductor".to_owned(),
        false if dir.join(eager::PORTABLE).exists() => {
            "the artifact is a graph with operations that the interpreter does not know".to_owned()
        }
        false => return Ok(()),
        true => {
            let count = read_stitching(dir)?.pieces.len();
            let pieces = (0..count).filter(|piece| is_inductors(&layout::piece_dir(dir, *piece)));
            let pieces: Vec<String> = pieces.map(|piece| piece.to_string()).collect();
            match pieces.len() {
                0 => return Ok(()),
                _ => format!("of {count} pieces {} were compiled by Inductor", pieces.join(", ")),
            }
        }
    };
    Err(ExecError::NeedsTorch { what, dir: dir.to_owned() })
}

fn refuse_eager(dir: &Path) -> Result<(), ExecError> {
    let path = dir.join(eager::GRAPH);
    if !path.exists() {
        return Ok(());
    }
    let why = "it is for the CPU, others for a GPU: a fallback, which `kiln exec` and \
               `kiln::exec::Patched` run";
    let why = why.to_owned();
    Err(ExecError::Artifact { path, why })
}

/// Reads a `plan.json` and checks that it hangs together; an error says why not.
pub fn parse_plan(bytes: &[u8]) -> Result<Plan, String> {
    // The version first: another version's plan may not even parse.
    version::check_from(bytes, plan::PLAIN, plan::VERSION)?;
    let plan: Plan = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    plan.check().map_err(|why| why.to_string())?;
    Ok(plan)
}

/// The names in `dir`, if there are any: those of another program are refused.
pub(super) fn read_signature(dir: &Path, plan: &Plan) -> Result<Option<Signature>, ExecError> {
    let path = dir.join(SIGNATURE_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let refuse = |why: String| ExecError::Artifact { path: path.clone(), why };
    let bytes = read(&path)?;
    of_known_version(&path, &bytes, SIGNATURE_VERSION, SIGNATURE_VERSION)?;
    let signature = Signature::read(&bytes).map_err(refuse)?;
    let (got, wanted) = (signature.inputs.len(), plan.inputs.len());
    if got != wanted {
        return Err(refuse(format!("{got} inputs, not {wanted}: of another program")));
    }
    Ok(Some(signature))
}

/// Tells what another version wrote from what is damaged.
fn of_known_version(path: &Path, bytes: &[u8], oldest: u32, known: u32) -> Result<(), ExecError> {
    version::check_from(bytes, oldest, known)
        .map_err(|why| ExecError::OtherVersion { path: path.to_owned(), why })
}

/// Gives a plan's inputs the program's own names: for messages.
pub(super) fn rename(plan: &mut Plan, signature: Option<&Signature>) {
    for (tensor, named) in plan.inputs.iter_mut().zip(signature.iter().flat_map(|s| &s.inputs)) {
        tensor.name.clone_from(&named.name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
