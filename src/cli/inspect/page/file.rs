//! Where a page goes.
//!
//! Invariant: a page is written whole or not at all, and nothing that is no ordinary file is
//! put another in the place of.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Serialize;

use super::super::super::{
    CliError,
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
    let folder = folder_of(&target);
    // As any other file that is made: the process's mask says who reads it.
    let mode = fs::Permissions::from_mode(0o666);
    let mut temp = tempfile::Builder::new()
        .permissions(mode)
        .tempfile_in(folder)
        .with_context(|| format!("write into {}", folder.display()))?;
    let context = || format!("write {}", target.display());
    temp.write_all(page.as_bytes()).with_context(context)?;
    if let Ok(replaced) = fs::metadata(&target) {
        temp.as_file().set_permissions(replaced.permissions()).with_context(context)?;
    }
    temp.persist(&target).with_context(context)?;
    let bytes = page.len() as u64;
    match json {
        true => output::json(&Written { html: path, bytes }),
        false => output::line(format_args!("{}  {}", path.display(), size(bytes))),
    }
}

/// Refuses a page in the place of what it is made from: one of `sources`, or a file in the
/// artifact's `folder` that is no page.
pub(crate) fn check(
    path: &Path,
    folder: Option<&Path>,
    sources: &[Option<&Path>],
) -> Result<(), CliError> {
    let Some(page) = placed(path) else { return Ok(()) };
    let is_source = sources.iter().flatten().any(|own| placed(own).as_ref() == Some(&page));
    let is_page = page.extension().is_some_and(|ending| ending == "html" || ending == "htm");
    let is_within = folder
        .and_then(|folder| folder.canonicalize().ok())
        .is_some_and(|folder| page.starts_with(folder));
    match is_source || is_within && !is_page && page.exists() {
        false => Ok(()),
        true => Err(CliError::Usage(format!(
            "{} is what the page is made from: name another file",
            path.display()
        ))),
    }
}

/// Where a file is, there or yet to be made.
fn placed(path: &Path) -> Option<PathBuf> {
    let there = path.canonicalize().ok();
    there.or_else(|| Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?)))
}

fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
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
        Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => other("a link to what is not there"),
            Err(_) => Ok(path.to_owned()),
        },
        Err(e) => Err(anyhow::Error::new(e).context(path.display().to_string()).into()),
    }
}
