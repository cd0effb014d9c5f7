//! What a job may take of its machine that no limit of the kernel's bounds: of all its processes
//! together, and of what they wrote.
//!
//! Invariant: it ends a job, and never one that keeps within the bounds. It looks twice a
//! second: what was taken between two looks was taken.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_proto::{Failure, FailureKind};
use rustix::process::Pid;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Most bytes that a job keeps in its folder, and files.
const MOST_BYTES: u64 = 4 << 30;
const MOST_FILES: u64 = 20_000;
/// Most processes of a job: compilers that work side by side.
const MOST_PROCESSES: usize = 1024;

/// A job that is watched.
pub(super) struct Watched {
    group: Pid,
    folder: Option<PathBuf>,
    memory_bytes: u64,
    bytes: u64,
}

impl Watched {
    /// Watches the processes of `group` and what they write in `folder`. `memory_bytes`: what
    /// each may have for itself, and all of them share; 0: any.
    pub(super) fn new(group: Pid, folder: Option<&Path>, memory_bytes: u64) -> Self {
        // Half of the room that there is: the other half is the node's.
        let room = folder.and_then(|folder| rustix::fs::statvfs(folder).ok());
        let room = room.map_or(u64::MAX, |at| at.f_bavail.saturating_mul(at.f_frsize) / 2);
        let folder = folder.map(Path::to_owned);
        Self { group, folder, memory_bytes, bytes: MOST_BYTES.min(room) }
    }

    /// Waits until the job takes more than it may; a job that ends is waited for elsewhere.
    pub(super) async fn exceeds(self) -> Failure {
        let mut watched = self;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let looking = tokio::task::spawn_blocking(move || (watched.look(), watched));
            match looking.await {
                Ok((Some(failure), _)) => return failure,
                Ok((None, again)) => watched = again,
                Err(e) => {
                    let why = format!("its processes could not be watched: {e}");
                    return Failure::new(FailureKind::Crashed, why);
                }
            }
        }
    }

    fn look(&self) -> Option<Failure> {
        let crashed = |why: String| Some(Failure::new(FailureKind::Crashed, why));
        let (mut processes, mut shared) = (0, 0);
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = process.path();
            if group_of(&path) == Some(self.group.as_raw_nonzero().get()) {
                processes += 1;
                shared += shared_bytes(&path);
            }
        }
        if processes > MOST_PROCESSES {
            let why = format!("it started {processes} processes, at most {MOST_PROCESSES}");
            return crashed(why);
        }
        if self.memory_bytes > 0 && shared > self.memory_bytes {
            let most = self.memory_bytes;
            let why = format!("its processes share {shared} bytes of memory, at most {most}");
            return Some(Failure::new(FailureKind::OutOfMemory, why));
        }
        let (bytes, files) = self.folder.as_deref().map_or((0, 0), written);
        if bytes > self.bytes || files > MOST_FILES {
            let most = self.bytes;
            return crashed(format!(
                "it wrote {bytes} bytes in {files} files, at most {most} in {MOST_FILES}"
            ));
        }
        None
    }
}

/// The process group of the process at `path` of `/proc`.
fn group_of(path: &Path) -> Option<i32> {
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    // The name before may have spaces and brackets; then come state, parent and group.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(2)?.parse().ok()
}

fn shared_bytes(path: &Path) -> u64 {
    let status = fs::read_to_string(path.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Bytes on disk below `folder`, and files; no more than the bound is counted.
fn written(folder: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut files) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Hidden from this process, and so without a bound.
            Err(_) => return (u64::MAX, MOST_FILES + 1),
        };
        for entry in entries.flatten() {
            // Not of what a link leads to.
            let Ok(found) = entry.metadata() else { continue };
            bytes += found.blocks() * 512;
            files += 1;
            if files > MOST_FILES {
                return (bytes, files);
            }
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    (bytes, files)
}
