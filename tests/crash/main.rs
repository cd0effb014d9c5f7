//! Kills nodes at every durable step, and looks whether anything that was promised is gone.
//!
//! Invariant: a step counts as tried only when a node was killed there; every kill is
//! followed by a restart and a look at all keys. Run it with `make faults-crash`.
#![allow(clippy::unwrap_used, missing_docs)]

mod fleet;
#[allow(dead_code)]
#[path = "../cluster/harness.rs"]
mod harness;
mod load;
mod points;
#[path = "../support/ports.rs"]
mod ports;
mod rotation;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use self::{fleet::Fleet, points::POINTS};

/// Kills of one step that may miss it before it counts as not reached.
const TRIES: usize = 3;

/// Kill real nodes at each durable step, restart them, and read back all that was
/// acknowledged.
#[derive(Debug, Parser)]
struct Options {
    /// Kills of each step.
    #[arg(long, default_value_t = 25)]
    kills: usize,
    /// Only steps whose name begins like this.
    #[arg(long, default_value = "")]
    only: String,
    /// Begin no further step after so many minutes.
    #[arg(long, default_value_t = 600)]
    minutes: u64,
    /// Begin the list at this step: to spread a long run over several.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Try so many steps of the list.
    #[arg(long, default_value_t = POINTS.len())]
    steps: usize,
}

/// What became of the kills at one step.
#[derive(Default)]
struct Tally {
    kills: usize,
    lost: usize,
    /// From the restart to the last key.
    seconds: Vec<f64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let (began, limit) = (Instant::now(), Duration::from_secs(options.minutes * 60));
    let mut fleet = Fleet::start().await;
    let mut failed = false;
    println!("{:<20} {:>5} {:>5} {:>8} {:>8}", "step", "kills", "lost", "p50 s", "max s");
    for (step, way) in POINTS
        .iter()
        .skip(options.skip)
        .take(options.steps)
        .filter(|(s, _)| s.starts_with(&options.only))
    {
        if began.elapsed() > limit {
            println!("{step}: not begun, the time is over");
            break;
        }
        let mut tally = Tally::default();
        let mut missed = 0;
        while tally.kills < options.kills && missed < TRIES {
            let count = 1 + tally.kills as u64 % 3;
            if !fleet.kill_at(step, count, *way).await {
                missed += 1;
                continue;
            }
            missed = 0;
            tally.kills += 1;
            let restarted = Instant::now();
            let lost = fleet.recover().await;
            tally.seconds.push(restarted.elapsed().as_secs_f64());
            for why in &lost {
                eprintln!("{step}, kill {}: {why}", tally.kills);
            }
            tally.lost += lost.len();
        }
        failed |= tally.lost > 0 || tally.kills < options.kills;
        tally.seconds.sort_by(f64::total_cmp);
        let at = |part: usize| {
            tally
                .seconds
                .get((tally.seconds.len() * part / 100).min(tally.seconds.len().saturating_sub(1)))
        };
        let [median, most] = [50, 100].map(|part| at(part).copied().unwrap_or(f64::NAN));
        println!("{step:<20} {:>5} {:>5} {median:>8.2} {most:>8.2}", tally.kills, tally.lost);
    }
    println!("{} calls that ended well meanwhile", fleet.calls());
    fleet.stop().await;
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
