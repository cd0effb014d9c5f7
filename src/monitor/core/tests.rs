//! The core on simulated days: what is planted is found, and nothing else.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::{
    emergency::{By, Cause},
    monitor::{
        knob::Knob,
        optimizer::State,
        simulated::{DAY, Fault, Node, World},
    },
};

/// Days that are simulated: each with a seed of its own.
const SEEDS: u64 = 100;
const GIB: u64 = 1 << 30;

fn settings(apply: bool) -> CoreSettings {
    let bounds = BTreeMap::from([
        (Knob::CompileWorkers, (1, 8)),
        (Knob::MemoryBytes, (GIB / 4, GIB)),
        (Knob::DiskBytes, (10 * GIB, 40 * GIB)),
        (Knob::Eviction, (0, 1)),
        (Knob::RespWait, (5_000, 120_000)),
        (Knob::CompileMemory, (8 * GIB, 16 * GIB)),
        (Knob::CleanUp, (0, 0)),
    ]);
    CoreSettings {
        node: 1,
        windows: WindowSettings::default(),
        rules: Rules { apply, judged_after: 5, rest: 60 },
        bounds: Bounds(bounds),
    }
}

/// A node and its monitor.
struct Watched {
    node: Node,
    core: Core,
}

impl Watched {
    fn new(seed: u64, apply: bool) -> Self {
        Self { node: Node::new(seed), core: Core::new(settings(apply)) }
    }

    fn minute(&mut self) -> Outcome {
        let sample = self.node.minute();
        let outcome = self.core.step(&sample, &self.node.levels, &Mode::default());
        if let Some(change) = outcome.change {
            self.node.turn(change);
        }
        outcome
    }

    /// Alerts of so many minutes.
    fn minutes(&mut self, n: u64) -> Vec<Alert> {
        (0..n).flat_map(|_| self.minute().alerts).collect()
    }
}

/// Runs each seed, on all cores.
fn for_seeds(seeds: u64, each: impl Fn(u64) + Sync) {
    let next = std::sync::atomic::AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    each(seed);
                }
            });
        }
    });
}

#[test]
fn no_alert_in_a_day_of_normal_load() {
    for_seeds(SEEDS, |seed| {
        let mut watched = Watched::new(seed, true);
        let alerts = watched.minutes(DAY);
        assert!(alerts.is_empty(), "seed {seed}: {alerts:?}");
        let decisions: Vec<_> = watched.core.optimizer.decisions().collect();
        assert!(decisions.is_empty(), "seed {seed}: {decisions:?}");
    });
}

#[test]
fn each_planted_fault_is_found_within_two_cycles_and_its_end_is_told() {
    let faults = [
        (Fault::SlowDisk, "KilnSlowDisk", 2),
        (Fault::FallingHitRate, "KilnFallingHitRate", 2),
        (Fault::Leak, "KilnMemoryGrowth", 2),
        (Fault::Corruption, "KilnCorruption", 2),
        (Fault::WrongArtifacts, "KilnWrongArtifacts", 2),
        (Fault::UnusedRestores, "KilnUnusedRestores", 2),
        (Fault::DiskErrors, "KilnDiskErrors", 2),
        (Fault::TimeOuts, "KilnCompileTimeOuts", 1),
        // There are some eight compiles a cycle, and they differ so much that a few prove
        // nothing.
        (Fault::FailingCompiles, "KilnFailingCompiles", 4),
        (Fault::SlowCompiles, "KilnSlowCompiles", 6),
    ];
    for (fault, name, within) in faults {
        for_seeds(20, |seed| {
            let mut watched = Watched::new(seed, false);
            assert_eq!(watched.minutes(90 + 7 * seed), [], "{fault:?}, seed {seed}");
            while !watched.node.is_busy() {
                assert_eq!(watched.minutes(1), [], "{fault:?}, seed {seed}");
            }
            watched.node.fault = Some(fault);
            let alerts = watched.minutes(within);
            let found: Vec<&str> = alerts.iter().map(|alert| &*alert.name).collect();
            assert!(found.contains(&name), "{fault:?}, seed {seed}: {found:?}");
            let is_related = |found: &&str| {
                *found == name
                    || (fault == Fault::DiskErrors && *found == "KilnCacheDown")
                    || (fault == Fault::FailingCompiles && *found == "KilnCompilersDown")
            };
            assert!(found.iter().all(is_related), "{fault:?}, seed {seed}: {found:?}");
            watched.node.fault = None;
            let told = watched.minutes(20);
            let over = told.iter().any(|alert| alert.name == name && alert.is_resolved());
            assert!(over, "{fault:?}, seed {seed}: {told:?}");
            assert!(told.iter().all(Alert::is_resolved), "{fault:?}, seed {seed}: {told:?}");
        });
    }
}

#[test]
fn a_fresh_start_calls_nothing_unusual() {
    for fault in [Fault::SlowDisk, Fault::FallingHitRate, Fault::SlowCompiles, Fault::Leak] {
        let mut watched = Watched::new(1, true);
        watched.minutes(3);
        watched.node.fault = Some(fault);
        let alerts = watched.minutes(8);
        assert_eq!(alerts, [], "{fault:?}: it is all that was ever seen");
        assert!(watched.core.report(60.0).fresh);
    }
}

