//! How far a database was known to be durable, written beside it.
//!
//! Invariant: the mark is never ahead of what was fsynced. So a database that is opened
//! behind its mark has lost what it acknowledged: a log that was cut, or a manifest of
//! which RocksDB dropped the end without a word.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rocksdb::DB;

use crate::error::ClusterError;

/// Bytes of the number and of its check.
const LENGTH: usize = 16;

/// The mark of one database.
pub(super) struct Mark {
    file: File,
    written: u64,
}

impl Mark {
    /// Opens or creates the mark of `db`.
    pub(super) fn open(db: &DB) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path_of(db.path()))?;
        Ok(Self { file, written: 0 })
    }

    /// Notes that all writes up to `sequence` are durable. Not fsynced: a mark that a power
    /// loss takes back only sees less.
    pub(super) fn raise(&mut self, sequence: u64) -> io::Result<()> {
        if sequence > self.written {
            self.file.write_all_at(&encode(sequence), 0)?;
            self.written = sequence;
        }
        Ok(())
    }
}

/// Refuses a database that is behind its mark.
pub(super) fn check(db: &DB) -> Result<(), ClusterError> {
    let path = path_of(db.path());
    let mark = match std::fs::read(&path) {
        Ok(bytes) => decode(&bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(ClusterError::storage(format!("read {}: {e}", path.display()))),
    };
    let sequence = db.latest_sequence_number();
    match mark {
        Some(mark) if sequence < mark => Err(ClusterError::storage(format!(
            "the index is damaged: {} of {mark} writes that were durable are gone; empty the data \
             folder and join as a new node",
            mark - sequence
        ))),
        // None, or torn by a power loss: nothing is known.
        _ => Ok(()),
    }
}

fn path_of(db: &Path) -> PathBuf {
    db.with_extension("mark")
}

fn encode(sequence: u64) -> [u8; LENGTH] {
    let number = sequence.to_be_bytes();
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&number);
    bytes[8..].copy_from_slice(&kiln_proto::Digest::of(&number).as_bytes()[..8]);
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(bytes.first_chunk().copied()?);
    (bytes == encode(number)).then_some(number)
}
