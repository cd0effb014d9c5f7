//! Whether a log is as it was written.
//!
//! Invariant: a line that was changed, taken out, put elsewhere or added is told, whatever
//! else is wrong; what cannot be known without the head that the cluster has (lines that
//! were cut off at the end) is said to be not known.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{chain, line::Line};

/// Something that is wrong, at the line of that number in that file, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct Problem {
    /// Name of the file.
    pub file: String,
    /// Which line.
    pub line: usize,
    /// For people.
    pub what: String,
}

/// What a log has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The numbers of its first and last line; 0: there is none.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// Events that are in no line, by its own words.
    pub lost: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// The files of the log in `folder`, the oldest first.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(chain::list(folder)?.into_iter().map(|(_, path)| path).collect())
}

/// Checks the log in `folder`, of which the cluster knows that the line `known.0` has the
/// digest `known.1`; shows each line that can be read to `see`.
pub fn verify(
    folder: &Path,
    known: Option<(u64, [u8; 32])>,
    mut see: impl FnMut(&Line),
) -> io::Result<Found> {
    let mut found = Found::default();
    let mut before: Option<(u64, [u8; 32])> = None;
    let listed = chain::list(folder)?;
    let newest = listed.len();
    let mut at = (String::new(), 0);
    for (place, (first, path)) in (1..).zip(&listed) {
        let bytes = fs::read(path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut wrong = |line: usize, what: String| {
            found.problems.push(Problem { file: file.clone(), line, what });
        };
        let whole = bytes.strip_suffix(b"\n");
        if whole.is_none() && !bytes.is_empty() && place < newest {
            wrong(0, "the file ends in the middle of a line".into());
        }
        let lines = whole.unwrap_or(&bytes).split(|byte| *byte == b'\n');
        let torn = whole.is_none();
        let lines: Vec<_> = lines.filter(|_| !bytes.is_empty()).collect();
        let count = lines.len();
        for (number, text) in (1..).zip(lines) {
            if torn && number == count && place == newest {
                // It is being written, or was when the node ended.
                continue;
            }
            at = (file.clone(), number);
            let digest = chain::digest(text);
            let line = match serde_json::from_slice::<Line>(text) {
                Ok(line) => line,
                Err(error) => {
                    wrong(number, format!("no line of an audit log: {error}"));
                    before = before.map(|(sequence, _)| (sequence + 1, digest));
                    continue;
                }
            };
            if number == 1 && line.sequence != *first {
                wrong(
                    number,
                    format!("the file's first line is {first}, and this is {}", line.sequence),
                );
            }
            match before {
                // Those before the oldest file were let go of, as the log says its bounds.
                None => found.first = line.sequence,
                Some((sequence, _)) if line.sequence != sequence + 1 => wrong(
                    number,
                    format!(
                        "line {} comes after line {sequence}: some are missing, or moved",
                        line.sequence
                    ),
                ),
                Some((_, digest)) if line.previous != hex::encode(digest) => wrong(
                    number,
                    "the line before it is not the one that was there: that one was changed".into(),
                ),
                Some(_) => {}
            }
            if before.is_none() && line.sequence == 1 && line.previous != hex::encode([0; 32]) {
                wrong(number, "it is the first line, and says that there was one before".into());
            }
            if known.is_some_and(|(sequence, of)| sequence == line.sequence && of != digest) {
                wrong(
                    number,
                    "it is not the line that the cluster was told of: it was changed".into(),
                );
            }
            found.lost += line.lost;
            found.last = line.sequence;
            before = Some((line.sequence, digest));
            see(&line);
        }
    }
    if let Some((sequence, _)) = known.filter(|(sequence, _)| *sequence > found.last) {
        let (file, line) = at;
        let what = format!(
            "the log ends with line {}, and the cluster was told of line {sequence}: the end was cut off",
            found.last
        );
        found.problems.push(Problem { file, line, what });
    }
    Ok(found)
}
