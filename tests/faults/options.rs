//! The command line.
//!
//! Invariant: a seed decides all that is random of a run; the default one is printed.

use std::path::PathBuf;

use clap::Parser;

use crate::nemesis::Nemesis;

/// Faults on real nodes while clients work; histories are checked afterwards.
#[derive(Debug, Parser)]
#[command(name = "faults")]
pub(crate) struct Options {
    /// Time for all runs together; each chosen nemesis gets an equal share of it.
    #[arg(long, default_value_t = 18.0)]
    pub(crate) minutes: f64,
    /// Run only nemeses whose name has this in it; may be given several times.
    #[arg(long, value_name = "NEMESIS")]
    pub(crate) only: Vec<String>,
    /// Where randomness starts. Default: another one each time, which is printed.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Name the nemeses and end.
    #[arg(long)]
    pub(crate) list: bool,
    /// Strike nothing: work for so many minutes, and show what the nodes take meanwhile.
    #[arg(long, value_name = "MINUTES")]
    pub(crate) soak: Option<f64>,
    /// Write the table to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Check the history in this file again, and do nothing else.
    #[arg(long, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,
    /// Folder for the histories of failed runs, and the logs of their nodes.
    #[arg(long, value_name = "FOLDER", default_value = "target/faults")]
    pub(crate) failures: PathBuf,
    /// Keep every history, not only those of failed runs.
    #[arg(long)]
    pub(crate) keep: bool,
}

impl Options {
    pub(crate) fn chooses(&self, nemesis: &Nemesis) -> bool {
        let named = |part: &String| nemesis.name.contains(part.as_str());
        self.only.is_empty() || self.only.iter().any(named)
    }
}
