//! Clocks that jump, and compilers that the kernel kills.
//!
//! Invariant: only processes that nodes of this run started are killed.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::fleet::Plan;

const CLOCKS: Plan = Plan { clocks: true, ..THREE };

pub(super) fn all() -> Vec<Nemesis> {
    vec![
        Nemesis {
            plan: CLOCKS,
            ..nemesis("clock-step", "wall clocks jump by hours, each node's by others", 20, step)
        },
        nemesis(
            "compiler-killed",
            "SIGKILL of each compiler's process, as when memory ends",
            20,
            oom,
        ),
    ]
}

fn step<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        for at in 0..strike.fleet.nodes.len() {
            let seconds = strike.chance.below(14 * 3600) as i64 - 7 * 3600;
            strike.fleet.set_clock(at, seconds)?;
        }
        strike.struck("wall clocks jumped by up to 7 h");
        strike.hold(4.0).await;
        for at in 0..strike.fleet.nodes.len() {
            strike.fleet.set_clock(at, 0)?;
        }
        strike.heal()
    })
}

fn oom<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let end = Instant::now() + Duration::from_secs(6);
        let mut killed = 0;
        strike.struck("compilers are killed");
        while Instant::now() < end {
            for node in &strike.fleet.nodes {
                for child in node.pid().map(children).unwrap_or_default() {
                    // It may have ended by itself meanwhile.
                    killed += usize::from(kill_process(child, Signal::KILL).is_ok());
                }
            }
            sleep(Duration::from_millis(40)).await;
        }
        ensure!(killed > 0, "no compiler ran");
        strike.note(format!("{killed} of them"));
        strike.heal()
    })
}

/// The processes that `pid` started.
fn children(pid: u32) -> Vec<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let all = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    });
    all.filter_map(Pid::from_raw).collect()
}
