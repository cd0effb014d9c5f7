//! Why requests were missed: the stored entry that is nearest to each, and what differs.
//!
//! To find it every entry is read, so it is done for all new misses together, behind the
//! answer, and only on a node that somebody looks at.
//!
//! Invariant: one search runs at a time, within a bound on its time, and searches take a
//! small part of one core however often somebody looks; a miss has a reason at most once.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_proto::{Difference, component};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{sources::Sources, view::MissView};
use crate::{
    manager::{Cause, Miss},
    scan::{
        Bounds,
        nearest::{Nearest, nearest},
    },
};

/// A search ends after this.
const BOUNDS: Bounds = Bounds { page: 512, time: Duration::from_millis(500) };
/// After a search, none for so many times as long.
const REST: u32 = 20;
/// Misses of one search, the latest ones.
const TOGETHER: usize = 16;
/// Characters of a value in a sentence; all of it is in the differences.
const LONGEST_VALUE: usize = 24;
/// Fields that are named.
const NAMED: usize = 4;

/// What was found out of misses, by their number.
#[derive(Debug, Default)]
pub(super) struct Reasons(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    reasons: HashMap<u64, Reason>,
    searching: bool,
    next: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
struct Reason {
    text: String,
    nearest: Option<String>,
    differences: Vec<Difference>,
}

impl Reasons {
    /// The misses with what is known of their reasons; looks for those of the new ones.
    pub(super) fn told(&self, sources: &Sources, misses: Vec<Miss>) -> Vec<MissView> {
        let mut found = self.0.lock();
        found.reasons.retain(|number, _| misses.iter().any(|miss| miss.number == *number));
        for miss in &misses {
            if let Some(reason) = at_once(miss) {
                found.reasons.entry(miss.number).or_insert(reason);
            }
        }
        let new = |miss: &&Miss| !found.reasons.contains_key(&miss.number);
        let new: Vec<Miss> = misses.iter().filter(new).take(TOGETHER).cloned().collect();
        let rests = found.next.is_some_and(|next| Instant::now() < next);
        if !new.is_empty() && !found.searching && !rests {
            found.searching = true;
            self.search(sources, new);
        }
        misses
            .into_iter()
            .map(|miss| shown(sources, found.reasons.get(&miss.number), miss))
            .collect()
    }

    fn search(&self, sources: &Sources, misses: Vec<Miss>) {
        let (index, reasons) = (sources.index.clone(), self.0.clone());
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            // All of them have components: others have their reason at once.
            let mut searches: Vec<_> = misses.iter().filter_map(search_for).collect();
            // The node's own end waits for no search: this one is short.
            let scanned = nearest(&index, BOUNDS, &CancellationToken::new(), &mut searches);
            let mut found = reasons.lock();
            found.searching = false;
            found.next = Some(Instant::now() + began.elapsed() * REST);
            match scanned {
                Ok(scanned) => {
                    for (miss, nearest) in misses.iter().zip(searches) {
                        let reason = reason(nearest, scanned.complete, scanned.entries);
                        found.reasons.insert(miss.number, reason);
                    }
                }
                Err(e) => tracing::debug!(error = %e, "look for the reasons of misses"),
            }
        });
    }
}

fn search_for(miss: &Miss) -> Option<Nearest<'_>> {
    Some(Nearest::new(miss.components.as_deref()?).made_before(miss.at_unix_ms))
}

/// The reason of a miss that needs no search.
fn at_once(miss: &Miss) -> Option<Reason> {
    let text = match (&miss.cause, &miss.components) {
        (Cause::Lost, _) => "it was stored, and its bytes were nowhere".to_owned(),
        (Cause::Unreachable(why), _) => format!("it is stored, and cannot be had now: {why}"),
        (Cause::NotStored, None) => "nobody stored a value of this name".to_owned(),
        (Cause::NotStored, Some(_)) => return None,
    };
    Some(Reason { text, ..Reason::default() })
}

