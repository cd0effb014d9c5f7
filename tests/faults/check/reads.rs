//! What nodes gave away: bytes that somebody wrote, epochs that never go back.
//!
//! Invariant: nothing here depends on the order of calls that overlap.

use std::collections::{BTreeMap, BTreeSet};

use super::{COMPILED, Keys, Verdict, shown};
use crate::history::{Call, End, History, Kind};

pub(super) fn check(_: &History, keys: &Keys<'_>, verdict: &mut Verdict) {
    for (key, calls) in keys {
        written_by_somebody(key, calls, verdict);
        one_artifact_an_epoch(key, calls, verdict);
        local_reads_go_on(key, calls, verdict);
        if key.starts_with('r') {
            one_writers_order(key, calls, verdict);
        }
    }
}

/// No byte that nobody published, nor other bytes than the manifest says.
fn written_by_somebody(key: &str, calls: &[&Call], verdict: &mut Verdict) {
    let mut compiled = BTreeSet::new();
    for call in calls.iter().filter(|call| call.ended == End::Ok) {
        let Some(read) = &call.read else { continue };
        let mut wrote = calls.iter().filter(|c| c.wrote.as_ref() == Some(read));
        let known = match key.starts_with(COMPILED) {
            true => {
                compiled.insert(read);
                compiled.len() == 1
            }
            false => wrote.any(|w| w.start < call.end && w.ended != End::Failed),
        };
        if !known || (call.kind == Kind::Fetch && !call.why.is_empty()) {
            verdict.breaks("wrong bytes", key, shown(call));
        }
    }
}

fn one_artifact_an_epoch(key: &str, calls: &[&Call], verdict: &mut Verdict) {
    let mut epochs = BTreeMap::new();
    for call in calls.iter().filter(|call| call.ended == End::Ok) {
        let (Some(epoch), Some(read)) = (call.epoch, &call.read) else { continue };
        if epochs.entry(epoch).or_insert(read) != &read {
            verdict.breaks("epoch", key, format!("two artifacts: {}", shown(call)));
        }
    }
}

/// Within one process, a local read is never older than one that ended before it began.
fn local_reads_go_on(key: &str, calls: &[&Call], verdict: &mut Verdict) {
    let mut processes: BTreeMap<(usize, u32), Vec<&Call>> = BTreeMap::new();
    for call in calls.iter().filter(|c| c.kind == Kind::Local && c.epoch.is_some()) {
        processes.entry((call.node, call.life)).or_default().push(call);
    }
    for reads in processes.values() {
        for later in reads {
            let earlier = reads.iter().filter(|read| read.end < later.start);
            if let Some(newer) = earlier.max_by_key(|read| read.epoch)
                && newer.epoch > later.epoch
            {
                let what = format!("{}\n    and later {}", shown(newer), shown(later));
                verdict.breaks("monotone", key, what);
            }
        }
    }
}

/// A key that one client writes: the leader's index never goes back to an earlier SET.
/// One that was given up with its connection may arrive whenever the network likes.
fn one_writers_order(key: &str, calls: &[&Call], verdict: &mut Verdict) {
    let sets = calls.iter().filter(|call| call.kind == Kind::Set && call.why.is_empty());
    let place: BTreeMap<_, _> = sets.enumerate().map(|(n, set)| (set.wrote.as_ref(), n)).collect();
    let placed = |call: &&&Call| place.contains_key(&call.read.as_ref());
    let reads =
        || calls.iter().filter(|c| c.kind == Kind::Latest && c.read.is_some()).filter(placed);
    for later in reads() {
        let earlier = reads().filter(|read| read.end < later.start);
        let newest = earlier.max_by_key(|read| place.get(&read.read.as_ref()));
        if let Some(newest) = newest
            && place.get(&newest.read.as_ref()) > place.get(&later.read.as_ref())
        {
            let what = format!("{}\n    and later {}", shown(newest), shown(later));
            verdict.breaks("order", key, what);
        }
    }
}
