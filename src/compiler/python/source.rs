//! What Python's workers run.
//!
//! Invariant: all of it is in this binary, and the interpreter adds nothing to it.

use std::{collections::BTreeMap, io};

/// Takes the worker's modules from stdin, where messages come after them, and runs it.
pub(super) const BOOTSTRAP: &str = include_str!("../../../python/kiln_torch/worker/bootstrap.py");

macro_rules! modules {
    ($($file:literal,)*) => {
        [$(($file, include_str!(concat!("../../../python/kiln_torch/worker/", $file))),)*]
    };
}

/// The worker's modules by file name, as [`BOOTSTRAP`] reads them.
pub(super) fn modules() -> io::Result<Vec<u8>> {
    let modules = BTreeMap::from(modules![
        "__init__.py",
        "archive.py",
        "artifact.py",
        "compiling.py",
        "confining.py",
        "examples.py",
        "expression.py",
        "forks.py",
        "formula.py",
        "messages.py",
        "options.py",
        "process.py",
        "program.py",
        "rebuilt.py",
        "refused.py",
        "toolchain.py",
    ]);
    serde_json::to_vec(&modules).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_module_of_the_worker_is_sent() {
        let sent: BTreeMap<String, String> = serde_json::from_slice(&modules().unwrap()).unwrap();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/python/kiln_torch/worker");
        let files = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".py") && name != "bootstrap.py")
            .collect();
        names.sort();
        assert_eq!(sent.into_keys().collect::<Vec<_>>(), names);
    }
}
