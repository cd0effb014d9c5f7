//! What the interpreter was found to be the last time.
//!
//! Invariant: only a hint that makes a node's start quick. It belongs to one
//! interpreter by path, size and time of change; a new look replaces it, and a
//! worker that turns out to be something else gets no job.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use kiln_proto::Fingerprint;
use serde::{Deserialize, Serialize};

/// Where a look is remembered.
#[derive(Debug)]
pub(super) struct Remembered {
    file: PathBuf,
    of: Interpreter,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Interpreter {
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
    /// Another version of the worker may say other things.
    worker: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    of: Interpreter,
    found: Vec<Fingerprint>,
}

impl Remembered {
    /// The memory of `interpreter` in `folder`.
    pub(super) fn new(interpreter: &Path, folder: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(interpreter)?;
        let of = Interpreter {
            path: interpreter.to_owned(),
            bytes: meta.len(),
            modified: meta.modified()?,
            worker: kiln_proto::Digest::of(&super::source::modules()?).to_string(),
        };
        Ok(Self { file: folder.join("python.json"), of })
    }

    /// What was found, if it was this interpreter.
    pub(super) fn read(&self) -> Option<Vec<Fingerprint>> {
        // Anything wrong with it only costs the short cut.
        let record: Record = serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()?;
        (record.of == self.of).then_some(record.found)
    }

    /// Remembers what was found.
    pub(super) fn write(self, found: &[Fingerprint]) {
        let record = Record { of: self.of, found: found.to_vec() };
        let written = serde_json::to_vec(&record)
            .map_err(io::Error::other)
            .and_then(|bytes| std::fs::write(&self.file, bytes));
        if let Err(e) = written {
            tracing::debug!(error = %e, "what Python is here was not remembered");
        }
    }
}
