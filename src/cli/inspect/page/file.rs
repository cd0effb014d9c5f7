//! Where a page goes.
//!
//! Invariant: a page is written whole or not at all, and nothing that is no ordinary file is
//! put another in the place of.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

use super::super::super::{
    CliError, fetch,
    output::{self, size},
};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Written<'p> {
    html: &'p Path,
    bytes: u64,
}

/// Writes the page to `path`; `-`: to standard output.
pub(crate) fn write(path: &Path, page: &str, json: bool) -> Result<(), CliError> {
    if path == Path::new("-") {
        return output::bytes(page.as_bytes());
    }
    let target = target(path)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    fetch::write_file(folder.unwrap_or(Path::new(".")), &target, page.as_bytes())?;
    let bytes = page.len() as u64;
    match json {
        true => output::json(&Written { html: path, bytes }),
        false => output::line(format_args!("{}  {}", path.display(), size(bytes))),
    }
}

/// The file to put in place: what a link leads to, not the link.
fn target(path: &Path) -> Result<PathBuf, CliError> {
    let other = |what| {
        Err(CliError::Usage(format!(
            "{} is {what}: name a file, or - for standard output",
            path.display()
        )))
    };
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            Ok(path.canonicalize().with_context(|| path.display().to_string())?)
        }
        Ok(found) if found.is_dir() => other("a folder"),
        Ok(_) => other("no ordinary file"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(e) => Err(anyhow::Error::new(e).context(path.display().to_string()).into()),
    }
}
