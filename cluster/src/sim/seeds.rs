//! Many seeds, each in a process of its own, as a replay is.
//!
//! Invariant: a seed that fails is told with the command that replays it.

use std::{
    collections::BTreeSet,
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
const COUNT: &str = "KILN_SIM_SEEDS";
/// Begins the lines that name the faults which struck.
const STRUCK: &str = "struck: ";

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
    let Outcome { events, trace, counts, violations } = run(seed, number(SHOWN) == Some(1));
    println!("seed {seed}: {events} events, trace {trace}");
    println!("counts {counts:?}");
    let faults = Fault::OUTSIDE.iter().chain(&Fault::INSIDE).map(|fault| fault.name());
    faults.filter(|name| counts.contains_key(name)).for_each(|name| println!("{STRUCK}{name}"));
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
    let struck = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        return;
                    }
                    let (passed, told) = child(seed);
                    let of_seed = told.lines().filter_map(|line| line.strip_prefix(STRUCK));
                    struck.lock().extend(of_seed.map(str::to_owned));
                    if !passed {
                        println!("seed {seed} fails; replay: {}\n{told}", replay(seed));
                        failed.lock().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} seeds in {:?}", range.end - range.start, began.elapsed());
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
    let struck = struck.into_inner();
    let never = Fault::OUTSIDE.iter().chain(&Fault::INSIDE).map(|fault| fault.name());
    let never: Vec<_> = never.filter(|name| !struck.contains(*name)).collect();
    assert!(never.is_empty(), "faults that never struck: {never:?}");
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
