//! What clients did to each key, and whether one order of it all explains what they saw.
//!
//! The reference is one register a key: its artifact and its epoch. An operation whose
//! outcome its client does not know may take effect at any later time, or never.
//!
//! Invariant: an operation is recorded before it is sent and ended after its answer, so
//! real time is never claimed to be narrower than it was.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

/// Longest search for an order; none should take a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pack's number; each stands for other bytes.
pub(super) type Pack = u64;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Put {
        pack: Pack,
        node: u64,
    },
    Create {
        pack: Pack,
        node: u64,
    },
    Publish {
        pack: Pack,
        node: u64,
    },
    Remove,
    Retire {
        epoch: u64,
    },
    /// The node takes back what it put, because it gave up a later write.
    Withdraw {
        node: u64,
    },
    Read,
}

/// What it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing that says whether it took effect.
    Unknown,
    Committed,
    Unchanged,
    Existing,
    Removed(bool),
    Found(Option<(u64, Pack)>),
}

/// A key's artifact as the reference has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Register {
    /// The epoch of the present artifact, or of the last one.
    epoch: u64,
    /// Its pack and the node that signed it.
    art: Option<(Pack, u64)>,
}

impl Register {
    fn set(self, pack: Pack, node: u64) -> Self {
        Self { epoch: self.epoch + 1, art: Some((pack, node)) }
    }

    fn step(self, ask: Ask, told: Told) -> Option<Self> {
        let gone = Self { art: None, ..self };
        let pack_now = self.art.map(|(pack, _)| pack);
        let (next, says) = match ask {
            Ask::Put { pack, .. } if pack_now == Some(pack) => (self, Told::Unchanged),
            Ask::Put { pack, node } => (self.set(pack, node), Told::Committed),
            Ask::Create { pack, .. } if pack_now == Some(pack) => (self, Told::Unchanged),
            Ask::Create { pack, node } | Ask::Publish { pack, node } => match self.art {
                None => (self.set(pack, node), Told::Committed),
                Some(_) => (self, Told::Existing),
            },
            Ask::Remove => (gone, Told::Removed(self.art.is_some())),
            Ask::Retire { epoch } if self.art.is_some() && self.epoch == epoch => {
                (gone, Told::Removed(true))
            }
            Ask::Retire { .. } => (self, Told::Removed(true)),
            Ask::Withdraw { node } if self.art.is_some_and(|(_, signer)| signer == node) => {
                (gone, Told::Unknown)
            }
            Ask::Withdraw { .. } => (self, Told::Unknown),
            Ask::Read => (self, Told::Found(pack_now.map(|pack| (self.epoch, pack)))),
        };
        (told == Told::Unknown || told == says).then_some(next)
    }
}

/// The pack of each epoch of one key that anyone saw.
pub(super) type Seen = Arc<BTreeMap<u64, Pack>>;

/// One operation and its answer, with what was seen of its key: that narrows the search,
/// and what was seen must fit the order, too.
#[derive(Debug, Clone)]
struct Op {
    ask: Ask,
    told: Told,
    seen: Seen,
}

#[derive(Debug, Clone)]
struct OneKey;

impl Model for OneKey {
    type State = Register;
    type Op = Op;
    type Metadata = ();

    fn init() -> Register {
        Register::default()
    }

    fn step(state: &Register, op: &Op) -> (bool, Register) {
        let fits = |next: &Register| {
            let Some((pack, _)) = next.art else { return true };
            next.epoch == state.epoch || op.seen.get(&next.epoch).is_none_or(|seen| *seen == pack)
        };
        match state.step(op.ask, op.told).filter(fits) {
            Some(next) => (true, next),
            None => (false, *state),
        }
    }
}

/// The operations of all clients, by key.
#[derive(Default)]
pub(super) struct History {
    clock: AtomicI64,
    keys: Mutex<BTreeMap<String, Vec<Operation<OneKey>>>>,
}

/// What came of the search.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Operations that were looked at.
    pub operations: usize,
    /// Keys of which no order was found within [`PATIENCE`], nor shown that there is none.
    pub undecided: u64,
    /// The keys that no order explains.
    pub wrong: Vec<String>,
}

