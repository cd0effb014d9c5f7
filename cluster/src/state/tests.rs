//! Random histories against the rules that must hold after each command.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use kiln_proto::{Failure, FailureKind, SignedManifest};
use proptest::prelude::*;

use super::*;
use crate::{
    command::{NewNode, NodeFacts},
    table::{self, NodeRecord, Table},
};

/// The whole state in memory.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Model(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl View for Model {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<impl AsRef<[u8]>>, StateError> {
        Ok(self.0.get(&(table, key.to_vec())))
    }

    fn all(&self, table: Table) -> Result<table::Pairs, StateError> {
        let pairs = self.0.iter().filter(|((t, _), _)| *t == table);
        Ok(pairs.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

impl Model {
    pub(crate) fn apply(&mut self, index: u64, command: Command) -> (Response, Vec<Event>) {
        let mut events = Vec::new();
        let mut txn = Txn::new(self);
        let response = apply(&mut txn, index, command, &mut events).unwrap();
        for (at, value) in txn.into_changes() {
            match value {
                Some(value) => drop(self.0.insert(at, value)),
                None => drop(self.0.remove(&at)),
            }
        }
        (response, events)
    }

    fn entry(&self, key: ArtifactKey) -> Option<EntryRecord> {
        table::read(self, key).unwrap()
    }

    fn lease(&self, key: ArtifactKey) -> Option<LeaseRecord> {
        table::read(self, key).unwrap()
    }

    fn blob(&self, pack: Digest) -> Option<BlobRecord> {
        table::read(self, pack).unwrap()
    }
}

fn key(n: u8) -> ArtifactKey {
    ArtifactKey::from_bytes([n; 32])
}

fn pack(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn new_node(n: u8) -> NewNode {
    NewNode { candidate: [n; 16], facts: NodeFacts::default(), key: [n; 32] }
}

fn publish_of(k: u8, p: u8, token: u64) -> Command {
    Command::Publish(publication(k, p, token))
}

fn put_of(k: u8, p: u8, create: bool) -> Command {
    Command::Put { publication: publication(k, p, 0), create }
}

fn publication(k: u8, p: u8, token: u64) -> Publication {
    let manifest = SignedManifest { bytes: vec![k, p], signer: 1, signature: vec![p; 64] };
    Publication {
        key: key(k),
        token: Token(token),
        node: 1,
        pack: pack(p),
        pack_size: p.into(),
        compile_seconds: 1.0,
        manifest: Arc::new(manifest),
    }
}

fn fail_of(k: u8, token: u64) -> Command {
    let failure = Failure::new(FailureKind::CompileError, "no");
    Command::Fail { key: key(k), token: Token(token), failure, until_unix_ms: 9 }
}

const KEYS: std::ops::Range<u8> = 0..3;
const PACKS: std::ops::Range<u8> = 0..3;

/// Commands over few keys, packs and nodes, with tokens that are often right.
pub(crate) fn commands() -> impl Strategy<Value = Vec<Command>> {
    let token = 1..60u64;
    let command = prop_oneof![
        6 => (KEYS, 1..3u64, 0..3u64)
            .prop_map(|(k, node, request)| Command::Acquire { key: key(k), node, request }),
        8 => (KEYS, PACKS, token.clone()).prop_map(|(k, p, t)| publish_of(k, p, t)),
        2 => (KEYS, token.clone())
            .prop_map(|(k, t)| Command::Expire { key: key(k), token: Token(t) }),
        3 => (KEYS, PACKS, any::<bool>()).prop_map(|(k, p, create)| put_of(k, p, create)),
        1 => (KEYS, token.clone()).prop_map(|(k, t)| fail_of(k, t)),
        2 => (KEYS, token).prop_map(|(k, t)| Command::Lift { key: key(k), token: Token(t) }),
        1 => PACKS.prop_map(|p| Command::MarkStored { pack: pack(p) }),
        2 => (KEYS, PACKS, PACKS, 1..3u64).prop_map(|(k, gained, lost, node)| Command::Report {
            node,
            report: AccessReport {
                hits: vec![(key(k), 2)],
                gained: vec![pack(gained)],
                lost: vec![pack(lost)],
            },
        }),
        1 => (KEYS, any::<bool>())
            .prop_map(|(k, pinned)| Command::SetPinned { key: key(k), pinned }),
        2 => KEYS.prop_map(|k| Command::Tombstone { key: key(k), reason: "wrong".into() }),
        3 => PACKS.prop_map(|p| Command::Condemn { pack: pack(p) }),
        2 => PACKS.prop_map(|p| Command::Forget { pack: pack(p) }),
        1 => (0..3u8).prop_map(|n| Command::Join(new_node(n))),
        1 => (1..4u64).prop_map(Command::Leave),
    ];
    prop::collection::vec(command, 1..120)
}

/// Makes about half of the tokens the live ones, which random numbers rarely are.
fn aim(command: Command, state: &Model, index: u64) -> Command {
    let live = |key| state.lease(key).map(|l| l.token).filter(|_| index.is_multiple_of(2));
    match command {
        Command::Publish(p) => {
            let token = live(p.key).unwrap_or(p.token);
            Command::Publish(Publication { token, ..p })
        }
        Command::Expire { key, token } => {
            Command::Expire { key, token: live(key).unwrap_or(token) }
        }
        Command::Fail { key, token, failure, until_unix_ms } => {
            Command::Fail { key, token: live(key).unwrap_or(token), failure, until_unix_ms }
        }
        other => other,
    }
}

fn check_step(
    before: &Model,
    after: &Model,
    index: u64,
    command: &Command,
    response: &Response,
    highest: &mut BTreeMap<ArtifactKey, Token>,
) {
    for key in KEYS.map(key) {
        if let Some(lease) = after.lease(key)
            && before.lease(key).as_ref() != Some(&lease)
        {
            assert!(before.lease(key).is_none(), "a lease replaced a live one");
            assert!(before.entry(key).is_none(), "a lease for a key with an artifact");
            let last = highest.insert(key, lease.token);
            assert!(last < Some(lease.token), "tokens rise strictly");
            assert_eq!(lease.token, Token(index));
        }
        match (before.entry(key), after.entry(key)) {
            (None, Some(entry)) => {
                let (p, token) = match command {
                    Command::Publish(p) => {
                        let lease = before.lease(key).expect("a publication under a live lease");
                        assert_eq!(lease.token, p.token, "a publication with an old token applied");
                        (p, p.token)
                    }
                    Command::Put { publication, .. } => (publication, Token(index)),
                    _ => panic!("{command:?} made an entry"),
                };
                assert_eq!((entry.pack, entry.token), (p.pack, token));
                assert!(after.lease(key).is_none());
                let condemned = before.blob(p.pack).is_some_and(|b| b.condemned);
                assert!(!condemned, "a publication of a condemned pack applied");
                let last: Option<EpochRecord> = table::read(before, key).unwrap();
                assert!(last.is_none_or(|l| entry.epoch > l.epoch), "epochs rise");
            }
            (Some(was), Some(is)) if was.epoch != is.epoch => {
                let Command::Put { publication: p, create: false } = command else {
                    panic!("{command:?} replaced an artifact")
                };
                assert_eq!((is.epoch, is.pack), (was.epoch + 1, p.pack));
                assert_ne!(was.pack, is.pack, "equal bytes begin no epoch");
                assert_eq!(was.pinned, is.pinned, "a pin outlives the bytes");
                assert!(!before.blob(p.pack).is_some_and(|b| b.condemned));
            }
            (Some(was), Some(is)) => {
                assert_eq!(
                    (was.epoch, was.pack, &was.manifest),
                    (is.epoch, is.pack, &is.manifest),
                    "an artifact changed within its epoch"
                );
            }
            (Some(_), None) => {
                assert!(matches!(command, Command::Tombstone { .. }), "{command:?} removed one");
            }
            (None, None) => {}
        }
        if let Command::Publish(p) = command
            && p.key == key
            && *response == Response::Committed
        {
            assert_eq!(after.entry(key).unwrap().token, p.token);
        }
    }
    for pack in PACKS.map(pack) {
        let entries = KEYS.map(key).filter(|k| after.entry(*k).is_some_and(|e| e.pack == pack));
        let leases =
            KEYS.map(key).filter(|k| after.lease(*k).is_some_and(|l| l.pack == Some(pack)));
        let (entries, leases) = (entries.count() as u64, leases.count() as u64);
        let blob = after.blob(pack).unwrap_or_default();
        assert_eq!((blob.entries, blob.leases), (entries, leases), "references are counted");
        assert!(!blob.condemned || entries + leases == 0, "a condemned pack is referred to");
        let gone = before.blob(pack).is_some() && after.blob(pack).is_none();
        assert!(!gone || before.blob(pack).unwrap().condemned, "forgotten, never condemned");
    }
    let counters: Counters = table::read(after, ()).unwrap().unwrap();
    let entries = KEYS.map(key).filter(|k| after.entry(*k).is_some()).count();
    assert_eq!(counters.entries, entries as u64);
}

fn founded() -> Model {
    let mut state = Model::default();
    let nodes = vec![new_node(0), new_node(1)];
    assert_eq!(state.apply(1, Command::Found { cluster: 5, nodes }).0, Response::Done);
    state
}

proptest! {
    #[test]
    fn every_history_keeps_the_rules(commands in commands()) {
        let mut state = founded();
        let mut highest = BTreeMap::new();
        let mut log = Vec::new();
        for (index, command) in (2..).zip(commands) {
            let command = aim(command, &state, index);
            let before = state.clone();
            let (response, _) = state.apply(index, command.clone());
            check_step(&before, &state, index, &command, &response, &mut highest);
            log.push((index, command));
        }
        let mut replayed = founded();
        for (index, command) in log {
            replayed.apply(index, command);
        }
        prop_assert_eq!(state, replayed);
    }

    #[test]
    fn commands_survive_the_log(commands in commands()) {
        for command in commands {
            let bytes = crate::codec::encode(&command).unwrap();
            prop_assert_eq!(crate::codec::decode::<Command>(&bytes).unwrap(), command);
        }
    }
}

#[test]
fn a_late_publication_of_other_bytes_is_counted_and_not_served() {
    let mut state = founded();
    let acquire = |request| Command::Acquire { key: key(1), node: 1, request };
    state.apply(2, acquire(1));
    state.apply(3, Command::Expire { key: key(1), token: Token(2) });
    assert_eq!(state.apply(4, publish_of(1, 1, 2)).0, Response::Stale);
    assert_eq!(state.apply(5, acquire(2)).0, Response::Granted(Token(5)));
    assert_eq!(state.apply(6, publish_of(1, 1, 5)).0, Response::Committed);
    assert_eq!(state.apply(7, publish_of(1, 1, 5)).0, Response::Committed, "a retry");
    assert_eq!(state.apply(8, publish_of(1, 2, 2)).0, Response::Existing);
    assert_eq!(state.entry(key(1)).unwrap().pack, pack(1));
    assert_eq!(state.entry(key(1)).unwrap().differing, 1);
}

#[test]
fn the_last_put_counts_and_ends_the_lease() {
    let mut state = founded();
    state.apply(2, Command::Acquire { key: key(1), node: 1, request: 1 });
    let (response, events) = state.apply(3, put_of(1, 1, false));
    assert_eq!(response, Response::Committed);
    assert!(events.contains(&Event::LeaseEnded { key: key(1), token: Token(2) }));
    assert_eq!(state.apply(4, publish_of(1, 2, 2)).0, Response::Existing, "the holder is late");
    assert_eq!(state.apply(5, put_of(1, 1, false)).0, Response::Unchanged);
    assert_eq!(state.apply(6, put_of(1, 2, true)).0, Response::Existing);
    assert_eq!(state.entry(key(1)).unwrap().epoch, 1);
    let (response, events) = state.apply(7, put_of(1, 2, false));
    assert_eq!(response, Response::Committed);
    assert!(events.contains(&Event::Replaced { key: key(1), pack: pack(1) }));
    assert_eq!(state.entry(key(1)).unwrap().epoch, 2);
    assert_eq!(state.apply(8, Command::Condemn { pack: pack(1) }).0, Response::Changed(true));
    assert_eq!(state.apply(9, put_of(1, 1, false)).0, Response::Condemned);
}

#[test]
fn a_retried_acquire_finds_its_own_grant() {
    let mut state = founded();
    let acquire = Command::Acquire { key: key(1), node: 1, request: 7 };
    assert_eq!(state.apply(2, acquire.clone()).0, Response::Granted(Token(2)));
    assert_eq!(state.apply(3, acquire).0, Response::Granted(Token(2)));
    let other = Command::Acquire { key: key(1), node: 1, request: 8 };
    assert_eq!(state.apply(4, other).0, Response::Held);
}

#[test]
fn a_failure_ends_the_lease_and_is_lifted_by_name_only() {
    let mut state = founded();
    let acquire = Command::Acquire { key: key(1), node: 1, request: 7 };
    state.apply(2, acquire.clone());
    assert_eq!(state.apply(3, fail_of(1, 9)).0, Response::Stale);
    assert_eq!(state.apply(4, fail_of(1, 2)).0, Response::Done);
    assert_eq!(state.apply(5, fail_of(1, 2)).0, Response::Done, "a retry");
    assert_eq!(state.apply(6, acquire.clone()).0, Response::Failed);
    let lift = |token| Command::Lift { key: key(1), token: Token(token) };
    assert_eq!(state.apply(7, lift(1)).0, Response::Changed(false));
    assert_eq!(state.apply(8, lift(2)).0, Response::Changed(true));
    assert_eq!(state.apply(9, acquire).0, Response::Granted(Token(9)));
}

#[test]
fn an_open_lease_keeps_its_keys_last_pack() {
    let mut state = founded();
    let acquire = |request| Command::Acquire { key: key(1), node: 1, request };
    state.apply(2, acquire(1));
    state.apply(3, publish_of(1, 1, 2));
    let condemn = || Command::Condemn { pack: pack(1) };
    assert_eq!(state.apply(4, condemn()).0, Response::Changed(false), "an entry names it");
    state.apply(5, Command::Tombstone { key: key(1), reason: "wrong".into() });
    state.apply(6, acquire(2));
    assert_eq!(state.apply(7, condemn()).0, Response::Changed(false), "a lease may name it");
    state.apply(8, Command::Expire { key: key(1), token: Token(6) });
    assert_eq!(state.apply(9, condemn()).0, Response::Changed(true));
    state.apply(10, acquire(3));
    assert_eq!(state.apply(11, publish_of(1, 1, 10)).0, Response::Condemned);
    assert_eq!(state.apply(12, Command::Forget { pack: pack(1) }).0, Response::Changed(true));
    assert_eq!(state.apply(13, publish_of(1, 1, 10)).0, Response::Committed);
    assert_eq!(state.entry(key(1)).unwrap().epoch, 2);
}

#[test]
fn node_ids_are_never_used_twice() {
    let mut state = founded();
    assert_eq!(state.apply(2, Command::Join(new_node(5))).0, Response::Node(3));
    assert_eq!(state.apply(3, Command::Join(new_node(5))).0, Response::Node(3), "a retry");
    assert_eq!(state.apply(4, Command::Leave(3)).0, Response::Changed(true));
    assert!(matches!(state.apply(5, Command::Join(new_node(5))).0, Response::Refused(_)));
    assert_eq!(state.apply(6, Command::Join(new_node(6))).0, Response::Node(4));
    let gone: NodeRecord = table::read(&state, 3u64).unwrap().unwrap();
    assert!(gone.left() && gone.key == [5; 32], "its manifests stay verifiable");
}
