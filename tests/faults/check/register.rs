//! Whether one order of the calls on a key explains what all of them were told.
//!
//! The reference is one register a key. A write whose outcome is not known may take
//! effect at any later time, or never. A node that gives up a write may take back what
//! it put before, so that such a write may also end as a removal.
//!
//! Invariant: only writes whose bytes nobody ever saw are left out, and only where their
//! outcome is not known: any order with them is one without them, too.

use std::{collections::BTreeMap, time::Duration};

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

use super::{Keys, Verdict, shown};
use crate::history::{Call, End, History, Kind};

/// Longest search for an order.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a call does to its key; bytes are numbers here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Put {
        value: u32,
        node: usize,
    },
    /// Publish where there is nothing.
    Create {
        value: u32,
        node: usize,
    },
    /// The same, which may have found something.
    MayCreate {
        value: u32,
        node: usize,
    },
    Remove,
    /// The node may take back what it put.
    Withdraw {
        node: usize,
    },
    Read(Option<u32>),
}

#[derive(Debug, Clone)]
struct Register;

impl Model for Register {
    /// The bytes and the node that put them.
    type State = Option<(u32, usize)>;
    type Op = Act;
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, act: &Act) -> (bool, Self::State) {
        match *act {
            Act::Put { value, node } => (true, Some((value, node))),
            Act::Create { value, node } => (state.is_none(), Some((value, node))),
            Act::MayCreate { value, node } => (true, state.or(Some((value, node)))),
            Act::Remove => (true, None),
            Act::Withdraw { node } => (true, state.filter(|(_, by)| *by != node)),
            Act::Read(value) => (state.map(|(value, _)| value) == value, *state),
        }
    }
}

pub(super) fn check(history: &History, keys: &Keys<'_>, verdict: &mut Verdict) {
    for (key, calls) in keys {
        if !key.starts_with(['v', 'r', 'a']) {
            continue;
        }
        let acts = acts(calls, history.head.destroys);
        verdict.histories += 1;
        let found = check_operations_timeout::<Register>(&acts, PATIENCE);
        if found != CheckResult::Ok {
            let calls: Vec<_> = calls.iter().map(|call| shown(call)).collect();
            let what = format!("no order explains it ({found:?}):\n    {}", calls.join("\n    "));
            verdict.breaks("linearizable", key, what);
        }
    }
}

fn acts(calls: &[&Call], destroys: bool) -> Vec<Operation<Register>> {
    let mut numbers = BTreeMap::new();
    let reads = calls.iter().filter(|c| decided(c));
    for read in reads.clone().filter_map(|call| call.read.as_deref()) {
        let next = numbers.len() as u32;
        numbers.entry(read).or_insert(next);
    }
    let none_seen = reads.clone().any(|call| call.read.is_none() && call.kind == Kind::Latest);
    let mut acts = Vec::new();
    let mut add = |call: &Call, act, open: bool| {
        acts.push(Operation {
            client_id: Some(call.client),
            call_time: call.start,
            return_time: if open { i64::MAX } else { call.end },
            op: act,
            metadata: None,
        });
    };
    for call in calls {
        let seen = call.wrote.as_deref().and_then(|wrote| numbers.get(wrote).copied());
        // Bytes that nobody saw are a number of their own.
        let value = seen.unwrap_or(u32::MAX - call.start as u32 % (u32::MAX / 2));
        let node = call.node;
        match (call.kind, call.ended) {
            (Kind::Put, End::Ok) if call.made == Some(true) => {
                add(call, Act::Put { value, node }, false);
            }
            (Kind::Put | Kind::Set, End::Ok | End::Unknown) => {
                if seen.is_some() {
                    add(call, Act::Put { value, node }, true);
                }
                if none_seen {
                    add(call, Act::Withdraw { node }, true);
                }
            }
            (Kind::Remove, End::Ok) => add(call, Act::Remove, false),
            (Kind::Remove, End::Unknown) if none_seen => add(call, Act::Remove, true),
            (Kind::Publish, End::Ok) if call.made == Some(true) => {
                add(call, Act::Create { value, node }, false);
            }
            (Kind::Publish, End::Unknown) if seen.is_some() => {
                add(call, Act::MayCreate { value, node }, true);
            }
            _ if decided(call) => {
                let read = call.read.as_deref().and_then(|read| numbers.get(read).copied());
                add(call, Act::Read(read), false);
            }
            _ => {}
        }
        if destroys && none_seen && matches!(call.kind, Kind::Put | Kind::Publish | Kind::Set) {
            // Its bytes may be gone by rights, and its entry with them.
            add(call, Act::Remove, true);
        }
    }
    acts
}

/// Whether the call tells what the key was at one moment during it.
fn decided(call: &Call) -> bool {
    let existing = call.kind == Kind::Publish && call.made == Some(false);
    call.ended == End::Ok && (call.kind == Kind::Latest || existing)
}