/// One operation that has not ended.
pub(super) struct Pending {
    key: String,
    at: usize,
}

impl History {
    fn tick(&self) -> i64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// `client` asks `ask` of `key` now.
    pub(super) fn begin(&self, client: u32, key: &str, ask: Ask) -> Pending {
        let operation = Operation {
            client_id: Some(client),
            call_time: self.tick(),
            return_time: i64::MAX,
            op: Op { ask, told: Told::Unknown, seen: Seen::default() },
            metadata: None,
        };
        let mut keys = self.keys.lock();
        let of_key = keys.entry(key.to_owned()).or_default();
        of_key.push(operation);
        Pending { key: key.to_owned(), at: of_key.len() - 1 }
    }

    /// The operation ended. What is not known may still happen.
    pub(super) fn end(&self, pending: &Pending, told: Told) {
        let now = self.tick();
        let mut keys = self.keys.lock();
        let operation = keys.get_mut(&pending.key).and_then(|of_key| of_key.get_mut(pending.at));
        if let Some(operation) = operation
            && told != Told::Unknown
        {
            operation.return_time = now;
            operation.op.told = told;
        }
    }

    /// The keys that were used.
    pub(super) fn keys(&self) -> Vec<String> {
        self.keys.lock().keys().cloned().collect()
    }

    /// What the search for an order that explains each key's operations, and what was
    /// `seen`, came to.
    pub(super) fn check(&self, seen: impl Fn(&str) -> Seen) -> Verdict {
        let mut keys = self.keys.lock();
        let mut verdict = Verdict::default();
        for (key, operations) in &mut *keys {
            let seen = seen(key);
            operations.iter_mut().for_each(|operation| operation.op.seen = Arc::clone(&seen));
            match check_operations_timeout::<OneKey>(operations, PATIENCE) {
                CheckResult::Ok => {}
                CheckResult::Unknown => verdict.undecided += 1,
                CheckResult::Illegal => {
                    let told: Vec<String> = operations.iter().map(describe).collect();
                    verdict.wrong.push(format!(
                        "no order of the operations on {key} explains their answers:\n  {}",
                        told.join("\n  ")
                    ));
                }
            }
            verdict.operations += operations.len();
        }
        verdict
    }
}

fn describe(operation: &Operation<OneKey>) -> String {
    let Operation { client_id, call_time, return_time, op: Op { ask, told, .. }, .. } = operation;
    let until = match *return_time {
        i64::MAX => "".to_owned(),
        until => until.to_string(),
    };
    format!("{call_time:>6}..{until:<6} client {:>2}: {ask:?} -> {told:?}", client_id.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(operations: &[(Ask, Told)]) -> bool {
        let history = History::default();
        for (ask, told) in operations {
            let pending = history.begin(1, "key", *ask);
            history.end(&pending, *told);
        }
        let verdict = history.check(|_| Seen::default());
        assert_eq!(verdict.undecided, 0);
        verdict.wrong.is_empty()
    }

    #[test]
    fn a_history_that_no_order_explains_is_found() {
        let put = |pack| Ask::Put { pack, node: 1 };
        let found = |epoch, pack| Told::Found(Some((epoch, pack)));
        assert!(check(&[(put(1), Told::Committed), (Ask::Read, found(1, 1))]));
        assert!(!check(&[(put(1), Told::Committed), (Ask::Read, Told::Found(None))]), "lost");
        let stale =
            [(put(1), Told::Committed), (put(2), Told::Committed), (Ask::Read, found(1, 1))];
        assert!(!check(&stale));
        // Of unknown outcome: it may have been, or not, or be later.
        let unknown = (put(2), Told::Unknown);
        for seen in [found(1, 1), found(2, 2)] {
            assert!(check(&[(put(1), Told::Committed), unknown, (Ask::Read, seen)]));
        }
        let publish = |pack| Ask::Publish { pack, node: 1 };
        let twice = [(publish(1), Told::Committed), (publish(2), Told::Committed)];
        assert!(!check(&twice), "two compiles of one epoch");
        let again = [twice[0], (Ask::Remove, Told::Removed(true)), twice[1]];
        assert!(check(&again));
    }
}
