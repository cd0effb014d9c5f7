//! The files of one job: its headers, where NVRTC looks for them.
//!
//! Invariant: everything is written below this worker's own folder, which is empty before
//! and removed after it; the source is compiled in a folder where nothing lies but what came
//! with it, so that the node's own files answer no `__has_include`.

use std::{collections::BTreeMap, fs, io, path::Path};

use kiln_proto::{Failure, FailureKind};

use super::protocol::{Octets, Program};

/// Where the source lies that came with no tree.
const EMPTY: &str = "source";
/// Below the worker's folder.
const ROOT: &str = "headers";

/// Writes the headers of `job` that are files, and goes to where its source lies. The headers
/// that NVRTC is to be given by name, and the folders in which it is to look, relative to here:
/// names in messages and in `__FILE__` are then the same on every node.
pub(super) fn lay_out(job: &Program) -> Result<(BTreeMap<String, Octets>, Vec<String>), Failure> {
    write(job).map_err(|e| {
        Failure::new(FailureKind::Crashed, format!("lay out the headers of the source: {e}"))
    })
}

fn write(job: &Program) -> io::Result<(BTreeMap<String, Octets>, Vec<String>)> {
    let root = Path::new(ROOT);
    let Some(tree) = &job.tree else {
        let here = root.join(EMPTY);
        fs::create_dir_all(&here)?;
        std::env::set_current_dir(&here)?;
        return Ok((job.headers.clone(), Vec::new()));
    };
    let mut named = BTreeMap::new();
    for (name, text) in &job.headers {
        if name.starts_with('/') {
            named.insert(name.clone(), text.clone());
        } else if name.ends_with('/') {
            fs::create_dir_all(root.join(name))?;
        } else {
            fs::write(with_folder(&root.join(name))?, &text.0)?;
        }
    }
    for (file, other) in &tree.same {
        fs::hard_link(root.join(file), with_folder(&root.join(other))?)?;
    }
    let here = root.join(&tree.source);
    fs::create_dir_all(&here)?;
    std::env::set_current_dir(&here)?;
    let up = "../".repeat(tree.source.split('/').count());
    Ok((named, tree.include.iter().map(|folder| format!("{up}{folder}")).collect()))
}

fn with_folder(path: &Path) -> io::Result<&Path> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
    Ok(path)
}
