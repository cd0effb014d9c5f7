//! Ends this process at a step that a test names.
//!
//! Invariant: only in builds with the feature `crash-points`, and only where
//! [`VARIABLE`] is set; nothing of the step is done or undone on the way out.
//!
//! The steps are the `fail_point!`s of the code: each stands where what is on a disk, or
//! in the object store, has just changed or is about to.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};

/// Names a file: once it holds `STEP:N`, the N-th time at that step is the last. The file
/// is removed when that is so.
pub const VARIABLE: &str = "KILN_CRASH_FILE";

/// Between two looks into the file.
const LOOK: Duration = Duration::from_millis(10);

/// Arms the step that the file names, now or when it appears.
pub fn watch() {
    let Some(file) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    if arm(&file) {
        return;
    }
    thread::spawn(move || {
        while !arm(&file) {
            thread::park_timeout(LOOK);
        }
    });
}

fn arm(file: &PathBuf) -> bool {
    let Ok(text) = std::fs::read_to_string(file) else { return false };
    let Some((step, count)) = text.trim().split_once(':') else { return false };
    let Ok(last) = count.parse::<u64>() else { return false };
    let times = AtomicU64::new(0);
    let reached = move || {
        if times.fetch_add(1, Ordering::SeqCst) + 1 >= last {
            // Cannot fail: a process may always signal itself.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    };
    fail::cfg_callback(step, reached).is_ok() && std::fs::remove_file(file).is_ok()
}
