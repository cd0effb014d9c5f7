//! How far a database was known to be durable, written beside it.
//!
//! A database can lose what it acknowledged in two ways that RocksDB does not tell of: a
//! write-ahead log or a manifest that lost its end, and a manifest with a hole. The
//! number of writes shows the first. It does not show the second: later writes are in the
//! log, while a table of earlier ones is named nowhere any more. So the manifest's bytes
//! are marked as well.
//!
//! Invariant: the mark is never ahead of what was fsynced. So a database that is opened
//! behind its mark, or with another manifest than was marked, is damaged.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use kiln_proto::{Digest, Hasher};
use rocksdb::DB;

use crate::error::ClusterError;

/// Bytes of the check at the end.
const CHECK: usize = 8;
/// Bytes of a mark: the sequence, the manifest's number, length and digest, the check.
const LENGTH: usize = 8 + 8 + 8 + 32 + CHECK;
/// What earlier builds wrote: the sequence and its check.
const SEQUENCE_ALONE: usize = 8 + CHECK;
/// Manifests are read in steps of so many bytes.
const STEP: usize = 64 << 10;

/// What was durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Marked {
    /// RocksDB's number of the last write.
    sequence: u64,
    /// Absent in the marks of earlier builds.
    manifest: Option<Start>,
}

/// The start of a manifest, up to where it was durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    /// In its file's name.
    number: u64,
    length: u64,
    digest: Digest,
}

/// The mark of one open database.
pub(super) struct Mark {
    file: File,
    written: u64,
    manifest: Manifest,
}

/// The manifest that an open database appends to.
struct Manifest {
    number: u64,
    file: File,
    length: u64,
    bytes: Hasher,
}

impl Mark {
    /// Opens or creates the mark of `db`.
    pub(super) fn open(db: &DB) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path_of(db.path()))?;
        let Some((number, path)) = manifest_of(db.path())? else {
            return Err(io::Error::other("an open database has no manifest"));
        };
        let manifest =
            Manifest { number, file: File::open(path)?, length: 0, bytes: Hasher::new() };
        Ok(Self { file, written: 0, manifest })
    }

    /// Notes that all writes up to `sequence` are durable, and what the manifest has. Not
    /// fsynced: a mark that a power loss takes back only sees less.
    pub(super) fn raise(&mut self, sequence: u64) -> io::Result<()> {
        let grew = self.manifest.follow()?;
        if sequence > self.written || grew {
            let Manifest { number, length, ref bytes, .. } = self.manifest;
            let start = Start { number, length, digest: bytes.finalize().into() };
            let marked = Marked { sequence, manifest: Some(start) };
            self.file.write_all_at(&marked.encode(), 0)?;
            self.written = sequence;
        }
        Ok(())
    }
}

impl Manifest {
    /// Takes in what was appended, and makes it durable first; whether there was any.
    fn follow(&mut self) -> io::Result<bool> {
        let length = self.file.metadata()?.len();
        if length <= self.length {
            return Ok(false);
        }
        self.file.sync_data()?;
        take(&self.file, self.length..length, &mut self.bytes)?;
        self.length = length;
        Ok(true)
    }
}

/// Refuses a database whose manifest is not the marked one. Before it is opened: RocksDB
/// then begins another manifest.
pub(super) fn check_manifest(db: &Path) -> Result<(), ClusterError> {
    let Some(Marked { manifest: Some(marked), .. }) = read(db)? else { return Ok(()) };
    let failed = |e: io::Error| ClusterError::storage(format!("read the manifest: {e}"));
    let why = match manifest_of(db).map_err(failed)? {
        // RocksDB has begun another one since, with all that the marked one had.
        Some((number, _)) if number > marked.number => return Ok(()),
        Some((number, path)) if number == marked.number => {
            let file = File::open(&path).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            let mut bytes = Hasher::new();
            match length < marked.length {
                true => format!("its manifest has {length} bytes, and had {}", marked.length),
                false => {
                    take(&file, 0..marked.length, &mut bytes).map_err(failed)?;
                    if Digest::from(bytes.finalize()) == marked.digest {
                        return Ok(());
                    }
                    "its manifest has other bytes than were written".into()
                }
            }
        }
        Some((number, _)) => format!("its manifest is number {number}, and was {}", marked.number),
        None => "it has no manifest any more".into(),
    };
    Err(damaged(&why))
}

/// Refuses a database that has fewer writes than its mark.
pub(super) fn check_writes(db: &DB) -> Result<(), ClusterError> {
    let sequence = db.latest_sequence_number();
    match read(db.path())? {
        Some(marked) if sequence < marked.sequence => {
            let (gone, all) = (marked.sequence - sequence, marked.sequence);
            Err(damaged(&format!("{gone} of {all} writes that were durable are gone")))
        }
        // None, or torn by a power loss: nothing is known.
        _ => Ok(()),
    }
}

fn damaged(why: &str) -> ClusterError {
    ClusterError::storage(format!(
        "the index is damaged: {why}; empty the data folder and join as a new node"
    ))
}

fn read(db: &Path) -> Result<Option<Marked>, ClusterError> {
    let path = path_of(db);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Marked::decode(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ClusterError::storage(format!("read {}: {e}", path.display()))),
    }
}

fn path_of(db: &Path) -> PathBuf {
    db.with_extension("mark")
}

/// Number and path of the manifest that the file `CURRENT` names; `None` without one.
fn manifest_of(db: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let name = match std::fs::read_to_string(db.join("CURRENT")) {
        Ok(name) => name,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let name = name.trim_end();
    let number = name.strip_prefix("MANIFEST-").and_then(|number| number.parse().ok());
    let path = db.join(name);
    Ok(number.filter(|_| path.exists()).map(|number| (number, path)))
}

/// Feeds a part of `file` to `bytes`.
fn take(file: &File, part: std::ops::Range<u64>, bytes: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; STEP];
    let mut at = part.start;
    while at < part.end {
        let step = usize::try_from(part.end - at).map_or(STEP, |left| left.min(STEP));
        file.read_exact_at(&mut buffer[..step], at)?;
        bytes.update(&buffer[..step]);
        at += step as u64;
    }
    Ok(())
}

impl Marked {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.sequence.to_be_bytes().to_vec();
        if let Some(Start { number, length, digest }) = &self.manifest {
            bytes.extend(number.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(digest.as_bytes());
        }
        bytes.extend(&Digest::of(&bytes).as_bytes()[..CHECK]);
        bytes
    }

    /// `None`: it is torn.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let manifest = match bytes.len() {
            SEQUENCE_ALONE => None,
            LENGTH => {
                let digest = Digest::from_bytes(*bytes.get(24..)?.first_chunk()?);
                Some(Start { number: number(8)?, length: number(16)?, digest })
            }
            _ => return None,
        };
        let marked = Self { sequence: number(0)?, manifest };
        (marked.encode() == bytes).then_some(marked)
    }
}
