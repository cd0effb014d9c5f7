//! The same addresses in every worker.
//!
//! What NVRTC gives for a kernel may hang on where its own data lies. With addresses that the
//! kernel draws anew for each process, one block of the tests came out in two ways, in 32 of 240
//! compiles; with the same ones each time, in one way in 480 (NVRTC 13.5).
//!
//! Invariant: a worker that says that its addresses are the same was started so. Where the kernel
//! refuses it, as container runtimes may have it do, it says that they are not.

use std::{os::unix::process::CommandExt, process::Command};

use nix::sys::personality::{self, Persona};

/// The argument of a worker that was started once more.
const AGAIN: &str = "again";

/// Starts this worker once more, in this process, at the same addresses as any other; returns
/// whether it has them.
pub(super) fn fix() -> bool {
    let Ok(now) = personality::get() else { return false };
    if now.contains(Persona::ADDR_NO_RANDOMIZE) {
        return true;
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "kiln".into());
    let is_second = arguments.nth(1).is_some_and(|argument| argument == AGAIN);
    if is_second || personality::set(now | Persona::ADDR_NO_RANDOMIZE).is_err() {
        return false;
    }
    let why = Command::new("/proc/self/exe").arg0(name).args(["worker", AGAIN]).exec();
    eprintln!("kiln worker: start once more: {why}");
    false
}
