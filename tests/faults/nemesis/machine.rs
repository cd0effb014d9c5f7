//! Clocks that jump, and compilers that the kernel kills.
//!
//! Invariant: only processes that nodes of this run started are killed.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::{Done, Nemesis, Strike, THREE, nemesis};
use crate::{fleet::Plan, memory::Cramped, node::Node};

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
            killed,
        ),
        nemesis("compiler-memory", "compilers have 4 MiB, the kernel kills them", 20, cramped),
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

fn killed<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let mut killed = 0;
        strike.struck("compilers are killed");
        let kill = |child| killed += usize::from(kill_process(child, Signal::KILL).is_ok());
        each_compiler(strike, Duration::from_millis(40), kill).await;
        ensure!(killed > 0, "no compiler ran");
        strike.note(format!("{killed} of them"));
        strike.heal()
    })
}

fn cramped<'a>(strike: &'a mut Strike<'_>) -> Done<'a> {
    Box::pin(async {
        let cramped = Cramped::new(4 << 20)?;
        strike.struck("compilers have little memory");
        let take = |child| {
            cramped.take(child);
        };
        each_compiler(strike, Duration::from_millis(2), take).await;
        let killed = cramped.killed()?;
        ensure!(killed > 0, "the kernel killed no compiler");
        strike.note(format!("the kernel killed {killed}"));
        strike.heal()
    })
}

/// Does it to every compiler that runs, for some seconds. It may end by itself meanwhile.
async fn each_compiler(strike: &Strike<'_>, every: Duration, mut act: impl FnMut(Pid)) {
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        strike.fleet.nodes.iter().flat_map(Node::children).for_each(&mut act);
        sleep(every).await;
    }
}
