//! Starting a Python that a command asks something.
//!
//! Invariant: nothing is imported from the folder that the command was given in, which may be
//! anybody's: an empty or missing entry of the import path would mean that folder.

use std::{ffi::OsStr, path::PathBuf, process::Stdio};

use tokio::process::Command;

/// Before any import: `-P` and PYTHONSAFEPATH are of Python 3.11 and later alone.
const NOT_FROM_HERE: &str = "import sys; sys.path[:] = [path for path in sys.path if path]\n";

/// `interpreter`, about to run `code`. In the same folder, which may decide what a version
/// manager's `python3` is; killed where it is dropped.
pub(crate) fn asking(interpreter: &OsStr, code: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.arg("-c").arg(format!("{NOT_FROM_HERE}{code}"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    // For the Pythons that it starts itself.
    command.env("PYTHONSAFEPATH", "1");
    if let Some(path) = std::env::var_os("PYTHONPATH") {
        let named = std::env::split_paths(&path).filter(|entry| !entry.as_os_str().is_empty());
        match std::env::join_paths(named.collect::<Vec<PathBuf>>()) {
            Ok(named) if !named.is_empty() => command.env("PYTHONPATH", named),
            _ => command.env_remove("PYTHONPATH"),
        };
    }
    command
}
