//! Packs: an artifact's files back to back, in path order, as one blob.
//!
//! Invariant: nothing outside the folder that [`write_to`] was given changes,
//! whatever the manifest or the folder holds, and no file there is ever seen
//! half-written.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
};

use bytes::Bytes;
use kiln_proto::{Digest, FileEntry, MAX_FILES, MAX_PACK_BYTES, Manifest, check_path};
use rustix::{
    fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps},
    io::Errno,
};

use crate::cache::{Blob, BlobError, BlobWriter};

/// Why files do not become a pack, or a pack does not become files.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A path that no artifact may have; the producer's fault.
    #[error("file {path:?}: {why}")]
    Path {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No files, or more than an artifact may have.
    #[error("{0} files: an artifact has 1 to {MAX_FILES}")]
    Files(usize),
    /// More bytes than an artifact may have.
    #[error("{0} bytes: an artifact has at most {MAX_PACK_BYTES}")]
    Size(u64),
    /// The artifact has no such file.
    #[error("the artifact has no file {0:?}")]
    NoSuchFile(String),
    /// The pack is not the one that the manifest describes: fetch it again.
    #[error("the pack does not hold what its manifest says about {0}")]
    Corrupt(String),
    /// No memory for the pack.
    #[error(transparent)]
    Memory(#[from] BlobError),
    /// The folder cannot be written, or has a link or a file in the way.
    #[error("write {path:?}: {source}")]
    Write {
        /// The file or folder.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Files that can become a pack.
#[derive(Debug)]
pub struct Packing {
    /// By path.
    files: Vec<(String, Bytes)>,
    size: u64,
}

impl Packing {
    /// Checks `files`, given as path and bytes in any order.
    pub fn new(mut files: Vec<(String, Bytes)>) -> Result<Self, ArtifactError> {
        if files.is_empty() || files.len() > MAX_FILES {
            return Err(ArtifactError::Files(files.len()));
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        check_paths(files.iter().map(|(path, _)| path.as_str()))?;
        let size = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if size > MAX_PACK_BYTES {
            return Err(ArtifactError::Size(size));
        }
        Ok(Self { files, size })
    }

    /// Bytes of the pack.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the pack into the memory of `writer`, which has its size. Hashes every
    /// byte twice: not for runtime threads where it is large.
    pub fn write(self, mut writer: BlobWriter) -> Result<(Blob, Vec<FileEntry>), ArtifactError> {
        let mut entries = Vec::with_capacity(self.files.len());
        for (path, bytes) in self.files {
            let (offset, size) = (writer.filled(), bytes.len() as u64);
            writer.write(&bytes)?;
            entries.push(FileEntry { path, offset, size, digest: Digest::of(&bytes) });
        }
        Ok((writer.finish()?, entries))
    }
}

/// Packs `files` in memory that no budget counts: for tests.
#[cfg(test)]
pub(crate) fn pack(files: Vec<(String, Bytes)>) -> Result<(Blob, Vec<FileEntry>), ArtifactError> {
    let packing = Packing::new(files)?;
    let writer = BlobWriter::with_size(packing.size())?;
    packing.write(writer)
}

/// The bytes of the file `path` within `pack`.
pub fn file<'a>(
    manifest: &Manifest,
    pack: &'a [u8],
    path: &str,
) -> Result<&'a [u8], ArtifactError> {
    let at = manifest.files.binary_search_by(|entry| entry.path.as_str().cmp(path));
    let at = at.map_err(|_| ArtifactError::NoSuchFile(path.into()))?;
    bytes_of(&manifest.files[at], pack)
}

/// Whether `pack` holds every file of `manifest`, byte for byte.
pub fn verify_files(manifest: &Manifest, pack: &[u8]) -> Result<(), ArtifactError> {
    if pack.len() as u64 != manifest.pack_size {
        return Err(ArtifactError::Corrupt(format!("its {} bytes", manifest.pack_size)));
    }
    for entry in &manifest.files {
        if Digest::of(bytes_of(entry, pack)?) != entry.digest {
            return Err(ArtifactError::Corrupt(entry.path.clone()));
        }
    }
    Ok(())
}

/// What becomes of a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The artifact's file takes its place.
    Replace,
    /// It stays, whatever it holds.
    Keep,
}

/// What a file has beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, of which the process's umask takes away as from any new file.
    pub mode: u32,
    /// Time of the last change: seconds and nanoseconds since the Unix epoch.
    pub modified: Option<(i64, u32)>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { mode: 0o666, modified: None }
    }
}

/// Writes the files of `manifest` below `dir`, which is made when it is not there.
///
/// All files are written under other names first, so that a full disk changes
/// nothing that can be seen; then each replaces its predecessor at once. A link
/// among the folders below `dir` is refused; a link in a file's place is replaced,
/// never followed. Nothing is fsynced: an artifact can be had again.
pub fn write_to(dir: &Path, manifest: &Manifest, pack: &[u8]) -> Result<(), ArtifactError> {
    write_with(dir, manifest, pack, Existing::Replace, |_| Attributes::default()).map(|_| ())
}

