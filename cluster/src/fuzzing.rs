//! What a fuzzer feeds: bytes as another node sends them.
//!
//! Invariant: whatever the bytes are, they are refused or mean something; neither ends the
//! process, nor makes `apply` fail.

#![allow(clippy::unwrap_used)]

use ed25519_dalek::VerifyingKey;
use kiln_proto::NodeId;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    append::is_gapless,
    authorize, codec,
    command::{Candidate, Command, NewNode, NodeFacts, Response},
    endorsement::{Admitted, Proof},
    raft::{SnapshotMeta, Types, Vote},
    rpc::{Acquire, Answer, Assignment, Greeting, Outcome, Progress, Request},
    state::model::Model,
    versions,
    watch::{NodeInfo, Nodes},
};

/// The first byte says which message the rest is meant for.
pub fn message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 12 {
        0 => both_ways::<Request>(body),
        1 => both_ways::<Acquire>(body),
        2 => both_ways::<Greeting>(body),
        3 => both_ways::<Assignment>(body),
        4 => both_ways::<NewNode>(body),
        5 => both_ways::<Candidate>(body),
        6 => both_ways::<Vote>(body),
        7 => both_ways::<(Vote, SnapshotMeta)>(body),
        8 => both_ways::<TransferLeaderRequest<Types>>(body),
        9 => both_ways::<Progress>(body),
        10 => both_ways::<Answer<Outcome>>(body),
        _ => {
            both_ways::<Proof>(body);
            both_ways::<Admitted>(body);
            if let Ok(request) = codec::decode::<AppendEntriesRequest<Types>>(body) {
                is_gapless(&request);
            }
        }
    }
}

/// What is read is written as it would be read again.
fn both_ways<T: Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok(value) = codec::decode::<T>(body) {
        let written = codec::encode(&value).unwrap();
        let again = codec::decode::<T>(&written).unwrap();
        assert_eq!(codec::encode(&again).unwrap(), written, "it changes on the way");
    }
}

/// Commands, each behind its length of two bytes, that a member has a leader propose: those
/// that are not refused are applied one after the other.
pub fn commands(mut data: &[u8]) {
    let node =
        |id: u8| NewNode { candidate: [id; 16], facts: facts(), key: signing(id).to_bytes() };
    let mut state = Model::default();
    let mut index = 1;
    state.apply(index, Command::Found { cluster: 7, nodes: (1..=3).map(node).collect() });
    index += 1;
    state.apply(index, Command::OpenSession { node: 1, nonce: 7 });
    let nodes = nodes();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let body = rest.get(..usize::from(u16::from_le_bytes(*length))).unwrap_or(rest);
        data = &rest[body.len()..];
        let Ok(command) = codec::decode::<Command>(body) else { continue };
        let allowed = authorize::check(&nodes, 1, &command).is_ok();
        let understood = versions::check(&nodes, &command).is_ok();
        if allowed && understood {
            index += 1;
            let (response, _) = state.apply(index, command);
            assert_ne!(response, Response::NotFounded, "the cluster was founded");
        }
    }
}

fn signing(id: u8) -> VerifyingKey {
    ed25519_dalek::SigningKey::from_bytes(&[id; 32]).verifying_key()
}

fn facts() -> NodeFacts {
    NodeFacts { version: env!("CARGO_PKG_VERSION").to_owned(), ..NodeFacts::default() }
}

/// The members 1 to 3, as a leader sees them.
fn nodes() -> Nodes {
    let node = |id: u8| {
        let (left, away, eligible, revoked) = (false, false, true, None);
        let (facts, key, candidate) = (facts(), signing(id), [id; 16]);
        let keys = NodeInfo::only(key);
        let info = NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate };
        (NodeId::from(id), info)
    };
    (1..=3).map(node).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{
        strategy::{Strategy, ValueTree},
        test_runner::TestRunner,
    };

    use super::*;
    use crate::rpc::{ReadIndex, Write};

    /// With `KILN_WRITE_SEEDS=1`: writes what a fuzzer begins with.
    #[test]
    fn what_it_begins_with_does_no_harm() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds");
        let mut runner = TestRunner::deterministic();
        let mut kept = Vec::new();
        for at in 0..6 {
            let commands = crate::state::tests::commands().new_tree(&mut runner).unwrap().current();
            let one = codec::encode(&Request::Write(Write(commands[0].clone()))).unwrap();
            kept.push((format!("peers/write-{at}"), [vec![0], one].concat()));
            let behind_length = |command: &Command| {
                let bytes = codec::encode(command).unwrap();
                [&(bytes.len() as u16).to_le_bytes()[..], &bytes].concat()
            };
            let first = commands.iter().take(12);
            kept.push((format!("commands/history-{at}"), first.flat_map(behind_length).collect()));
        }
        let index = codec::encode(&Request::ReadIndex(ReadIndex)).unwrap();
        kept.push(("peers/read-index".to_owned(), [vec![0], index].concat()));
        for (path, bytes) in kept {
            let path = seeds.join(path);
            if std::env::var_os("KILN_WRITE_SEEDS").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            message(&bytes);
            commands(&bytes);
            assert!(path.exists(), "{path:?}: KILN_WRITE_SEEDS=1 writes it");
        }
        // Those among them that once did harm.
        for (name, feed) in [("peers", message as fn(&[u8])), ("commands", commands)] {
            for entry in fs::read_dir(seeds.join(name)).unwrap() {
                feed(&fs::read(entry.unwrap().path()).unwrap());
            }
        }
    }
}
