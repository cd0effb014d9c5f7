//! What a history must be like, whatever struck during it.
//!
//! Invariant: each check can fail, and says of which key and which call.

mod bounds;
mod leases;
mod lost;
mod reads;
mod register;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::{Call, Fault, History};

/// With what the names of kernels, wholes and pieces begin: nobody wrote their bytes, and
/// every compile makes the same.
const COMPILED: [char; 3] = ['k', 'w', 'p'];

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Violation {
    pub(crate) check: &'static str,
    pub(crate) key: String,
    pub(crate) what: String,
}

/// What the checks found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Keys whose histories were searched for an order.
    pub(crate) histories: usize,
    pub(crate) violations: Vec<Violation>,
}

impl Verdict {
    pub(crate) fn of(history: &History) -> Self {
        let mut verdict = Self::default();
        let keys = by_key(history);
        register::check(history, &keys, &mut verdict);
        lost::check(history, &keys, &mut verdict);
        reads::check(history, &keys, &mut verdict);
        leases::check(history, &keys, &mut verdict);
        bounds::check(history, &mut verdict);
        verdict
    }

    pub(crate) fn count(&self, check: &str) -> usize {
        self.violations.iter().filter(|violation| violation.check == check).count()
    }

    fn breaks(&mut self, check: &'static str, key: &str, what: impl Into<String>) {
        self.violations.push(Violation { check, key: key.to_owned(), what: what.into() });
    }
}

/// Calls by key, in the order of their starts.
type Keys<'a> = BTreeMap<&'a str, Vec<&'a Call>>;

fn by_key(history: &History) -> Keys<'_> {
    let mut keys = Keys::new();
    for call in history.calls.iter().filter(|call| !call.key.is_empty()) {
        keys.entry(&call.key).or_default().push(call);
    }
    keys
}

/// When the run began to read only.
fn finale(history: &History) -> i64 {
    let finals = history.faults.iter().filter_map(|fault| match fault {
        Fault::Final { at } => Some(*at),
        _ => None,
    });
    finals.min().unwrap_or(i64::MAX)
}

fn seconds(nanoseconds: i64) -> String {
    format!("{:.3} s", nanoseconds as f64 / 1e9)
}

/// A call, for people.
fn shown(call: &Call) -> String {
    let Call { client, node, life, kind, start, end, ended, .. } = call;
    let (start, end) = (seconds(*start), seconds(*end));
    let told = [("wrote", &call.wrote), ("read", &call.read)]
        .into_iter()
        .filter_map(|(name, value)| Some(format!(" {name} {}", value.as_ref()?)))
        .collect::<String>();
    let numbers = [("epoch", call.epoch), ("token", call.token)]
        .into_iter()
        .filter_map(|(name, value)| Some(format!(" {name} {}", value?)))
        .collect::<String>();
    let made = call.made.map_or(String::new(), |made| format!(" made {made}"));
    let why = if call.why.is_empty() { String::new() } else { format!(" ({})", call.why) };
    format!(
        "{start}..{end} client {client} at node {node}.{life}: {kind:?} {ended:?}{told}{numbers}{made}{why}"
    )
}
