//! Runs a compiled graph: the module and its plan, as `kiln compile -o DIR`
//! wrote them, on the GPU; an artifact of the eager compiler on the CPU. One that is
//! stitched of pieces runs as one that is whole, and one with artifacts for static sizes
//! beside it by what its inputs are: see [`layout`]. A fallback with some pieces for the GPU
//! and some for the CPU runs on both: see [`Patched`].
//!
//! A program that links Kiln holds a [`Module`] (machine code on a device) and a
//! [`Session`] of it (memory and a stream): inputs are copied once, runs are
//! queued, or replayed as a CUDA graph.
//!
//! Invariant: the driver is probed before it is called, and nothing is launched
//! unless the plan's pointers and the device were checked. The daemon never
//! comes here.

mod by_size;
mod check;
mod copying;
mod cpu;
mod error;
mod generate;
mod launching;
pub mod layout;
mod memory;
mod module;
mod patched;
mod pieces;
mod program;
mod session;
mod tensor_map;
mod tensors;
mod times;
mod trial;
mod verify;

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::BufReader,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

pub use check::{Checked, Checking, check};
pub use error::ExecError;
pub use generate::{Generate, Generated, generate_main};
use kiln_native::{Plan, interp::Settings, split};
pub use kiln_proto::graph::DType;
use kiln_proto::{Digest, graph::Graph};
pub use module::Module;
pub use patched::Patched;
pub use pieces::{PieceVerdicts, verify_piece};
pub use program::parse_plan;
pub use session::Session;
pub use tensors::{Tensor, read_inputs};
use tensors::{read_with, write_outputs};
pub use times::Times;
pub use trial::Trial;
pub use verify::Verdict;

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Folder of the artifact.
    pub dir: PathBuf,
    /// A safetensors file.
    pub inputs: PathBuf,
    /// Where the outputs go, as safetensors.
    pub output: PathBuf,
    /// Where what the program leaves in its inputs is kept from run to run, as safetensors;
    /// without such a file the inputs begin as they are given.
    pub state: Option<PathBuf>,
    /// Which GPU.
    pub device: usize,
    /// Runs that are timed; 0: none.
    pub repeat: usize,
    /// The torch.export archive with which the reference interpreter judges; of a
    /// stitched artifact each piece, and then the whole.
    pub verify: Option<PathBuf>,
    /// How that archive was split.
    pub split: split::Settings,
}

/// What a run took, for people and as JSON.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// The static size whose code ran; absent: the dynamic one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Of the inputs, in the plan's order.
    pub shapes: Vec<Vec<usize>>,
    /// What the device's memory moves at most, in 10^9 bytes a second, by its clock and its
    /// width; absent: it has none of its own, or does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_gb_s: Option<f64>,
    /// Measured after the run whose outputs were written.
    #[serde(flatten)]
    pub times: Times,
    /// Why there are no times, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untimed: Option<String>,
    /// Of each piece on inputs of its own, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<PieceVerdicts>,
    /// Of each output, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Verdict>,
}

/// An output that is too far from the interpreter's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wrong<'a> {
    /// Of which piece; none: of the whole.
    pub piece: Option<&'a PieceVerdicts>,
    /// Which, and how far.
    pub verdict: &'a Verdict,
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(piece) = self.piece {
            write!(f, "{}: ", piece.name())?;
        }
        let Verdict { output, relative_error, limit } = self.verdict;
        write!(f, "{output} is not what the interpreter has: ")?;
        write!(f, "relative error {relative_error:.2e}, limit {limit:.0e}")
    }
}

impl Report {
    /// The first output that is too far from the interpreter's; those of pieces first.
    pub fn wrong(&self) -> Option<Wrong<'_>> {
        let all = self.pieces.iter().flat_map(|piece| {
            piece.verdicts.iter().map(move |verdict| Wrong { piece: Some(piece), verdict })
        });
        let whole = self.verdicts.iter().map(|verdict| Wrong { piece: None, verdict });
        all.chain(whole).find(|wrong| !wrong.verdict.holds())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Times { repeat, eager_us, graph_us, kernels } = &self.times;
        write!(f, "{}", self.device)?;
        if let Some(size) = self.size {
            write!(f, ", code for size {size}")?;
        }
        if *graph_us > 0.0 {
            let graph = format!("{graph_us:.1} us as a CUDA graph (medians of {repeat})");
            write!(f, ": {eager_us:.1} us a run, {graph}")?;
        } else if *repeat > 0 {
            write!(f, ": {eager_us:.1} us")?;
        }
        if let Some(why) = &self.untimed {
            write!(f, ": no times: {why}")?;
        }
        let width = kernels.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, micros) in kernels {
            write!(f, "\n  {name:<width$} {micros:>9.1} us")?;
        }
        let pieces = self.pieces.iter().flat_map(|piece| {
            piece.verdicts.iter().map(move |verdict| (format!("{}: ", piece.name()), verdict))
        });
        let whole = self.verdicts.iter().map(|verdict| (String::new(), verdict));
        for (of, verdict) in pieces.chain(whole) {
            let Verdict { output, relative_error, limit } = verdict;
            let said = if verdict.holds() { "ok" } else { "TOO LARGE" };
            write!(
                f,
                "\n{of}{output}: relative error {relative_error:.2e}, limit {limit:.0e}: {said}"
            )?;
        }
        Ok(())
    }
}

