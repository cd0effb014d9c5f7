//! Many seeds, each in a process of its own, as a replay is.
//!
//! Invariant: a seed that fails is told with the command that replays it.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    nemesis::Fault,
    run::{Outcome, run},
};

const SEED: &str = "KILN_SIM_SEED";
const SHOWN: &str = "KILN_SIM_TRACE";
/// A filter of `tracing`: what the code itself logs, among the events.
const LOGGED: &str = "KILN_SIM_LOG";
const COUNT: &str = "KILN_SIM_SEEDS";
/// Begins the lines that tell a run's counts.
const COUNTED: &str = "counted ";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn replay(seed: u64) -> String {
    format!(
        "{SHOWN}=1 {SEED}={seed} cargo test -p kiln-cluster --lib -- \
         --exact sim::seeds::one --ignored --nocapture"
    )
}

/// Runs one seed in this process.
#[test]
#[ignore = "one seed, for those that run many and for a replay"]
fn one() {
    let seed = number(SEED).unwrap_or(0);
    if let Ok(filter) = std::env::var(LOGGED) {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let Outcome { events, trace, counts, violations } = run(seed, number(SHOWN) == Some(1));
    println!("seed {seed}: {events} events, trace {trace}");
    for (what, count) in counts {
        println!("{COUNTED}{count:>7} {what}");
    }
    for violation in &violations {
        println!("VIOLATION {violation}");
    }
    assert!(violations.is_empty(), "seed {seed} fails");
}

/// The output of one seed's process, and whether it passed.
fn child(seed: u64) -> (bool, String) {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["--exact", "sim::seeds::one", "--ignored", "--nocapture"])
        .env(SEED, seed.to_string())
        .env_remove(SHOWN)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut told = String::from_utf8_lossy(&output.stdout).into_owned();
    told += &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), told)
}

/// Runs the seeds of `range`, two at a time.
fn all(range: std::ops::Range<u64>) {
    let began = Instant::now();
    let next = AtomicU64::new(range.start);
    let failed = Mutex::new(Vec::new());
    let counts = Mutex::new(BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        return;
                    }
                    let (passed, told) = child(seed);
                    for line in told.lines().filter_map(|line| line.strip_prefix(COUNTED)) {
                        let (count, what) = line.trim().split_once(' ').unwrap();
                        *counts.lock().entry(what.to_owned()).or_default() +=
                            count.parse::<u64>().unwrap();
                    }
                    if !passed {
                        println!("seed {seed} fails; replay: {}\n{told}", replay(seed));
                        failed.lock().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    let counts = counts.into_inner();
    println!("{} seeds in {:?}, together:", range.end - range.start, began.elapsed());
    counts.iter().for_each(|(what, count)| println!("{count:>9} {what}"));
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
    let undecided = counts.get("undecided keys").copied().unwrap_or(0);
    assert!(undecided * 100 <= range.end - range.start, "{undecided} keys were not decided");
    let faults = Fault::OUTSIDE.iter().chain(&Fault::INSIDE).map(|fault| fault.name());
    let never: Vec<_> = faults.filter(|name| !counts.contains_key(*name)).collect();
    assert!(never.is_empty(), "faults that never struck: {never:?}");
    // Not in each run: a pack must be unreferenced for long enough.
    let done = |what: &str| counts.contains_key(what);
    assert!(done("condemned"), "no pack was condemned");
    // Few keys are removed in any run, and in some nobody lived to see it.
    assert!(done("removed from the index"), "nothing was removed from the index");
    // Nor this: all of its pieces must be there at once.
    assert!(done("stitched") && done("without a piece"), "no whole was put to the test");
}

#[test]
fn twenty_seeds_keep_every_promise() {
    all(0..20);
}

#[test]
#[ignore = "long: KILN_SIM_SEEDS of them, 2000 unless it says otherwise"]
fn many_seeds_keep_every_promise() {
    let first = number(SEED).unwrap_or(1000);
    all(first..first + number(COUNT).unwrap_or(2000));
}

/// Two runs of one seed are the same run, event by event.
#[test]
fn a_seed_is_replayed_exactly() {
    let trace = |(_, told): (bool, String)| {
        let line = told.lines().find(|line| line.contains(" events, trace "));
        line.map(str::to_owned).unwrap_or(told)
    };
    assert_eq!(trace(child(3)), trace(child(3)));
}
