//! Too little memory: a control group that processes are moved into.
//!
//! Invariant: the group is this program's own, holds only processes that were moved into
//! it, and is removed at the end.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use rustix::process::Pid;

/// Looks for the end of the last process in the group.
const TRIES: usize = 100;

/// The files of one version of control groups.
struct Version {
    root: &'static str,
    limit: &'static str,
    kills: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version { root: "/sys/fs/cgroup", limit: "memory.max", kills: "memory.events" },
    Version {
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        kills: "memory.oom_control",
    },
];

/// A group of processes that together may have little memory.
pub(crate) struct Cramped {
    folder: PathBuf,
    kills: &'static str,
}

impl Cramped {
    /// Needs root. `bytes`: of what its processes take after they came.
    pub(crate) fn new(bytes: u64) -> anyhow::Result<Self> {
        let name = format!("kiln-faults-{}", std::process::id());
        for Version { root, limit, kills } in VERSIONS {
            let cramped = Self { folder: Path::new(root).join(&name), kills };
            let made = fs::create_dir(&cramped.folder).is_ok();
            let limit = cramped.folder.join(limit);
            // A folder without that file is a plain one.
            if made && limit.exists() && fs::write(limit, bytes.to_string()).is_ok() {
                // Where there is swap, the kernel would rather use that. Not every kernel counts it.
                let _ = fs::write(cramped.folder.join("memory.swap.max"), "0");
                return Ok(cramped);
            }
        }
        anyhow::bail!("no control group for memory can be made: is this root?")
    }

    /// Moves a process into it; false: it has ended.
    pub(crate) fn take(&self, process: Pid) -> bool {
        let id = process.as_raw_nonzero().to_string();
        fs::write(self.folder.join("cgroup.procs"), id).is_ok()
    }

    /// Processes that the kernel killed for want of memory.
    pub(crate) fn killed(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.folder.join(self.kills))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("the kernel does not count them")?.parse()?)
    }
}

#[expect(clippy::disallowed_methods, reason = "the kernel tells nobody when a group is empty")]
impl Drop for Cramped {
    fn drop(&mut self) {
        // It can be removed once the last process in it is gone.
        for _ in 0..TRIES {
            if fs::remove_dir(&self.folder).is_ok() || !self.folder.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