/// `kiln exec DIR --inputs IN -o OUT`: runs the artifact in `dir`, on the GPU or,
/// where the eager compiler made it, on the CPU.
///
/// `output` gets `out0`, ..., what is left in inputs by their names, and the kernels' times
/// as metadata.
pub fn exec_main(exec: &Exec) -> Result<Report, ExecError> {
    let (file, kept) = given(exec)?;
    let run = if patched::is_patched(&exec.dir) {
        on_both(exec, &file)?
    } else if cpu::is_eager(&exec.dir) {
        on_cpu(exec, &file, kept.as_deref())?
    } else {
        on_gpu(exec, &file, kept.as_deref())?
    };
    let Run { plan, device, size, peak_gb_s, inputs, outputs, times } = run;
    let (times, untimed) = or_notice(times);
    let mut notes = HashMap::new();
    for (name, micros) in &times.kernels {
        notes.insert(format!("micros.{name}"), micros.to_string());
    }
    let names = tensors::names(&plan);
    let state = match &exec.state {
        Some(path) => Some((path, state_of(&plan, &outputs)?)),
        None => None,
    };
    write_outputs(&exec.output, names, &outputs, notes)?;
    // Last: a run whose outputs are nowhere is run again, from where it began.
    if let Some((path, (names, tensors))) = state {
        keep_state(path, names, &tensors)?;
    }
    let (mut pieces, mut verdicts) = (Vec::new(), Vec::new());
    if let Some(archive) = &exec.verify {
        let graph = read_graph(archive)?;
        // Pieces of static sizes are parts of another graph: the outputs judge these.
        if layout::is_stitched(&exec.dir) {
            pieces = pieces::verify(&exec.dir, &graph, &exec.split, exec.device)?;
        }
        verdicts = verify::verify(&graph, &plan, &inputs, &outputs)?;
    }
    let shapes = inputs.iter().map(|input| input.shape.clone()).collect();
    Ok(Report { device, size, shapes, peak_gb_s, times, untimed, pieces, verdicts })
}

/// The files of the inputs, and of the state where there is one.
fn given(exec: &Exec) -> Result<(Vec<u8>, Option<Vec<u8>>), ExecError> {
    if let Some(state) = exec.state.as_ref().filter(|state| is_one_file(state, &exec.output)) {
        let why = format!("{} is the file of the outputs and that of the state", state.display());
        return Err(ExecError::Inputs(format!("{why}: name two")));
    }
    // Before anything runs: what comes of it would be lost.
    for path in [Some(&exec.output), exec.state.as_ref()].into_iter().flatten() {
        let failed = |error| ExecError::File { path: path.clone(), error };
        let folder = std::fs::metadata(folder_of(path)).map_err(failed)?;
        if path.is_dir() || !folder.is_dir() {
            let why = if path.is_dir() { "it is a folder" } else { "it is in what is no folder" };
            return Err(failed(std::io::Error::other(why)));
        }
    }
    let file = program::read(&exec.inputs)?;
    let kept = exec.state.as_ref().filter(|path| path.exists());
    Ok((file, kept.map(|path| program::read(path)).transpose()?))
}

/// The times, or why there are none.
fn or_notice(times: Result<Times, ExecError>) -> (Times, Option<String>) {
    match times {
        Ok(times) => (times, None),
        Err(error) => (Times::default(), Some(error.to_string())),
    }
}

/// Whether two paths name one file, there or yet to be made.
fn is_one_file(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        let there = path.canonicalize().ok();
        there.or_else(|| Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?)))
    };
    a == b || whole(a).is_some_and(|a| whole(b) == Some(a))
}

