//! `kiln confined PROGRAM ARGUMENTS...`: becomes Python, with what it confines itself by.
//!
//! Python loads torch before it can be confined, and only it knows where its modules lie. So it
//! is given the rules for files, to which it adds its own folders, and the filter, and shuts
//! itself in before it reads a job (`python/kiln_torch/worker/confining.py`).
//!
//! Invariant: what needs no knowledge of the program is done here, before it runs: no
//! descriptor of the daemon's, no privilege, limits.

use std::{
    io,
    os::{fd::IntoRawFd, unix::process::CommandExt},
    path::Path,
    process::{Command, ExitCode},
};

use super::{Kernel, calls, files, process};

/// What `kiln` is started with to be this.
pub const COMMAND: &str = "confined";
/// The variable that tells the program; it takes it out of its environment.
const TOLD: &str = "KILN_CONFINE";

/// What the program does with what it is given.
#[derive(serde::Serialize)]
struct Told {
    /// Descriptor of the rules for files.
    rules: Option<i32>,
    /// Rights to folders that only the program knows: it may read and run what is in them.
    read: u64,
    /// The filter for calls, in hexadecimal digits; empty: the kernel has none.
    filter: String,
    /// The number of the call that installs it.
    seccomp: i64,
}

/// Becomes the program that its arguments name. Call it from `main` before anything else has
/// been started.
pub fn launcher_main() -> ExitCode {
    let why = match become_program() {
        Ok(never) => match never {},
        Err(why) => why,
    };
    eprintln!("kiln {COMMAND}: {why}");
    ExitCode::FAILURE
}

fn become_program() -> io::Result<std::convert::Infallible> {
    let mut arguments = std::env::args_os().skip(2);
    let program = arguments.next().ok_or_else(|| io::Error::other("it is told no program"))?;
    process::close_others();
    process::bound(&process::PYTHON)?;
    process::give_up_privileges()?;
    let kernel = Kernel::of_machine();
    let filter = match kernel.seccomp {
        true => calls::filter(calls::Starts::Processes, files::has_gpu())?,
        false => Vec::new(),
    };
    let mut read = super::system();
    for variable in ["PATH", "LD_LIBRARY_PATH", "CUDA_HOME"] {
        read.extend(super::folders_of(variable));
    }
    // The daemon started this worker in the folder that is its own.
    let (rules, read) = match files::handed_over(&read, Path::new("."))? {
        Some((rules, rights)) => {
            rustix::io::fcntl_setfd(&rules, rustix::io::FdFlags::empty())?;
            (Some(rules.into_raw_fd()), rights)
        }
        None => (None, 0),
    };
    let told =
        Told { rules, read, filter: hex::encode(bytes(&filter)), seccomp: libc::SYS_seccomp };
    let told = serde_json::to_string(&told).map_err(io::Error::other)?;
    Err(Command::new(program).args(arguments).env(TOLD, told).exec())
}

/// A filter as the kernel takes it.
fn bytes(filter: &[seccompiler::sock_filter]) -> Vec<u8> {
    let one = |step: &seccompiler::sock_filter| {
        let mut all = step.code.to_ne_bytes().to_vec();
        all.extend([step.jt, step.jf]);
        all.extend(step.k.to_ne_bytes());
        all
    };
    filter.iter().flat_map(one).collect()
}
