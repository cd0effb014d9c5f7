//! What keeps the process of a compiler, and whatever runs in it, from the rest of the machine.
//!
//! Three processes see what strangers sent: NVRTC's worker, the checker, which runs an
//! artifact, and Python's worker, which starts compilers of its own. Before one of them sees
//! it, the process gives up its privileges, has limits, may call only some of the kernel
//! ([`calls`]) and reach only some files ([`files`]; without Landlock [`opens`]).
//!
//! Invariant: nothing here is undone by the process itself or by what it starts. What the
//! kernel lacks is named by [`Kernel::lacks`], which the node tells of; what the kernel has and
//! refuses is an error, and the process does no job.

mod calls;
mod files;
mod kernel;
mod launcher;
mod opens;
mod process;

use std::{
    io,
    path::{Path, PathBuf},
};

use kiln_proto::{Failure, FailureKind};
use landlock::RulesetCreated;
use parking_lot::Mutex;

pub use kernel::Kernel;
pub use launcher::{COMMAND as LAUNCHER, launcher_main};

use calls::Starts;

/// What the other thread of this process is to be kept to, until it is.
static TO_JOIN: Mutex<Option<RulesetCreated>> = Mutex::new(None);

/// Tells, at the start of a node, what its kernel lacks, and makes up for what can be.
pub(crate) fn tell() {
    let kernel = Kernel::of_machine();
    let lacks = kernel.lacks();
    metrics::gauge!("kiln_compiler_sandbox_lacks").set(lacks.len() as f64);
    if !lacks.is_empty() {
        let Kernel { landlock, seccomp } = kernel;
        let can = lacks.join("; ");
        tracing::warn!(landlock, seccomp, "compilers are confined in part: they can {can}");
    }
    if kernel.landlock == 0
        && let Err(e) = process::hide_daemon()
    {
        tracing::warn!("other processes of this user can read this one: {e}");
    }
}

/// Begins, before any thread and before anything is read: what a process of Kiln that starts
/// no other needs. Files come later: a library has to be loaded first. `devices`: where this
/// machine has a GPU, it may use that.
pub(crate) fn begin(devices: bool) -> io::Result<()> {
    process::close_others();
    process::bound(&process::ALONE)?;
    process::give_up_privileges()?;
    if Kernel::of_machine().seccomp {
        calls::keep_to(&calls::filter(Starts::Nothing, devices && files::has_gpu())?)?;
    }
    Ok(())
}

/// Leaves this thread, and those it starts, read access to `read` and all access to `own`, and
/// nothing else of the machine's files. True: the kernel enforces it.
pub(crate) fn keep_to_files(read: &[PathBuf], own: &Path) -> Result<bool, Failure> {
    let rules = files::rules(read, own).map_err(failed)?;
    *TO_JOIN.lock() = Some(rules.try_clone().map_err(failed)?);
    files::keep_to(rules).map_err(failed)
}

/// Puts this thread, which was there before, under what another one is confined to. Once: the
/// rules' descriptor is gone then.
pub(crate) fn join_files() -> io::Result<()> {
    match TO_JOIN.lock().take() {
        Some(rules) => files::keep_to(rules).map(drop),
        None => Ok(()),
    }
}

/// What [`keep_to_files`] does for files that are opened for reading, where the kernel has no
/// Landlock. False: this machine has neither.
pub(crate) fn keep_to_opens(read: &[PathBuf], own: &Path) -> Result<bool, Failure> {
    match Kernel::of_machine().seccomp {
        true => opens::keep_to(read, own).map_err(failed),
        false => Ok(false),
    }
}

/// What a program that draws on the machine's own libraries and devices may read.
pub(crate) fn system() -> Vec<PathBuf> {
    files::SYSTEM.iter().map(PathBuf::from).collect()
}

/// The folders that a variable of the environment lists, but for the root.
pub(crate) fn folders_of(variable: &str) -> Vec<PathBuf> {
    let listed = std::env::var_os(variable);
    let folders = listed.iter().flat_map(std::env::split_paths);
    folders.filter(|folder| folder.is_absolute() && folder.parent().is_some()).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(e: io::Error) -> Failure {
    Failure::new(FailureKind::Crashed, format!("confine the worker: {e}"))
}
