//! The compiler processes of a node, held still.

use std::time::Duration;

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::harness::{TestCluster, TestNode, eventually};

/// Stopped processes; they go on when it is dropped.
pub(crate) struct Workers(Vec<Pid>);

impl Workers {
    /// Stops those that wait for work: the node lives on, and its next compile never ends.
    pub(crate) async fn pause(node: &TestNode) -> Self {
        let waiting = async || {
            // Before, it may be one that only looks at the toolchain.
            let compilers = node.status().await.ok()?.compilers;
            compilers.iter().find(|found| found.compiler == "native")?;
            waiting_for_work(node, "worker").await
        };
        let workers = Self(eventually("a compiler that waits warm", waiting).await);
        workers.signal(Signal::STOP);
        workers
    }

    /// Stops the one that waits for something to check: there is one once anything was
    /// checked, and the next check never ends.
    pub(crate) async fn pause_checker(node: &TestNode) -> Self {
        let waiting = async || waiting_for_work(node, "checker").await;
        let checkers = Self(eventually("a checker that waits warm", waiting).await);
        checkers.signal(Signal::STOP);
        checkers
    }

    /// Lets them go on.
    pub(crate) fn resume(self) {
        drop(self);
    }

    /// Ends them, as the kernel does when memory is short.
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
    }

    /// Ends one that stands still, once it was given work.
    pub(crate) async fn kill_at_work(&self) {
        // What nobody reads stays in the pipe: the worker stands still.
        let has_work = |pid: &Pid| {
            let stdin = std::fs::File::open(format!("/proc/{}/fd/0", pid.as_raw_nonzero()));
            stdin.is_ok_and(|stdin| rustix::io::ioctl_fionread(&stdin).is_ok_and(|n| n > 0))
        };
        while !self.0.iter().any(has_work) {
            sleep(Duration::from_millis(20)).await;
        }
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

/// The compilers of a cluster, of which one node is to have a piece before any is compiled.
pub(super) struct Standing {
    its: Workers,
    others: Vec<Workers>,
}

impl Standing {
    pub(super) async fn until_taken_by(node: usize, cluster: &TestCluster) -> Self {
        let its = Workers::pause(&cluster.nodes[node]).await;
        let others = cluster.nodes.iter().enumerate().filter(|(at, _)| *at != node);
        let others = join_all(others.map(|(_, other)| Workers::pause(other))).await;
        Self { its, others }
    }

    /// Once the node has a piece, the others go on; its own compiler stands still.
    pub(super) async fn taken(self, node: &TestNode) -> Workers {
        eventually("the node to take a piece", async || {
            (node.counter("pieces_taken").await > 0).then_some(())
        })
        .await;
        drop(self.others);
        self.its
    }
}

/// The one child that is there and has nothing to do: one that still loads is no spare yet.
async fn waiting_for_work(node: &TestNode, command: &str) -> Option<Vec<Pid>> {
    let mut found = children(node.pid(), command);
    for _ in 0..3 {
        if found.len() != 1 || !found.iter().all(is_idle) {
            return None;
        }
        sleep(Duration::from_millis(50)).await;
        let now = children(node.pid(), command);
        if now != found {
            return None;
        }
        found = now;
    }
    Some(found)
}

/// Whether no thread of it runs, or would if there were a core.
fn is_idle(pid: &Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let mut threads = threads.into_iter().flatten().flatten();
    threads.all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat"));
        stat.is_ok_and(|stat| stat.contains(") S "))
    })
}

/// The children of a process that run that command of `kiln`.
pub(crate) fn children(of: u32, command: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let is_worker = |pid: &i32| {
            let started = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            started.is_ok_and(|started| started.contains(&format!("\0{command}\0")))
        };
        found.extend(pids.filter(is_worker).filter_map(Pid::from_raw));
    }
    found
}
