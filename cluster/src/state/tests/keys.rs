//! Keys that follow each other, and what is revoked of one of them.

use super::*;
use crate::{
    signing::{Interval, KeyChange, KeyRevocation, Publishes, Stamped},
    table::PublishedRecord,
};

/// A key that a curve has.
fn public(seed: u8) -> [u8; 32] {
    ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes()
}

fn rotate(node: NodeId, key: [u8; 32], at_unix_ms: u64) -> Command {
    Command::Keys(KeyChange::Rotate { node, key, at_unix_ms })
}

fn revoke(key: [u8; 32], after_unix_ms: u64, before_unix_ms: Option<u64>, at: u64) -> Command {
    let within = Interval { after_unix_ms, before_unix_ms };
    let reason = "a copy was sold".to_owned();
    let revocation = KeyRevocation { within, reason, by: 2, at_unix_ms: at };
    Command::Keys(KeyChange::Revoke { key, revocation })
}

fn stamped(command: Command, by: [u8; 32], at_unix_ms: u64) -> Command {
    let what = Publishes::of(command).unwrap();
    Command::Stamped(Stamped { by, at_unix_ms, what })
}

/// Most publications as a leader of this version writes them, two thirds under one key.
pub(super) fn noted(command: Command, by: u8, at_unix_ms: u64) -> Command {
    match Publishes::of(command) {
        Ok(what) if by > 0 => {
            let by = if by == 1 { FIRST } else { public(7) };
            Command::Stamped(Stamped { by, at_unix_ms, what })
        }
        Ok(what) => what.into(),
        Err(other) => *other,
    }
}

/// Mostly of a key that nobody has.
pub(super) fn revoke_of(k: u8, at: u64, ends: bool) -> Command {
    let key = match k {
        0 => FIRST,
        1 => public(7),
        other => public(100 + other),
    };
    revoke(key, at, ends.then_some(at + 20), at + 1)
}

pub(super) fn rotate_of(node: NodeId, k: u8) -> Command {
    rotate(node, public(7 + k), 50)
}

/// The key that node 1 of [`founded`] joined with.
const FIRST: [u8; 32] = [0; 32];

fn published(state: &Model, k: u8) -> Option<PublishedRecord> {
    table::read(state, key(k)).unwrap()
}

fn refused(response: &Response, why: &str) {
    assert!(matches!(response, Response::Refused(told) if told.contains(why)), "{response:?}");
}

/// Node 1 published key 0 at 10 and key 1 at 20, both under its first key.
fn two_artifacts() -> Model {
    let mut state = founded();
    for (k, index, at) in [(0, 3, 10), (1, 5, 20)] {
        acquired(&mut state, k, index);
        let publish = stamped(publish_of(k, k, index), FIRST, at);
        assert_eq!(state.apply(index + 1, publish).0, Response::Committed);
    }
    state
}

#[test]
fn a_key_follows_another_once_and_is_nobody_elses() {
    let mut state = founded();
    let (response, events) = state.apply(3, rotate(1, public(7), 100));
    assert_eq!(response, Response::Changed(true));
    assert_eq!(events, [Event::NodesChanged]);
    assert_eq!(state.apply(4, rotate(1, public(7), 101)).0, Response::Changed(false), "again");
    refused(&state.apply(5, rotate(2, public(7), 102)).0, "somebody's before");
    refused(&state.apply(6, rotate(2, [0; 32], 102)).0, "somebody's before");
    refused(&state.apply(7, rotate(9, public(8), 102)).0, "no member");
    refused(&state.apply(8, rotate(1, [2; 32], 102)).0, "no ed25519");
    assert_eq!(state.apply(9, rotate(1, public(8), 103)).0, Response::Changed(true));
    // Back to one that it had is a way for who stole that.
    refused(&state.apply(10, rotate(1, public(7), 104)).0, "somebody's before");
    let joins = NewNode { candidate: [70; 16], key: public(7), ..new_node(0) };
    refused(&state.apply(11, Command::Join(joins)).0, "revoked");
    state.apply(12, Command::Leave(1));
    refused(&state.apply(13, rotate(1, public(9), 105)).0, "no member");
    state.apply(14, revocation_of(2, true));
    refused(&state.apply(15, rotate(2, public(10), 106)).0, "its disk was stolen");
}

#[test]
fn what_is_noted_of_a_publication_is_the_leaders_time_and_goes_with_it() {
    let mut state = two_artifacts();
    let noted = PublishedRecord { by: FIRST, at_unix_ms: 10, index: 4 };
    assert_eq!(published(&state, 0), Some(noted));
    // A publication that came too late notes nothing.
    let late = stamped(publish_of(0, 2, 3), public(7), 99);
    assert_eq!(state.apply(7, late).0, Response::Committed, "a retry of the first");
    assert_eq!(published(&state, 0).unwrap().at_unix_ms, 10);
    state.apply(8, Command::Tombstone { key: key(0), reason: "wrong".into() });
    assert_eq!(published(&state, 0), None);
    // A write of the other one: another epoch, another note.
    let put = stamped(write_of(1, &[], put_of(1, 2, false)), public(7), 30);
    assert_eq!(state.apply(9, put).0, Response::Committed);
    assert_eq!(published(&state, 1).map(|of| (of.by, of.at_unix_ms)), Some((public(7), 30)));
}