fn reason(nearest: Nearest<'_>, complete: bool, looked_at: u64) -> Reason {
    let cut = if complete { String::new() } else { format!(" (of {looked_at} entries looked at)") };
    let Some((key, mut differences)) = nearest.found() else {
        let text = format!("nothing like it was stored before{cut}");
        return Reason { text, ..Reason::default() };
    };
    let name = |d: &Difference| format!("{}.{}", d.component, d.field);
    let graph = differences.iter().any(|d| d.component == component::GRAPH);
    let text = match &differences[..] {
        [] => format!("an equal key was stored before{cut}"),
        [one] if graph => {
            format!("new code; only {} differs from the nearest entry{cut}", name(one))
        }
        [one] => {
            let (ours, theirs) = (value(&one.ours), value(&one.theirs));
            format!("only {} differs: {ours} against {theirs}{cut}", name(one))
        }
        more if graph => {
            format!("new code; {} fields differ from the nearest entry{cut}", more.len())
        }
        more => {
            let names: Vec<_> = more.iter().take(NAMED).map(name).collect();
            let rest = if more.len() > NAMED { ", ..." } else { "" };
            format!("{} fields differ: {}{rest}{cut}", more.len(), names.join(", "))
        }
    };
    differences.truncate(NAMED);
    Reason { text, nearest: Some(key.to_string()), differences }
}

/// Digests are told apart by their first digits.
fn value(of: &str) -> String {
    match of.chars().nth(LONGEST_VALUE) {
        _ if of.is_empty() => "nothing".to_owned(),
        None => of.to_owned(),
        Some(_) => of.chars().take(LONGEST_VALUE).chain(['…']).collect(),
    }
}

fn shown(sources: &Sources, reason: Option<&Reason>, miss: Miss) -> MissView {
    let Reason { text, nearest, differences } = reason.cloned().unwrap_or_default();
    MissView {
        node: sources.node,
        number: miss.number,
        at_unix_ms: miss.at_unix_ms,
        key: miss.key.to_string(),
        label: miss.label,
        maker: miss.maker,
        reason: text,
        nearest,
        differences,
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::{Component, Components, KeyField};

    use super::*;
    use crate::scan::Scanned;

    fn components(driver: &str, level: &str, graph: &str) -> Components {
        let one = |name: &str, field: &str, value: &str| {
            Component::new(name, vec![KeyField::new(field, value)])
        };
        Components::new(vec![
            one(component::GRAPH, "ops", graph),
            one(component::OPTIONS, "level", level),
            one(component::FINGERPRINT, "driver", driver),
        ])
    }

    fn told(ours: &Components, theirs: &[Components]) -> Reason {
        let mut nearest = Nearest::new(ours);
        theirs.iter().for_each(|theirs| nearest.see(theirs));
        let Scanned { entries, complete } = Scanned { entries: 7, complete: theirs.len() < 3 };
        reason(nearest, complete, entries)
    }

    #[test]
    fn the_one_field_that_differs_is_named_with_both_values() {
        let ours = components("580.82", "3", "a");
        let found = told(&ours, &[components("1", "2", "b"), components("580.65", "3", "a")]);
        assert_eq!(found.text, "only fingerprint.driver differs: 580.82 against 580.65");
        assert_eq!(found.nearest.unwrap(), components("580.65", "3", "a").key().to_string());
    }

    #[test]
    fn several_fields_new_code_and_nothing_near_are_told_apart() {
        let ours = components("2", "3", "a");
        let two = told(&ours, &[components("1", "1", "a")]);
        assert_eq!(two.text, "2 fields differ: options.level, fingerprint.driver");
        let code = told(&ours, &[components("1", "3", "b")]);
        assert!(code.text.starts_with("new code; 2 fields"), "{}", code.text);
        let same = told(&ours, &[components("2", "3", "b")]);
        assert_eq!(same.text, "new code; only graph.ops differs from the nearest entry");
        let long = "x".repeat(90);
        let cut = told(&components("2", &long, "a"), &[components("2", "", "a")]).text;
        assert!(cut.len() < 90 && cut.ends_with("against nothing"), "{cut}");
        assert_eq!(told(&ours, &[]).text, "nothing like it was stored before");
    }

    #[test]
    fn a_search_that_was_cut_says_so() {
        let ours = components("2", "3", "a");
        let others =
            [components("1", "1", "b"), components("1", "1", "c"), components("1", "3", "a")];
        assert!(told(&ours, &others).text.ends_with("(of 7 entries looked at)"));
    }
}
