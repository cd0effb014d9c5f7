//! Whether a log is as it was written.
//!
//! Invariant: a line that was changed, taken out, put elsewhere or added is told, whatever
//! else is wrong; what cannot be known without the head that the cluster has (lines that
//! were cut off at the end) is said to be not known.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    Part, chain,
    line::{LET_GO, Line},
};

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
    /// Whether it has not the line that the cluster knows, and so is another log or a part.
    pub is_another: bool,
}

/// Checks the log in `folder`, of which the cluster knows that the deed `known.0` has the
/// digest `known.1`; shows each line that can be read to `see`, part by part. Numbers are
/// those of the deeds.
pub fn verify(
    folder: &Path,
    known: Option<(u64, [u8; 32])>,
    mut see: impl FnMut(&Line),
) -> io::Result<Found> {
    let mut found = one(folder, known, &mut see)?;
    for part in [Part::Refusals, Part::Values] {
        let below = folder.join(part.folder());
        if !below.is_dir() {
            continue;
        }
        let Found { lost, problems, .. } = one(&below, None, &mut see)?;
        found.lost += lost;
        found.problems.extend(problems.into_iter().map(|problem| Problem {
            file: format!("{}/{}", part.folder(), problem.file),
            ..problem
        }));
    }
    Ok(found)
}

/// Whether the deeds in `folder` are those of which the cluster knows `known`.
pub(super) fn has(folder: &Path, known: (u64, [u8; 32])) -> io::Result<bool> {
    Ok(!one(folder, Some(known), &mut |_| {})?.is_another)
}

/// The files of a part, the oldest first, all of them open: a node that runs lets go of
/// files meanwhile.
fn open(folder: &Path) -> io::Result<Vec<(u64, PathBuf, File)>> {
    let mut tries = 0;
    loop {
        let listed = chain::list(folder)?.into_iter();
        let opened = listed.map(|(first, path)| Ok((first, path.clone(), File::open(&path)?)));
        match opened.collect::<io::Result<Vec<_>>>() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 3 => tries += 1,
            opened => return opened,
        }
    }
}

fn one(
    folder: &Path,
    known: Option<(u64, [u8; 32])>,
    see: &mut dyn FnMut(&Line),
) -> io::Result<Found> {
    let mut found = Found::default();
    let mut before: Option<(u64, [u8; 32])> = None;
    let listed = open(folder)?;
    let newest = listed.len();
    let mut at = (String::new(), 0);
    let mut begins = (String::new(), String::new());
    let mut from = 1;
    for (place, (first, path, mut opened)) in (1..).zip(listed) {
        let mut bytes = Vec::new();
        opened.read_to_end(&mut bytes)?;
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
            if number == 1 && line.sequence != first {
                wrong(
                    number,
                    format!("the file's first line is {first}, and this is {}", line.sequence),
                );
            }
            match before {
                // Those before the oldest file were let go of, as the log says its bounds.
                None => {
                    found.first = line.sequence;
                    begins = (file.clone(), line.previous.clone());
                }
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
                found.is_another = true;
                wrong(
                    number,
                    "it is not the line that the cluster was told of: it was changed".into(),
                );
            }
            if line.event == LET_GO {
                from = line.subject.parse().unwrap_or(from).max(from);
            }
            found.lost += line.lost;
            found.last = line.sequence;
            before = Some((line.sequence, digest));
            see(&line);
        }
    }
    if found.first > from {
        let what = format!(
            "the log begins with line {}, and let go only of those before {from}: the ones between \
             were taken out",
            found.first
        );
        found.problems.push(Problem { file: begins.0.clone(), line: 1, what });
    }
    if let Some((sequence, _)) = known.filter(|(sequence, _)| *sequence > found.last) {
        let (file, line) = at;
        let what = format!(
            "the log ends with line {}, and the cluster was told of line {sequence}: the end was cut off",
            found.last
        );
        found.is_another = true;
        found.problems.push(Problem { file, line, what });
    } else if let Some((sequence, digest)) = known.filter(|(sequence, _)| *sequence < found.first) {
        // Its own line is not there any more: at most the one behind it tells which it was.
        if sequence.checked_add(1) != Some(found.first) || begins.1 != hex::encode(digest) {
            let what = format!(
                "the cluster was told of line {sequence}, and the log begins with line {}: whether \
                 it is the same log is not known",
                found.first
            );
            found.is_another = true;
            found.problems.push(Problem { file: begins.0, line: 1, what });
        }
    }
    Ok(found)
}
