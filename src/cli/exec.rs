//! `kiln exec`: run a compiled graph on this machine.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Args;

use super::{CliError, output};

const EXAMPLES: &str = "\
Examples:
  kiln exec out --inputs in.safetensors -o result.safetensors
  kiln exec out --inputs in.safetensors -o result.safetensors --repeat 200 --json
  kiln exec out --inputs in.safetensors -o result.safetensors --verify block.pt2
  kiln exec step --inputs prompt.safetensors -o tokens.json --generate 128 --stop 2";

/// Run a compiled graph on this machine, without Python.
///
/// On the GPU; an artifact of the eager compiler on the CPU; a fallback with pieces of both on
/// both.
///
/// DIR is what `kiln compile GRAPH.pt2 -o DIR` or `kiln get` wrote, whole or in
/// pieces. The inputs
/// are a safetensors file, by the names that the graph or the module has for
/// them (x, fc.weight), or by position: in0, in1, … in the order of the exported
/// program: its parameters, its buffers, then its arguments. The outputs become
/// out0, out1, …, and what the program leaves in an input has that input's name.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Exec {
    /// Folder of the artifact.
    dir: PathBuf,
    /// Inputs, as safetensors.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where the outputs go.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Keep what the program leaves in its buffers in this file: a cache of keys and values,
    /// say, or running statistics. A run begins with what is in it; remove the file, and the
    /// next one begins with the buffers as the inputs have them.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Which GPU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Time this many more runs, launched kernel by kernel and as a CUDA graph,
    /// and each kernel on its own; 0 times none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    repeat: usize,
    /// Also run the reference interpreter on the same inputs, from the archive that
    /// was compiled, and fail where an output is too far from its own. Of a graph in
    /// pieces each is judged first, on inputs made up for it.
    #[arg(long, value_name = "MODEL.pt2")]
    verify: Option<PathBuf>,
    /// Take the program for one step of a decoder and run it again and again: each step is given
    /// the likeliest token of the one before. This many new tokens of each row are written to
    /// the output, as JSON where its name ends in .json. The inputs have the prompt, one row of
    /// tokens each, and where its first token stands; what a step leaves in its inputs (a cache
    /// of keys and values) is what the next one finds. Tokens that were said before a step failed,
    /// or before Ctrl-C, are written too. On a GPU numbers that lead out of range, such as a
    /// block in a table that is not there, are not noticed: --room.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with_all = ["repeat", "verify"]
    )]
    generate: Option<u32>,
    /// End a row with this token; may be given several times.
    #[arg(long, value_name = "TOKEN", requires = "generate")]
    stop: Vec<i64>,
    /// The argument that takes the tokens; without it token, tokens, input_ids or idx.
    #[arg(long, value_name = "NAME", requires = "generate")]
    token: Option<String>,
    /// The argument that says where they stand, and then others that grow by one with each step:
    /// may be given several times; without it position, positions, position_ids, cache_position
    /// or input_pos; none where the program counts by itself.
    #[arg(long, value_name = "NAME", requires = "generate")]
    position: Vec<String>,
    /// How many tokens of a row the cache has room for: a loop that needs more is refused before
    /// its first step. On a GPU steps past the end are not noticed: they write nothing, or where
    /// a table says which blocks are a row's into another row's. So it must be given there.
    #[arg(long, value_name = "TOKENS", requires = "generate")]
    room: Option<u32>,
    /// The output that has the logits.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "generate")]
    logits: usize,
    /// Print the times as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl Exec {
    pub(crate) fn run(self) -> Result<(), CliError> {
        let exec = kiln::exec::Exec {
            dir: self.dir,
            inputs: self.inputs,
            output: self.output,
            state: self.state,
            device: self.device,
            repeat: self.repeat,
            verify: self.verify,
            split: kiln_native::split::Settings::default(),
        };
        if let Some(tokens) = self.generate {
            let generate = kiln::exec::Generate {
                tokens: tokens as usize,
                stop: self.stop,
                token: self.token,
                position: self.position,
                room: self.room.map(|room| room as usize),
                logits: self.logits,
                halt: halted()?,
                tell: |said| eprintln!("note: {said}"),
            };
            let generated = kiln::exec::generate_main(&exec, &generate)?;
            return if self.json { output::json(&generated) } else { output::line(&generated) };
        }
        let report = kiln::exec::exec_main(&exec)?;
        match self.json {
            true => output::json(&report)?,
            false => output::line(&report)?,
        }
        match report.wrong() {
            Some(wrong) => Err(CliError::Local(anyhow::anyhow!("{wrong}"))),
            None => Ok(()),
        }
    }
}

/// Is set by the first SIGINT or SIGTERM; a second ends the process.
fn halted() -> Result<Arc<AtomicBool>, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let halt = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&halt);
    std::thread::spawn(move || {
        runtime.block_on(async {
            for times in 0.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if times > 0 {
                    std::process::exit(130);
                }
                own.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(halt)
}
