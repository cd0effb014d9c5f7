//! Putting an artifact's files into a folder.
//!
//! Invariant: a file that is in the folder is never changed or replaced: where
//! it differs from the artifact's it is kept, and counted. Any number of
//! processes may restore one folder at once.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use kiln::artifact::{self, ArtifactError, Existing};
use kiln_proto::{Digest, FileEntry, Manifest};
use rustix::{fs::FlockOperation, io::Errno};

use super::{
    builds::is_record,
    current,
    index::{self, FolderIndex},
    patterns::Patterns,
    scan, spool,
};

/// What a restore would do.
pub(crate) struct Plan {
    /// With the files alone that the folder lacks.
    pub(crate) manifest: Manifest,
    /// There already, byte for byte.
    pub(crate) same: usize,
    /// There already, with other bytes.
    pub(crate) kept: usize,
}

/// Compares `folder` with `manifest`.
pub(crate) fn plan(folder: &Path, manifest: &Manifest, patterns: &Patterns) -> io::Result<Plan> {
    let here = scan::scan(folder, patterns)?.files;
    let root = match here.is_empty() {
        true => None,
        false => Some(spool::open_folder(folder)?),
    };
    let (mut same, mut kept) = (0, 0);
    let mut missing = manifest.clone();
    missing.files.clear();
    for entry in &manifest.files {
        if patterns.leave_out(&entry.path) {
            continue;
        }
        match (here.get(&entry.path), &root) {
            (Some(seen), Some(root)) => {
                let equal = seen.size == entry.size
                    && spool::read(root, &entry.path, seen)?
                        .is_some_and(|bytes| Digest::of(&bytes) == entry.digest);
                same += usize::from(equal);
                kept += usize::from(!equal);
            }
            _ => missing.files.push(entry.clone()),
        }
    }
    Ok(Plan { manifest: missing, same, kept })
}

/// What of `manifest` neither `folder` nor `known` has. Opens no file.
pub(crate) fn news(
    folder: &Path,
    manifest: &Manifest,
    patterns: &Patterns,
    known: &BTreeSet<String>,
) -> io::Result<Plan> {
    let here = scan::scan(folder, patterns)?.files;
    let mut missing = manifest.clone();
    missing.files.retain(|entry| {
        let path = &entry.path;
        !patterns.leave_out(path) && !here.contains_key(path) && !known.contains(path)
    });
    Ok(Plan { manifest: missing, same: 0, kept: 0 })
}

impl Plan {
    /// Bytes that are missing.
    pub(crate) fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.size).sum()
    }

    /// Writes what is missing; `whole` is the artifact's own manifest and `pack`
    /// its bytes.
    pub(crate) fn write(
        &self,
        folder: &Path,
        whole: &Manifest,
        pack: &[u8],
    ) -> Result<Written, ArtifactError> {
        let index = artifact::file(whole, pack, index::PATH).map(FolderIndex::decode);
        let index = index.unwrap_or_default();
        let current = current::check(folder, whole, &self.manifest, pack);
        let attributes = |entry: &FileEntry| {
            let mut attributes = index.attributes(&entry.path);
            if current.verdict.current.contains(&entry.path) || is_record(&entry.path) {
                attributes.modified = Some(current.modified);
            }
            attributes
        };
        let mut part = self.manifest.clone();
        part.files.retain(|entry| !current.left_out.contains(&entry.path));
        let (last, first) = part.files.into_iter().partition(|entry| comes_last(&entry.path));
        let (renewed, made) = packed(&current.renewed);
        let mut written =
            Written { files: 0, outdated: current.outdated, differs: current.verdict.differs };
        for (files, pack) in [(first, pack), (last, pack), (renewed, made.as_slice())] {
            part.files = files;
            part.pack_size = pack.len() as u64;
            if !part.files.is_empty() {
                let placed = artifact::write_with(folder, &part, pack, Existing::Keep, attributes)?;
                written.files += placed;
            }
        }
        Ok(written)
    }
}

/// What a restore did.
pub(crate) struct Written {
    pub(crate) files: usize,
    /// Not written: made from other inputs than are here.
    pub(crate) outdated: usize,
    /// One of those inputs.
    pub(crate) differs: Option<String>,
}

