//! Runs a compiled graph: the module and its plan, as `kiln compile -o DIR`
//! wrote them, on the GPU; an artifact of the eager compiler on the CPU.
//!
//! A program that links Kiln holds a [`Module`] (machine code on a device) and a
//! [`Session`] of it (memory and a stream): inputs are copied once, runs are
//! queued, or replayed as a CUDA graph.
//!
//! Invariant: the driver is probed before it is called, and nothing is launched
//! unless the plan's pointers and the device were checked. The daemon never
//! comes here.

mod error;
mod memory;
mod module;
mod session;
mod tensor_map;
mod tensors;
mod times;

use std::{collections::HashMap, fmt, path::PathBuf};

pub use error::ExecError;
pub use kiln_proto::graph::DType;
pub use module::{Module, parse_plan};
pub use session::Session;
pub use tensors::{Tensor, read_inputs, write_outputs};
pub use times::Times;

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Folder of the artifact.
    pub dir: PathBuf,
    /// A safetensors file.
    pub inputs: PathBuf,
    /// Where the outputs go, as safetensors.
    pub output: PathBuf,
    /// Which GPU.
    pub device: usize,
    /// Runs that are timed; 0: none.
    pub repeat: usize,
}

/// What a run took, for people and as JSON.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// Measured after the run whose outputs were written.
    #[serde(flatten)]
    pub times: Times,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Times { repeat, eager_us, graph_us, kernels } = &self.times;
        write!(f, "{}", self.device)?;
        if *repeat == 0 {
            return Ok(());
        }
        write!(
            f,
            ": {eager_us:.1} us a run, {graph_us:.1} us as a CUDA graph (medians of {repeat})"
        )?;
        let width = kernels.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, micros) in kernels {
            write!(f, "\n  {name:<width$} {micros:>9.1} us")?;
        }
        Ok(())
    }
}

/// `kiln exec DIR --inputs IN -o OUT`: runs the artifact in `dir`.
///
/// `output` gets `out0`, ... and the kernels' times as metadata.
pub fn exec_main(exec: &Exec) -> Result<Report, ExecError> {
    let module = Module::load(&exec.dir, exec.device)?;
    let file = module::read(&exec.inputs)?;
    let inputs = read_inputs(&file, module.plan(), module.signature())?;
    let mut session = module.session()?;
    session.set_all(&inputs)?;
    session.launch()?;
    let outputs = session.outputs()?;
    let times = session.times(exec.repeat)?;
    let mut notes = HashMap::new();
    for (name, micros) in &times.kernels {
        notes.insert(format!("micros.{name}"), micros.to_string());
    }
    write_outputs(&exec.output, &outputs, notes)?;
    Ok(Report { device: module.device().to_owned(), times })
}