/// The folder of a file; of a bare name, where the process is.
fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// What the program left in its own state, of all that a run gave: names and tensors.
fn state_of<'t>(
    plan: &Plan,
    outputs: &[Tensor<'t>],
) -> Result<(Vec<String>, Vec<Tensor<'t>>), ExecError> {
    let inputs = plan.inputs.iter().filter(|input| input.updated);
    let left = inputs.zip(&outputs[plan.outputs.len()..]);
    let state = left.filter(|(input, _)| tensors::is_state(input));
    let state = state.map(|(input, tensor)| (input.name.clone(), tensor.clone()));
    let (names, tensors): (Vec<String>, Vec<Tensor<'_>>) = state.unzip();
    check_state(plan)?;
    Ok((names, tensors))
}

/// Whether the program has a state at all.
fn check_state(plan: &Plan) -> Result<(), ExecError> {
    if plan.inputs.iter().any(tensors::is_state) {
        return Ok(());
    }
    let why = "the program leaves nothing in its parameters and buffers: it has no state";
    Err(ExecError::Inputs(why.to_owned()))
}

/// Writes what the program left in its own state, whole or not at all: the next run begins
/// with it.
fn keep_state(path: &Path, names: Vec<String>, tensors: &[Tensor<'_>]) -> Result<(), ExecError> {
    let failed = |error| ExecError::File { path: path.to_owned(), error };
    let beside = beside(path);
    let _held = hold(&beside).map_err(failed)?;
    write_outputs(&beside, names, tensors, HashMap::new())?;
    std::fs::rename(&beside, path).map_err(failed)
}

/// Has a file written beside `path`, and then gives it that name; a link stays one, and what is
/// no ordinary file is written to.
fn put_whole(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), ExecError>,
) -> Result<(), ExecError> {
    let there = std::fs::metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        return write(path);
    }
    // Where a link leads nowhere yet, what is written is there.
    if there.is_none() && std::fs::symlink_metadata(path).is_ok() {
        return write(path);
    }
    let failed = |error| ExecError::File { path: path.to_owned(), error };
    let target = match &there {
        Some(_) => path.canonicalize().map_err(failed)?,
        None => path.to_owned(),
    };
    let beside = beside(&target);
    let held = hold(&beside).map_err(failed)?;
    if let Some(there) = there {
        held.set_permissions(there.permissions()).map_err(failed)?;
    }
    write(&beside)?;
    std::fs::rename(&beside, &target).map_err(failed)
}

/// Where a state is written before it has its name: one place for each state, so that what
/// a killed run left is the next one's.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    // Of any name of any length.
    let name = Digest::of(name.as_encoded_bytes()).to_string();
    folder_of(path).join(format!(".kiln-state.{}", &name[..16]))
}

/// Makes the file at `path`, which no other process has until what is returned is dropped or
/// the file has another name.
fn hold(path: &Path) -> std::io::Result<File> {
    loop {
        // As any other file that is made: the process's mask says who reads it. A link is
        // not followed to what may be somebody's.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        file.lock()?;
        // Who had it may have given it the state's name meanwhile.
        let (mine, there) = (file.metadata()?, std::fs::symlink_metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
            return Ok(file);
        }
    }
}

/// The graph of a torch.export archive, without its weights, which may be larger
/// than memory.
fn read_graph(path: &Path) -> Result<Graph, ExecError> {
    let file = File::open(path);
    let file = file.map_err(|error| ExecError::File { path: path.to_owned(), error })?;
    Ok(kiln_native::read_graph(&kiln_native::slim(BufReader::new(file))?)?)
}

/// What came of running an artifact.
struct Run<'a> {
    plan: Plan,
    device: String,
    size: Option<u64>,
    peak_gb_s: Option<f64>,
    inputs: Vec<Tensor<'a>>,
    /// Behind those of the plan what is left in inputs.
    outputs: Vec<Tensor<'static>>,
    /// A run that ended is one, though it cannot be timed.
    times: Result<Times, ExecError>,
}

fn on_gpu<'a>(exec: &Exec, file: &'a [u8], kept: Option<&'a [u8]>) -> Result<Run<'a>, ExecError> {
    let module = Module::load(&exec.dir, exec.device)?;
    let inputs = read_with(file, kept, module.plan(), module.signature())?;
    let mut session = module.session()?;
    session.set_all(&inputs)?;
    session.launch()?;
    let outputs = session.all_outputs()?;
    let times = session.times(exec.repeat);
    let (plan, device) = (module.plan().clone(), module.device().to_owned());
    let (size, peak_gb_s) = (module.size_for(&shapes(&inputs)), module.peak_gb_s());
    Ok(Run { plan, device, size, peak_gb_s, inputs, outputs, times })
}

fn on_cpu<'a>(exec: &Exec, file: &'a [u8], kept: Option<&'a [u8]>) -> Result<Run<'a>, ExecError> {
    let program = cpu::Program::load(&exec.dir)?;
    let mut plan = program.plan();
    let signature = program::read_signature(&exec.dir, &plan)?;
    let inputs = read_with(file, kept, &plan, signature.as_ref())?;
    program::rename(&mut plan, signature.as_ref());
    let (outputs, times) = program.run(&plan, &inputs, &Settings::default())?;
    let (device, outputs) = ("cpu".to_owned(), outputs.into_iter().map(Tensor::from).collect());
    let size = program.size_for(&shapes(&inputs));
    let (peak_gb_s, times) = (None, Ok(times));
    Ok(Run { plan, device, size, peak_gb_s, inputs, outputs, times })
}

fn on_both<'a>(exec: &Exec, file: &'a [u8]) -> Result<Run<'a>, ExecError> {
    let whole = Patched::load(&exec.dir, exec.device)?;
    let inputs = read_inputs(file, whole.plan(), whole.signature())?;
    let (outputs, times) = whole.timed(&inputs)?;
    let (plan, device) = (whole.plan().clone(), whole.device());
    let (size, peak_gb_s, times) = (None, None, Ok(times));
    Ok(Run { plan, device, size, peak_gb_s, inputs, outputs, times })
}

fn shapes<'t>(inputs: &'t [Tensor<'_>]) -> Vec<&'t [usize]> {
    inputs.iter().map(|input| input.shape.as_slice()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
