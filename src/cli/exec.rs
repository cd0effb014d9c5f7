//! `kiln exec`: run a compiled graph on this machine's GPU.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, output};

/// Run a compiled graph on this machine's GPU, without Python.
///
/// DIR is what `kiln compile GRAPH.pt2 -o DIR` or `kiln get` wrote. The inputs
/// are a safetensors file with in0, in1, … in the order of the exported program:
/// its parameters, its buffers, then its arguments. The outputs become out0, ….
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln exec out --inputs in.safetensors -o result.safetensors")]
pub(crate) struct Exec {
    /// Folder of the artifact.
    dir: PathBuf,
    /// Inputs, as safetensors.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where the outputs go.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print the kernels' times as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Exec {
    pub(crate) fn run(self) -> Result<(), CliError> {
        let report = kiln::exec::exec_main(&self.dir, &self.inputs, &self.output)
            .map_err(anyhow::Error::from)?;
        match self.json {
            true => output::json(&report),
            false => output::line(report.to_string().trim_end()),
        }
    }
}