fn decisions(core: &Core) -> Vec<&super::super::optimizer::Decision> {
    core.optimizer.decisions().collect()
}

/// Until the first decision was judged.
fn judged(world: World) -> Watched {
    let mut watched = Watched::new(5, true);
    watched.minutes(60);
    watched.node.world = world;
    watched.minutes(9);
    watched
}

#[test]
fn what_helps_is_kept_and_goes_on() {
    let mut watched = judged(World::Helps);
    let all = decisions(&watched.core);
    assert_eq!((all[0].knob, all[0].from, all[0].to), (Knob::CompileWorkers, 4, 5));
    assert_eq!(all[0].state, State::Kept, "{all:?}");
    assert!(!all[0].evidence.is_empty() && all[0].after.is_some());
    watched.minutes(40);
    let workers = watched.node.levels[&Knob::CompileWorkers];
    assert!((6..=8).contains(&workers), "{workers}: on, and within the bounds");
}

#[test]
fn what_makes_things_worse_is_rolled_back_and_not_tried_again_at_once() {
    let mut watched = judged(World::Harms);
    let all = decisions(&watched.core);
    assert_eq!((all[0].to, all[0].state), (5, State::RolledBack), "{all:?}");
    assert!(all[0].after.unwrap() > all[0].before.unwrap().median);
    assert_eq!(watched.node.levels[&Knob::CompileWorkers], 4, "as before");
    watched.minutes(30);
    assert_eq!(decisions(&watched.core).len(), 1, "it rests");
}

#[test]
fn nothing_is_changed_where_that_is_not_allowed() {
    let mut watched = Watched::new(5, false);
    watched.node.world = World::Helps;
    watched.minutes(50);
    let all = decisions(&watched.core);
    assert_eq!((all.len(), all[0].state), (1, State::Recommended), "told once");
    assert_eq!(watched.node.levels[&Knob::CompileWorkers], 4);
    assert!(!watched.core.report(60.0).recommendations.is_empty());
}

#[test]
fn a_person_takes_a_decision_back_and_the_knob_is_left_alone() {
    let mut watched = judged(World::Helps);
    let levels = watched.node.levels.clone();
    let last = decisions(&watched.core).last().unwrap().id;
    if last > 1 {
        let first = watched.core.undo(1, &levels);
        assert!(matches!(first, Err(NoUndo::Overtaken(1, _))), "{first:?}");
    }
    let before = decisions(&watched.core).last().unwrap().from;
    let change = watched.core.undo(last, &levels).unwrap();
    assert_eq!((change.knob, change.to), (Knob::CompileWorkers, before));
    watched.node.turn(change);
    watched.minutes(200);
    assert_eq!(watched.node.levels[&Knob::CompileWorkers], before);
    let levels = watched.node.levels.clone();
    assert!(matches!(watched.core.undo(last, &levels), Err(NoUndo::Nothing(..))));
    assert_eq!(watched.core.undo(99, &levels), Err(NoUndo::Unknown(99)));
}

#[test]
fn what_is_off_is_an_alert_and_nothing_is_tuned_meanwhile() {
    let mut watched = Watched::new(5, true);
    watched.minutes(30);
    watched.node.world = World::Helps;
    let cause = Cause { by: By::Person, why: "an exchange".into(), since_unix_ms: 0 };
    let mode = Mode { compilers: Some(cause), cache: None };
    let mut told = Vec::new();
    for _ in 0..10 {
        let sample = watched.node.minute();
        let outcome = watched.core.step(&sample, &watched.node.levels, &mode);
        assert_eq!(outcome.change, None);
        told.extend(outcome.alerts);
    }
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&*told[0].name, &*told[0].summary), ("KilnCompilersDown", "an exchange"));
    let after = watched.minutes(5);
    assert!(after.iter().any(|alert| alert.name == "KilnCompilersDown" && alert.is_resolved()));
}

#[test]
fn samples_are_judged_alike_when_they_are_read_back() {
    let (mut node, mut live) = (Node::new(9), Core::new(settings(false)));
    let mut recorded = Core::new(settings(false));
    for minute in 0..100 {
        node.fault = (minute > 80).then_some(Fault::SlowDisk);
        let sample = node.minute();
        let text = serde_json::to_string(&sample).unwrap();
        let read: Sample = serde_json::from_str(&text).unwrap();
        let (a, b) = (
            live.step(&sample, &node.levels, &Mode::default()),
            recorded.step(&read, &node.levels, &Mode::default()),
        );
        assert_eq!(a.alerts, b.alerts);
    }
    let subjects = |core: &Core| -> Vec<_> {
        core.anomalies().into_iter().map(|anomaly| anomaly.subject).collect()
    };
    assert_eq!(subjects(&live), subjects(&recorded));
    assert!(!subjects(&live).is_empty());
}
