//! The compiler processes of a node, held still.

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{TestNode, eventually};

/// Stopped processes; they go on when it is dropped.
pub(super) struct Workers(Vec<Pid>);

impl Workers {
    /// Stops those that wait for work: the node lives on, and its next compile never ends.
    pub(super) async fn pause(node: &TestNode) -> Self {
        let waiting = async || {
            // Before, it may be one that only looks at the toolchain.
            let compilers = node.status().await.ok()?.compilers;
            compilers.iter().find(|found| found.compiler == "native")?;
            let found = children(node.pid());
            (!found.is_empty()).then_some(found)
        };
        let workers = Self(eventually("a compiler that waits warm", waiting).await);
        workers.signal(Signal::STOP);
        workers
    }

    /// Lets them go on.
    pub(super) fn resume(self) {
        drop(self);
    }

    /// Ends them, as the kernel does when memory is short.
    pub(super) fn kill(self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // One that ended meanwhile needs nothing.
            let _ = kill_process(*pid, signal);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

fn children(of: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let is_worker = |pid: &i32| {
            let started = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            started.is_ok_and(|started| started.contains("\0worker\0"))
        };
        found.extend(pids.filter(is_worker).filter_map(Pid::from_raw));
    }
    found
}
