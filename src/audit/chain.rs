//! The files of the log, and where it ends.
//!
//! Invariant: a file is named by the number of its first line, so that names sort as lines
//! do.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::line::Line;

const ENDING: &str = "jsonl";

/// Where a log ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The number of the last line; 0: there is none.
    pub(super) sequence: u64,
    /// BLAKE3 of it, without its end.
    pub(super) digest: [u8; 32],
}

/// The digest of a line, without its end.
pub(super) fn digest(line: &[u8]) -> [u8; 32] {
    *blake3::hash(line).as_bytes()
}

/// The name of a file whose first line is `sequence`.
pub(super) fn name(folder: &Path, sequence: u64) -> PathBuf {
    folder.join(format!("{sequence:020}.{ENDING}"))
}

/// The files in `folder` by the numbers of their first lines.
pub(super) fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|ending| ending == ENDING)
            && let Ok(first) = stem.parse()
        {
            found.push((first, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Where the log ends whose last file has these bytes, and how many of them are whole
/// lines. `None`: its last whole line is none of ours.
pub(super) fn end(bytes: &[u8]) -> Option<(Head, usize)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].strip_suffix(b"\n").unwrap_or_default();
    let last = lines.rsplit(|byte| *byte == b'\n').next().filter(|last| !last.is_empty());
    let Some(last) = last else { return Some((Head::default(), whole)) };
    let line: Line = serde_json::from_slice(last).ok()?;
    Some((Head { sequence: line.sequence, digest: digest(last) }, whole))
}
