//! Tokens and compiles.
//!
//! Invariant: tokens of a key strictly rise in real time, none publishes after a later
//! one was granted, and each epoch has one compile.

use super::{COMPILED, Keys, Verdict, shown};
use crate::history::{Call, End, Fault, History, Kind};

pub(super) fn check(history: &History, keys: &Keys<'_>, verdict: &mut Verdict) {
    for (key, calls) in keys {
        tokens_rise(key, calls, verdict);
        if key.starts_with(COMPILED) {
            one_compile_an_epoch(history, key, calls, verdict);
        }
    }
}

fn tokens_rise(key: &str, calls: &[&Call], verdict: &mut Verdict) {
    let granted = || calls.iter().filter(|c| c.kind == Kind::Lease && c.token.is_some());
    for later in granted() {
        let earlier = granted().filter(|lease| lease.end < later.start);
        if let Some(higher) = earlier.max_by_key(|lease| lease.token)
            && higher.token >= later.token
        {
            let what = format!("{}\n    and later {}", shown(higher), shown(later));
            verdict.breaks("token", key, what);
        }
    }
    let committed = |c: &&&Call| c.kind == Kind::Publish && c.made == Some(true);
    for publish in calls.iter().filter(committed) {
        let newer = granted().find(|l| l.end < publish.start && l.token > publish.token);
        if let Some(newer) = newer {
            let what = format!("{}\n    although {}", shown(publish), shown(newer));
            verdict.breaks("fence", key, what);
        }
    }
}

/// Compiles that were acknowledged, against the epochs that the key went through. One
/// that cannot be committed is answered all the same: so those during faults don't count.
fn one_compile_an_epoch(history: &History, key: &str, calls: &[&Call], verdict: &mut Verdict) {
    let compiles = calls.iter().filter(|c| c.kind.compiles() && c.made == Some(true));
    let calm = |call: &&&Call| !history.faults.iter().any(|fault| troubles(fault, call));
    let compiles: Vec<_> = compiles.filter(calm).collect();
    let looked = calls.iter().filter(|c| c.kind == Kind::Latest && c.ended == End::Ok);
    let Some(epochs) = looked.filter_map(|call| call.epoch).max() else { return };
    if compiles.len() as u64 > epochs {
        let told: Vec<_> = compiles.iter().map(|call| shown(call)).collect();
        let what =
            format!("{} compiles, {epochs} epochs:\n    {}", told.len(), told.join("\n    "));
        verdict.breaks("single flight", key, what);
    }
}

/// Whether the cluster may not have been able to commit during the call.
fn troubles(fault: &Fault, call: &Call) -> bool {
    const AFTER: i64 = 5_000_000_000;
    let Fault::Strike { start, end, .. } = fault else { return false };
    *start < call.end && end + AFTER > call.start
}
