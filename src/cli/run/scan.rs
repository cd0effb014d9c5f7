//! What a folder holds: one walk, no file opened.
//!
//! Invariant: no link is followed, so nothing outside the folder is ever seen;
//! the walk ends, whatever the folder holds.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, path::Path, time::Duration};

use kiln_proto::check_path;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::patterns::Patterns;

/// Folders within folders.
const DEEPEST: usize = 64;
/// A folder with more is no compile cache.
const MOST_ENTRIES: usize = 200_000;
const FOLDER: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// What tells one state of a file from another, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified: (i64, u32),
    /// Set by the kernel at every change, whatever the writer does.
    pub(crate) changed: (i64, u32),
    inode: u64,
}

impl Seen {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size.cast_unsigned(),
            mode: stat.st_mode & 0o777,
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
            inode: stat.st_ino,
        }
    }

    /// When it changed, since the Unix epoch.
    pub(crate) fn age_mark(&self) -> Duration {
        Duration::new(self.changed.0.try_into().unwrap_or_default(), self.changed.1)
    }
}

/// A folder at one moment.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Regular files by path.
    pub(crate) files: BTreeMap<String, Seen>,
    /// Links, sockets, devices, and names that no artifact can have.
    pub(crate) unfit: usize,
    entries: usize,
}

/// Walks `folder`; one that is not there is empty.
pub(crate) fn scan(folder: &Path, patterns: &Patterns) -> io::Result<Scan> {
    let mut scan = Scan::default();
    // A link in the folder's own place is the user's choice; below it none is followed.
    match rustix::fs::open(folder, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Ok(root) => walk(&root, "", 0, patterns, &mut scan)?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(scan)
}

fn walk(
    folder: &OwnedFd,
    prefix: &str,
    depth: usize,
    patterns: &Patterns,
    scan: &mut Scan,
) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        scan.entries += 1;
        if scan.entries > MOST_ENTRIES {
            return Err(io::Error::other(format!("it has more than {MOST_ENTRIES} entries")));
        }
        let Ok(name) = entry.file_name().to_str() else {
            scan.unfit += 1;
            continue;
        };
        let path = format!("{prefix}{name}");
        if patterns.leave_out(&path) {
            continue;
        }
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since it was listed.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if check_path(&path).is_ok() => {
                scan.files.insert(path, Seen::of(&stat));
            }
            FileType::Directory if depth < DEEPEST => {
                match rustix::fs::openat(folder, name, FOLDER, Mode::empty()) {
                    Ok(below) => walk(&below, &format!("{path}/"), depth + 1, patterns, scan)?,
                    // Gone, or a link by now, or not ours to read.
                    Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::ACCESS) => {
                        scan.unfit += 1;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            _ => scan.unfit += 1,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn paths(folder: &Path) -> (Vec<String>, usize) {
        let found = scan(folder, &Patterns::new(&[], &[])).unwrap();
        (found.files.into_keys().collect(), found.unfit)
    }

    #[test]
    fn links_and_special_files_are_counted_and_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "1").unwrap();
        symlink(outside.path(), dir.path().join("folder")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("a/link")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert_eq!(paths(dir.path()), (vec!["a/b/file".to_owned()], 3));
        drop(socket);
    }

    #[test]
    fn a_folder_that_is_not_there_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(paths(&dir.path().join("none")), (Vec::new(), 0));
    }

    #[test]
    fn any_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let seen = || scan(dir.path(), &Patterns::new(&[], &[])).unwrap().files["f"];
        fs::write(&path, "one").unwrap();
        let first = seen();
        assert_eq!(first, seen());
        fs::write(dir.path().join("g"), "two").unwrap();
        fs::rename(dir.path().join("g"), &path).unwrap();
        assert_ne!(first, seen(), "another file of the same size");
    }
}
