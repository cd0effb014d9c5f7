//! Whether what was acknowledged is there in the end, on every node, with its bytes.
//!
//! Invariant: a write may be gone only if another that may have taken effect after it
//! explains that.

use std::collections::BTreeSet;

use super::{Keys, Verdict, finale, shown};
use crate::history::{Call, End, History, Kind};

pub(super) fn check(history: &History, keys: &Keys<'_>, verdict: &mut Verdict) {
    let finale = finale(history);
    for (key, calls) in keys {
        let (before, after): (Vec<_>, Vec<_>) = calls.iter().partition(|call| call.start < finale);
        let writes = last_writes(&before);
        let acknowledged = writes.iter().filter(|write| sure(write) && write.kind != Kind::Remove);
        let Some(acknowledged) = acknowledged.max_by_key(|write| write.end) else { continue };
        let may_be_gone = history.head.destroys || writes.iter().any(|write| removes(write));
        let nodes = after.iter().map(|call| call.node).collect::<BTreeSet<_>>();
        for node in nodes {
            let of_node = |kind| {
                let mut calls = after.iter().filter(move |c| c.node == node && c.kind == kind);
                calls.next_back().copied()
            };
            if let Some(latest) = of_node(Kind::Latest)
                && latest.ended == End::Ok
                && !explained(latest, &writes, may_be_gone)
            {
                let (wrote, read) = (shown(acknowledged), shown(latest));
                verdict.breaks("lost", key, format!("{wrote}\n    but in the end {read}"));
            }
            let Some(fetch) = of_node(Kind::Fetch) else { continue };
            if !explained(fetch, &writes, may_be_gone) {
                let (wrote, read) = (shown(acknowledged), shown(fetch));
                verdict.breaks("lost", key, format!("{wrote}\n    its bytes in the end: {read}"));
            }
        }
    }
}

/// The writes that none is known to have come after.
fn last_writes<'a>(calls: &[&'a Call]) -> Vec<&'a Call> {
    let writes = || {
        let kinds = [Kind::Put, Kind::Set, Kind::Publish, Kind::Remove];
        calls.iter().filter(move |c| kinds.contains(&c.kind) && c.ended != End::Failed)
    };
    let latest = writes().filter(|write| sure(write)).map(|write| write.start).max();
    let latest = latest.unwrap_or(i64::MIN);
    // A publish that found something wrote nothing.
    let found = |write: &Call| write.ended == End::Ok && write.kind == Kind::Publish;
    let counts = |write: &&&Call| match sure(write) {
        true => write.end >= latest,
        false => !found(write),
    };
    writes().filter(counts).copied().collect()
}

/// Whether it is known to have taken effect.
fn sure(write: &Call) -> bool {
    write.ended == End::Ok && (write.kind == Kind::Remove || write.made == Some(true))
}

/// Whether nothing may be left after it: it removes, or was perhaps taken back.
fn removes(write: &Call) -> bool {
    write.kind == Kind::Remove || (!sure(write) && matches!(write.kind, Kind::Put | Kind::Set))
}

fn explained(read: &Call, writes: &[&Call], may_be_gone: bool) -> bool {
    match &read.read {
        Some(read) => writes.iter().any(|write| write.wrote.as_ref() == Some(read)),
        None => may_be_gone,
    }
}
