//! Random histories against the rules that must hold after each command.

#![allow(clippy::unwrap_used)]

mod admission;
mod histories;
mod keys;
mod pieces;
mod revoked;
mod root;
mod rules;
mod tokens;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kiln_proto::{Failure, FailureKind, Fingerprint, SignedManifest};
use proptest::prelude::*;

use self::rules::{History, check_step};
pub(crate) use super::model::Model;
use super::*;
use crate::{
    command::{
        AccessReport, Asked, Change, NewNode, NodeFacts, OrderedWrite, Publication, Revocation,
    },
    signing::{Publishes, Stamped},
    table::{
        self, BlobRecord, Counters, EpochRecord, NodeRecord, ObjectRecord, PiecesRecord,
        ReferenceRecord, RevocationRecord, SessionRecord, Table, UseRecord,
    },
    wanted::{Wanted, WantedPiece},
};

impl Model {
    fn entry(&self, key: ArtifactKey) -> Option<EntryRecord> {
        table::read(self, key).unwrap()
    }

    fn lease(&self, key: ArtifactKey) -> Option<LeaseRecord> {
        table::read(self, key).unwrap()
    }

    fn wanted(&self, whole: ArtifactKey) -> Option<Wanted> {
        table::read(self, whole).unwrap()
    }

    fn used(&self, key: ArtifactKey) -> Option<UseRecord> {
        table::read(self, key).unwrap()
    }

    fn pieces(&self, whole: ArtifactKey) -> Option<Vec<(ArtifactKey, Digest)>> {
        table::read::<PiecesRecord>(self, whole).unwrap().map(|record| record.pieces)
    }

    fn blob(&self, pack: Digest) -> Option<BlobRecord> {
        table::read(self, pack).unwrap()
    }

    fn is_revoked(&self, signer: NodeId) -> bool {
        table::read::<RevocationRecord>(self, signer).unwrap().is_some()
    }

    fn generation(&self, pack: Digest) -> u64 {
        table::read::<ObjectRecord>(self, pack).unwrap().unwrap_or_default().generation
    }
}

fn key(n: u8) -> ArtifactKey {
    ArtifactKey::from_bytes([n; 32])
}