/// Like [`write_to`], with a say in what is there already and in what a file has
/// beside its bytes, from the moment it is seen. Returns how many were put there.
pub fn write_with(
    dir: &Path,
    manifest: &Manifest,
    pack: &[u8],
    existing: Existing,
    attributes: impl Fn(&FileEntry) -> Attributes,
) -> Result<usize, ArtifactError> {
    check_paths(manifest.files.iter().map(|entry| entry.path.as_str()))?;
    verify_files(manifest, pack)?;
    let shown = |e| failed(&dir.display().to_string(), e);
    std::fs::create_dir_all(dir).map_err(shown)?;
    let root = rustix::fs::open(dir, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty());
    let root = root.map_err(|e| shown(e.into()))?;
    let mut staged = Staged::new(&root).map_err(shown)?;
    for entry in &manifest.files {
        let written = staged.write(bytes_of(entry, pack)?, attributes(entry));
        written.map_err(|e| failed(&entry.path, e))?;
    }
    // Every folder is made before the first file is put in its place.
    for entry in &manifest.files {
        folder_of(&root, &entry.path).map_err(|e| failed(&entry.path, e))?;
    }
    let mut placed = 0;
    for (at, entry) in manifest.files.iter().enumerate() {
        let (folder, name) = folder_of(&root, &entry.path).map_err(|e| failed(&entry.path, e))?;
        let done = place(&staged.folder, &at.to_string(), &folder, name, existing);
        placed += usize::from(done.map_err(|e| failed(&entry.path, e.into()))?);
    }
    Ok(placed)
}

/// Moves a staged file to its name; false where another file has it and stays.
fn place(
    staged: &OwnedFd,
    number: &str,
    folder: &OwnedFd,
    name: &str,
    existing: Existing,
) -> rustix::io::Result<bool> {
    if existing == Existing::Keep {
        match rustix::fs::renameat_with(staged, number, folder, name, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => return Ok(false),
            // A file system that cannot: look first, and lose the race to nobody
            // but whoever makes the same file at this moment.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
        if rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(false);
        }
    }
    rustix::fs::renameat(staged, number, folder, name).map(|()| true)
}

/// Each path alone, and that none is both a file and a folder. `paths` is sorted.
fn check_paths<'a>(paths: impl Iterator<Item = &'a str> + Clone) -> Result<(), ArtifactError> {
    let refuse = |path: &str, why| Err(ArtifactError::Path { path: path.into(), why });
    let mut folders = HashSet::new();
    let mut previous = None;
    for path in paths.clone() {
        if let Err(why) = check_path(path) {
            return refuse(path, why);
        }
        if previous == Some(path) {
            return refuse(path, "it is there twice");
        }
        previous = Some(path);
        folders.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    match paths.into_iter().find(|path| folders.contains(path)) {
        Some(path) => refuse(path, "it is a file and a folder"),
        None => Ok(()),
    }
}

fn bytes_of<'a>(entry: &FileEntry, pack: &'a [u8]) -> Result<&'a [u8], ArtifactError> {
    let range = usize::try_from(entry.offset).ok().zip(usize::try_from(entry.size).ok());
    range
        .and_then(|(from, size)| pack.get(from..from.checked_add(size)?))
        .ok_or_else(|| ArtifactError::Corrupt(entry.path.clone()))
}

fn failed(path: &str, source: io::Error) -> ArtifactError {
    ArtifactError::Write { path: path.into(), source }
}

/// How folders are opened: never through a link.
const FOLDER: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// The folder of the checked path `path` below `root`, made where it is missing,
/// and the file's name. Each step is taken from the descriptor of the one
/// before, so that nothing can be swapped for a link in between.
fn folder_of<'a>(root: &OwnedFd, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut folder = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for part in folders.split('/').filter(|part| !part.is_empty()) {
        match rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        folder = rustix::fs::openat(&folder, part, FOLDER, Mode::empty())?;
    }
    Ok((folder, name))
}

/// Files that are written and not yet in their place: a hidden folder beside
/// them, with one file for each entry, named by its number.
struct Staged<'a> {
    root: &'a OwnedFd,
    name: String,
    folder: OwnedFd,
    files: usize,
}

impl<'a> Staged<'a> {
    fn new(root: &'a OwnedFd) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!(".kiln-{}", hex::encode(random));
        rustix::fs::mkdirat(root, &name, Mode::RWXU)?;
        match rustix::fs::openat(root, &name, FOLDER, Mode::empty()) {
            Ok(folder) => Ok(Self { root, name, folder, files: 0 }),
            Err(error) => {
                rustix::fs::unlinkat(root, &name, AtFlags::REMOVEDIR)?;
                Err(error.into())
            }
        }
    }

    fn write(&mut self, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let name = self.files.to_string();
        // Never set-user-id, whatever was recorded.
        let mode = Mode::from_raw_mode(attributes.mode & 0o777);
        let file = rustix::fs::openat(&self.folder, name, flags, mode)?;
        self.files += 1;
        let mut file = File::from(file);
        file.write_all(bytes)?;
        if let Some((seconds, nanoseconds)) = attributes.modified {
            let modified = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
            let times = Timestamps { last_access: modified, last_modification: modified };
            rustix::fs::futimens(&file, &times)?;
        }
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let gone = |done: rustix::io::Result<()>| match done {
            // Those that are in their place by now.
            Err(Errno::NOENT) => Ok(()),
            done => done,
        };
        let removed = (0..self.files)
            .map(|at| rustix::fs::unlinkat(&self.folder, at.to_string(), AtFlags::empty()))
            .try_for_each(gone)
            .and_then(|()| rustix::fs::unlinkat(self.root, &self.name, AtFlags::REMOVEDIR));
        if let Err(error) = removed {
            tracing::warn!(folder = self.name, %error, "remove a staging folder");
        }
    }
}

#[cfg(test)]
#[path = "artifact_tests.rs"]
mod tests;
