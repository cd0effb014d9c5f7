//! Which of the restored files COMMAND opened.
//!
//! Invariant: a figure is only given where the file system tells: its times of access
//! were tried in this very folder. Kiln's own reading counts for nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::fs::{Timespec, Timestamps};

/// Restored files, and how they were then.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    files: BTreeMap<String, State>,
}

/// What a read changes, and what only replacing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    accessed: (i64, i64),
    inode: u64,
    size: u64,
}

/// What became of the restored files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Those that were not opened.
    pub(crate) unused: Vec<String>,
}

impl Uses {
    /// Takes note of files that were written to `folder` a moment ago.
    pub(crate) fn note<'a>(&mut self, folder: &Path, paths: impl Iterator<Item = &'a String>) {
        for path in paths {
            if let Some(state) = state(&folder.join(path)) {
                self.files.insert(path.clone(), state);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Looks at them now; `None` where the file system keeps no times of access.
    pub(crate) fn count(&self, folder: &Path) -> Option<Used> {
        if !tells(folder) {
            return None;
        }
        let mut used = Used::default();
        for (path, then) in &self.files {
            // One that was removed or replaced without a look at it was of no use.
            let opened = state(&folder.join(path))
                .is_some_and(|now| now.inode == then.inode && now.accessed != then.accessed);
            match opened {
                true => {
                    used.files += 1;
                    used.bytes += then.size;
                }
                false => used.unused.push(path.clone()),
            }
        }
        Some(used)
    }
}

fn state(path: &Path) -> Option<State> {
    let data = fs::symlink_metadata(path).ok()?;
    let accessed = (data.atime(), data.atime_nsec());
    Some(State { accessed, inode: data.ino(), size: data.len() })
}

/// Whether reading a file in `folder` changes its time of access: not with `noatime`, and
/// not on some shared file systems.
fn tells(folder: &Path) -> bool {
    let tried = || {
        let mut file: File =
            tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder)?.into_file();
        std::io::Write::write_all(&mut file, b"x")?;
        let long_ago = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: long_ago, last_modification: long_ago };
        rustix::fs::futimens(&file, &times)?;
        file.rewind()?;
        file.read_exact(&mut [0])?;
        std::io::Result::Ok(file.metadata()?.atime() != long_ago.tv_sec)
    };
    tried().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_used_and_what_is_replaced_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["copied", "read", "removed", "replaced", "resting"].map(str::to_owned);
        for name in &names {
            let file = File::create(dir.path().join(name)).unwrap();
            std::io::Write::write_all(&mut &file, b"four").unwrap();
            let then = Timespec { tv_sec: 1_600_000_000, tv_nsec: 5 };
            let times = Timestamps { last_access: then, last_modification: then };
            rustix::fs::futimens(&file, &times).unwrap();
        }
        let mut uses = Uses::default();
        uses.note(dir.path(), names.iter());
        if !tells(dir.path()) {
            assert_eq!(uses.count(dir.path()), None);
            return;
        }
        fs::read(dir.path().join("read")).unwrap();
        let copied = std::process::Command::new("cat").arg(dir.path().join("copied")).output();
        assert!(copied.unwrap().status.success());
        fs::remove_file(dir.path().join("removed")).unwrap();
        fs::write(dir.path().join("new"), "other").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("replaced")).unwrap();
        fs::read(dir.path().join("replaced")).unwrap();
        let unused = ["removed", "replaced", "resting"].map(str::to_owned).to_vec();
        assert_eq!(uses.count(dir.path()), Some(Used { files: 2, bytes: 8, unused }));
    }
}