fn pack(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn new_node(n: u8) -> NewNode {
    NewNode { candidate: [n; 16], facts: NodeFacts::default(), key: keys::public(n) }
}

fn publish_of(k: u8, p: u8, token: u64) -> Command {
    Command::Commit { publication: publication(k, p, token), also: vec![2] }
}

/// A whole of `pieces`, keys with their packs.
fn whole_of(k: u8, p: u8, token: u64, pieces: &[(u8, u8)]) -> Command {
    let pieces = pieces.iter().map(|(k, p)| (key(*k), pack(*p))).collect();
    Command::CommitWhole { publication: publication(k, p, token), also: vec![2], pieces }
}

/// The session that [`founded`] opens for node 1.
const SESSION: Token = Token(2);

fn write_of(sequence: u64, supersedes: &[u64], change: Change) -> Command {
    Command::Write(OrderedWrite {
        node: 1,
        session: SESSION,
        sequence,
        floor: sequence.saturating_sub(6),
        supersedes: supersedes.to_vec(),
        change,
    })
}

fn put_of(k: u8, p: u8, create: bool) -> Change {
    Change::Put { publication: publication(k, p, 0), create, also: Vec::new() }
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

/// A list of `pieces` for key `k` under `token`, which node 1 holds.
pub(crate) fn list_of(k: u8, pieces: &[u8], token: u64) -> Wanted {
    let piece = |n: &u8| WantedPiece { key: key(*n), seconds: 0.5, memory: 1 << 20 };
    Wanted {
        whole: key(k),
        token: Token(token),
        node: 1,
        request: pack(9),
        request_bytes: 3,
        pieces: pieces.iter().map(piece).collect(),
        fingerprint: Fingerprint::new("native", [("nvrtc", "13.0")]),
    }
}

fn use_of(node: NodeId, k: u8, hits: u32) -> Command {
    Command::Use { node, hits: vec![(key(k), hits)], at_unix_ms: 1000 * u64::from(hits) }
}

fn acquired(state: &mut Model, k: u8, index: u64) {
    let acquire = Command::Acquire { key: key(k), node: 1, request: index };
    assert_eq!(state.apply(index, acquire).0, Response::Granted(Token(index)));
}

fn revocation_of(signer: NodeId, keep: bool) -> Command {
    let reason = "its disk was stolen".to_owned();
    Command::Revoke(Revocation { signer, keep, reason, by: 2, at_unix_ms: 7 })
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
        6 => (KEYS, PACKS, token.clone(), prop::collection::btree_map(KEYS, PACKS, 0..3)).prop_map(
            |(k, p, t, pieces)| whole_of(k, p, t, &pieces.into_iter().collect::<Vec<_>>()),
        ),
        2 => (KEYS, token.clone())
            .prop_map(|(k, t)| Command::Expire { key: key(k), token: Token(t) }),
        2 => (KEYS, 1..3u64, 1..4u64).prop_map(|(k, node, epoch)| {
            Command::AcquireAgain { key: key(k), node, request: 9, epoch }
        }),
        4 => (KEYS, PACKS, any::<bool>(), 1..40u64, 0..4u64).prop_map(|(k, p, create, n, before)| {
            let earlier: Vec<u64> = (before > 0).then(|| n.saturating_sub(before)).into_iter().collect();
            write_of(n, &earlier, put_of(k, p, create))
        }),
        1 => (KEYS, 1..40u64)
            .prop_map(|(k, n)| write_of(n, &[], Change::Withdraw { key: key(k) })),
        1 => (KEYS, 1..40u64).prop_map(|(k, n)| {
            write_of(n, &[], Change::Remove { key: key(k), reason: "deleted".into() })
        }),
        2 => (KEYS, 1..4u64, prop::collection::vec(1..4u64, 0..3), any::<bool>()).prop_map(
            |(k, epoch, nodes, object)| {
                let asked = Asked { nodes, object };
                Command::RetireAbsent { key: key(k), epoch, asked }
            },
        ),
        1 => (KEYS, token.clone()).prop_map(|(k, t)| fail_of(k, t)),
        2 => (KEYS, token.clone()).prop_map(|(k, t)| Command::Lift { key: key(k), token: Token(t) }),
        1 => (PACKS, 0..60u64)
            .prop_map(|(p, generation)| Command::StoreObject { pack: pack(p), generation }),
        1 => (PACKS, 0..60u64)
            .prop_map(|(p, generation)| Command::LoseObject { pack: pack(p), generation }),
        2 => (KEYS, PACKS, PACKS, 1..3u64).prop_map(|(k, gained, lost, node)| Command::Report {
            node,
            report: AccessReport {
                hits: vec![(key(k), 2)],
                gained: vec![pack(gained)],
                lost: vec![pack(lost)],
            },
        }),
        2 => (KEYS, 0..3u32, 1..3u64).prop_map(|(k, hits, node)| use_of(node, k, hits)),
        1 => (KEYS, any::<bool>())
            .prop_map(|(k, pinned)| Command::SetPinned { key: key(k), pinned }),
        2 => KEYS.prop_map(|k| Command::Tombstone { key: key(k), reason: "wrong".into() }),
        3 => (PACKS, 0..60u64)
            .prop_map(|(p, generation)| Command::CondemnObject { pack: pack(p), generation }),
        2 => (PACKS, 0..60u64)
            .prop_map(|(p, generation)| Command::ForgetObject { pack: pack(p), generation }),
        3 => (KEYS, prop::collection::btree_set(KEYS, 0..3), token).prop_map(
            |(k, pieces, t)| Command::Want(list_of(k, &pieces.into_iter().collect::<Vec<_>>(), t)),
        ),
        // Most of them of a node that there is not: all artifacts here are of node 1.
        1 => (1..12u64, any::<bool>()).prop_map(|(signer, keep)| revocation_of(signer, keep)),
        1 => (0..12u8, 0..100u64, any::<bool>()).prop_map(|(k, at, ends)| keys::revoke_of(k, at, ends)),
        1 => (1..4u64, 0..3u8).prop_map(|(node, k)| keys::rotate_of(node, k)),
        1 => (0..3u64, 0..2u8).prop_map(|(id, digest)| tokens::issue_of(id, digest, None, id)),
        1 => (0..3u64).prop_map(tokens::revoke_of),
        1 => (0..3u64, 0..2u8).prop_map(|(id, digest)| admission::issue_of(id, digest, 1, id)),
        1 => any::<bool>().prop_map(admission::need_of),
        1 => (0..3u8, 0..3u64).prop_map(|(n, id)| admission::admit_of(n, id, 1, id)),
        1 => (0..3u8).prop_map(|n| Command::Join(new_node(n))),
        1 => (1..4u64).prop_map(Command::Leave),
    ];
    let command =
        (command, 0..3u8, 0..100u64).prop_map(|(command, by, at)| keys::noted(command, by, at));
    prop::collection::vec(command, 1..120)
}

/// Makes about half of the tokens, epochs and generations the present ones, which
/// random numbers rarely are.
fn aim(command: Command, state: &Model, index: u64) -> Command {
    let live = |key| state.lease(key).map(|l| l.token).filter(|_| index.is_multiple_of(2));
    let epoch_of = |key, epoch| match index.is_multiple_of(2) {
        true => state.entry(key).map_or(epoch, |entry| entry.epoch),
        false => epoch,
    };
    let present = |pack, generation| match index.is_multiple_of(2) {
        true => state.generation(pack),
        false => generation,
    };
    match command {
        Command::Stamped(Stamped { by, at_unix_ms, what }) => {
            let what = Publishes::of(aim(what.into(), state, index)).unwrap();
            Command::Stamped(Stamped { by, at_unix_ms, what })
        }
        Command::Commit { publication: p, also } => {
            let token = live(p.key).unwrap_or(p.token);
            Command::Commit { publication: Publication { token, ..p }, also }
        }
        Command::CommitWhole { publication: p, also, mut pieces } => {
            let token = live(p.key).unwrap_or(p.token);
            for (piece, pack) in &mut pieces {
                *pack = state.entry(*piece).map_or(*pack, |entry| entry.pack);
            }
            Command::CommitWhole { publication: Publication { token, ..p }, also, pieces }
        }
        Command::AcquireAgain { key, node, request, epoch } => {
            Command::AcquireAgain { key, node, request, epoch: epoch_of(key, epoch) }
        }
        Command::Want(list) => {
            let token = live(list.whole).unwrap_or(list.token);
            Command::Want(Wanted { token, ..list })
        }
        Command::RetireAbsent { key, epoch, asked } => {
            Command::RetireAbsent { key, epoch: epoch_of(key, epoch), asked }
        }
        Command::StoreObject { pack, generation } => {
            Command::StoreObject { pack, generation: present(pack, generation) }
        }
        Command::LoseObject { pack, generation } => {
            Command::LoseObject { pack, generation: present(pack, generation) }
        }
        Command::CondemnObject { pack, generation } => {
            Command::CondemnObject { pack, generation: present(pack, generation) }
        }
        Command::ForgetObject { pack, generation } => {
            Command::ForgetObject { pack, generation: present(pack, generation) }
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

fn founded() -> Model {
    let mut state = Model::default();
    let nodes = vec![new_node(0), new_node(1)];
    assert_eq!(state.apply(1, Command::Found { cluster: 5, nodes }).0, Response::Done);
    let opened = state.apply(2, Command::OpenSession { node: 1, nonce: 7 }).0;
    assert_eq!(opened, Response::Session(SESSION));
    state
}

proptest! {
    #[test]
    fn every_history_keeps_the_rules(commands in commands()) {
        let mut state = founded();
        let mut history = History::default();
        let mut log = Vec::new();
        for (index, command) in (3..).zip(commands) {
            let command = aim(command, &state, index);
            let before = state.clone();
            let (response, _) = state.apply(index, command.clone());
            check_step(&before, &state, index, &command, &response, &mut history);
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