/// Files as entries over bytes of their own.
fn packed(files: &[(String, Vec<u8>)]) -> (Vec<FileEntry>, Vec<u8>) {
    let (mut entries, mut pack) = (Vec::new(), Vec::new());
    for (path, bytes) in files {
        let (offset, size) = (pack.len() as u64, bytes.len() as u64);
        entries.push(FileEntry { path: path.clone(), offset, size, digest: Digest::of(bytes) });
        pack.extend(bytes);
    }
    (entries, pack)
}

/// Whether a tool takes the file as a promise that others are there: COMMAND may look
/// while they come.
fn comes_last(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("__grp__")
}

/// One restore of a folder at a time on this machine, so that the ranks of a
/// node do not all fetch the same bytes. Only that: without it all is as safe.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for it for at most `patience`; `None` where it cannot be had.
    pub(crate) async fn acquire(folder: &Path, patience: Duration) -> Option<Self> {
        let file = open(folder).ok()?;
        let end = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(Self { _file: file }),
                Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(_) => return None,
            }
        }
    }
}

/// Beside the folder, so that the folder itself holds nothing but its tool's files.
fn open(folder: &Path) -> anyhow::Result<File> {
    let (parent, name) = folder.parent().zip(folder.file_name()).context("it is the root")?;
    fs::create_dir_all(parent)?;
    let name = format!(".{}.kiln-lock", name.to_string_lossy());
    Ok(File::options().create(true).append(true).open(parent.join(name))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fetch::tests::artifact;

    fn none() -> Patterns {
        Patterns::new(&[], &[])
    }

    #[test]
    fn only_what_is_missing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, pack) = artifact(&[("a/same", b"1"), ("b", b"cluster's"), ("c", b"3")]);
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/same"), "1").unwrap();
        fs::write(dir.path().join("b"), "my own").unwrap();
        let plan = plan(dir.path(), &manifest, &none()).unwrap();
        assert_eq!((plan.manifest.files.len(), plan.same, plan.kept), (1, 1, 1));
        assert_eq!(plan.write(dir.path(), &manifest, &pack).unwrap().files, 1);
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"my own");
        assert_eq!(fs::read(dir.path().join("c")).unwrap(), b"3");
    }

    #[test]
    fn locks_and_the_index_of_a_pack_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 3] =
            [(index::PATH, br#"{"version":1,"files":{}}"#), ("ext/a.so", b"so"), ("ext/lock", b"")];
        let (manifest, pack) = artifact(&files);
        let plan = plan(dir.path(), &manifest, &none()).unwrap();
        plan.write(dir.path(), &manifest, &pack).unwrap();
        assert!(dir.path().join("ext/a.so").exists());
        assert!(!dir.path().join("ext/lock").exists());
        assert!(!dir.path().join(".kiln").exists());
    }

    #[test]
    fn a_path_that_leaves_the_folder_writes_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("d");
        for bad in ["../escape", "/etc/escape", "a/../../escape"] {
            let (manifest, pack) = artifact(&[("a", b"1"), (bad, b"2")]);
            let plan = plan(&dir, &manifest, &none()).unwrap();
            assert!(plan.write(&dir, &manifest, &pack).is_err(), "{bad}");
        }
        assert!(!outer.path().join("escape").exists());
        assert_eq!(fs::read_dir(&dir).map_or(0, Iterator::count), 0);
    }

    #[test]
    fn a_link_among_the_folders_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("sub")).unwrap();
        let (manifest, pack) = artifact(&[("a", b"1"), ("sub/file", b"2")]);
        let plan = plan(dir.path(), &manifest, &none()).unwrap();
        assert!(plan.write(dir.path(), &manifest, &pack).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!dir.path().join("a").exists(), "all or nothing");
    }

    #[tokio::test]
    async fn the_lock_is_one_at_a_time_and_outside_the_folder() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("cache");
        let held = Lock::acquire(&dir, Duration::ZERO).await;
        assert!(held.is_some());
        assert!(Lock::acquire(&dir, Duration::ZERO).await.is_none());
        drop(held);
        assert!(Lock::acquire(&dir, Duration::ZERO).await.is_some());
        assert!(!dir.exists());
    }
}