#[test]
fn what_a_key_signed_within_a_time_goes_and_the_rest_stays() {
    let mut state = two_artifacts();
    let (response, events) = state.apply(7, revoke(FIRST, 15, None, 100));
    assert_eq!(response, Response::Removed(1));
    assert!(events.contains(&Event::Tombstoned { key: key(1), pack: pack(1) }));
    assert!(state.entry(key(0)).is_some() && state.entry(key(1)).is_none());
    let why = table::read::<EpochRecord>(&state, key(1)).unwrap().unwrap().reason;
    assert!(why.contains("a copy was sold"), "{why}");
    assert_eq!(state.apply(8, revoke(FIRST, 15, None, 101)).0, Response::Removed(0), "again");
    assert_eq!(state.apply(9, revoke(FIRST, 0, None, 102)).0, Response::Removed(1), "all of it");
    refused(&state.apply(10, revoke(public(3), 0, None, 103)).0, "no node ever signed");
}

#[test]
fn an_interval_has_its_first_moment_and_not_its_last() {
    for (after, before, gone) in
        [(10, 20, vec![0]), (11, 20, vec![]), (11, 21, vec![1]), (0, 21, vec![0, 1])]
    {
        let mut state = two_artifacts();
        state.apply(7, revoke(FIRST, after, Some(before), 100));
        let went: Vec<u8> = (0..2).filter(|k| state.entry(key(*k)).is_none()).collect();
        assert_eq!(went, gone, "{after}..{before}");
    }
}

#[test]
fn nothing_is_published_under_a_revoked_key_and_all_under_the_next() {
    let mut state = two_artifacts();
    acquired(&mut state, 2, 7);
    // Open at its end: it signs no more, so its lease is nobody's.
    let (_, events) = state.apply(8, revoke(FIRST, 50, None, 60));
    assert!(events.iter().any(|event| matches!(event, Event::LeaseEnded { .. })), "{events:?}");
    refused(&state.apply(9, stamped(publish_of(2, 2, 7), FIRST, 61)).0, "kiln signer rotate");
    // A write that is refused is over: nobody waits for it.
    let put = || stamped(write_of(1, &[], put_of(2, 2, false)), FIRST, 62);
    refused(&state.apply(10, put()).0, "a copy was sold");
    let done = table::read::<SessionRecord>(&state, 1).unwrap().unwrap().done;
    assert_eq!(done, [(1, false)]);
    assert!(state.entry(key(2)).is_none());
    assert_eq!(state.apply(12, rotate(1, public(7), 70)).0, Response::Changed(true));
    acquired(&mut state, 2, 13);
    let publish = stamped(publish_of(2, 2, 13), public(7), 71);
    assert_eq!(state.apply(14, publish).0, Response::Committed);
    // The first one goes altogether, and the new one is not touched by that.
    assert_eq!(state.apply(15, revoke(FIRST, 0, None, 80)).0, Response::Removed(2));
    assert!(state.entry(key(2)).is_some());
}

#[test]
fn a_time_that_is_over_leaves_the_key_what_it_signs_now() {
    let mut state = two_artifacts();
    assert_eq!(state.apply(7, revoke(FIRST, 0, Some(15), 100)).0, Response::Removed(1));
    acquired(&mut state, 2, 8);
    let publish = stamped(publish_of(2, 2, 8), FIRST, 101);
    assert_eq!(state.apply(9, publish).0, Response::Committed);
    acquired(&mut state, 0, 10);
    refused(&state.apply(11, stamped(publish_of(0, 0, 10), FIRST, 14)).0, "revoked");
}

/// What was published before there were notes is of a time that nobody knows.
#[test]
fn without_a_note_an_artifact_goes_with_any_time_of_the_first_key_alone() {
    let mut state = founded();
    acquired(&mut state, 0, 3);
    state.apply(4, publish_of(0, 0, 3));
    state.apply(5, rotate(1, public(7), 100));
    assert_eq!(state.apply(6, revoke(public(7), 0, None, 101)).0, Response::Removed(0));
    assert_eq!(state.apply(7, revoke(FIRST, 90, None, 102)).0, Response::Removed(1));
}

#[test]
fn a_required_root_has_to_know_the_next_key_first() {
    let mut state = root::certified(1);
    assert_eq!(state.apply(5, root::said(1, &root::policy(2, true))).0, Response::Changed(true));
    refused(&state.apply(6, rotate(1, public(7), 100)).0, "no certificate");
    let of = root::of_key(public(7), 3, "*");
    assert_eq!(state.apply(7, root::said(1, &of)).0, Response::Changed(true));
    assert_eq!(state.apply(8, rotate(1, public(7), 101)).0, Response::Changed(true));
}
