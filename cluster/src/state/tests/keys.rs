//! Keys that follow each other, and what is revoked of one of them.

use ed25519_dalek::{Signer, SigningKey};
use kiln_proto::MANIFEST_FORMAT;

use super::*;
use crate::{
    signing::{Interval, KeyChange, KeyRevocation, Publishes, Stamped},
    table::{KeyRecord, PublishedRecord},
};

fn secret(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// A key that a curve has.
pub(in crate::state::tests) fn public(seed: u8) -> [u8; 32] {
    secret(seed).verifying_key().to_bytes()
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

/// A publication that the key of that seed signed, as a leader of this version writes it.
fn stamped(command: Command, seed: u8, at_unix_ms: u64) -> Command {
    let mut what = Publishes::of(command).unwrap();
    if let Publishes::Commit { publication, .. }
    | Publishes::CommitWhole { publication, .. }
    | Publishes::Write(OrderedWrite { change: Change::Put { publication, .. }, .. }) = &mut what
    {
        let manifest = Arc::make_mut(&mut publication.manifest);
        let message = [MANIFEST_FORMAT.as_bytes(), b"\0", &manifest.bytes].concat();
        manifest.signature = secret(seed).sign(&message).to_bytes().to_vec();
    }
    Command::Stamped(Stamped { by: public(seed), at_unix_ms, what })
}

/// Most publications as a leader of this version writes them, two thirds under one key.
pub(super) fn noted(command: Command, by: u8, at_unix_ms: u64) -> Command {
    match Publishes::of(command) {
        Ok(what) if by > 0 => stamped(what.into(), if by == 1 { FIRST } else { 7 }, at_unix_ms),
        Ok(what) => what.into(),
        Err(other) => *other,
    }
}

/// Mostly of a key that nobody has.
pub(super) fn revoke_of(k: u8, at: u64, ends: bool) -> Command {
    let key = match k {
        0 => public(FIRST),
        1 => public(7),
        other => public(100 + other),
    };
    revoke(key, at, ends.then_some(at + 20), at + 1)
}

pub(super) fn rotate_of(node: NodeId, k: u8) -> Command {
    rotate(node, public(7 + k), 50)
}

/// The seed of the key that node 1 of [`founded`] joined with.
const FIRST: u8 = 0;

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
    refused(&state.apply(6, rotate(2, public(FIRST), 102)).0, "somebody's before");
    refused(&state.apply(7, rotate(9, public(8), 102)).0, "no member");
    refused(&state.apply(8, rotate(1, [2; 32], 102)).0, "no ed25519");
    assert_eq!(state.apply(9, rotate(1, public(8), 103)).0, Response::Changed(true));
    // Back to one that it had is a way for who stole that.
    refused(&state.apply(10, rotate(1, public(7), 104)).0, "somebody's before");
    let joins = NewNode { candidate: [70; 16], key: public(7), ..new_node(0) };
    refused(&state.apply(11, Command::Join(joins)).0, "one that node 1 has, or had");
    state.apply(12, Command::Leave(1));
    refused(&state.apply(13, rotate(1, public(9), 105)).0, "no member");
    state.apply(14, revocation_of(2, true));
    refused(&state.apply(15, rotate(2, public(10), 106)).0, "its disk was stolen");
}

#[test]
fn what_is_noted_of_a_publication_is_the_leaders_time_and_goes_with_it() {
    let mut state = two_artifacts();
    let noted = PublishedRecord { by: public(FIRST), at_unix_ms: 10 };
    assert_eq!(published(&state, 0), Some(noted));
    // A publication that came too late notes nothing.
    state.apply(7, rotate(1, public(7), 25));
    let late = stamped(publish_of(0, 2, 3), 7, 99);
    assert_eq!(state.apply(7, late).0, Response::Committed, "a retry of the first");
    assert_eq!(published(&state, 0).unwrap().at_unix_ms, 10);
    state.apply(8, Command::Tombstone { key: key(0), reason: "wrong".into() });
    assert_eq!(published(&state, 0), None);
    // A write of the other one: another epoch, another note.
    let put = stamped(write_of(1, &[], put_of(1, 2, false)), 7, 30);
    assert_eq!(state.apply(9, put).0, Response::Committed);
    assert_eq!(published(&state, 1).map(|of| (of.by, of.at_unix_ms)), Some((public(7), 30)));
}

#[test]
fn what_a_key_signed_within_a_time_goes_and_the_rest_stays() {
    let mut state = two_artifacts();
    let (response, events) = state.apply(7, revoke(public(FIRST), 15, None, 100));
    assert_eq!(response, Response::Removed(1));
    assert!(events.contains(&Event::Tombstoned { key: key(1), pack: pack(1) }));
    assert!(state.entry(key(0)).is_some() && state.entry(key(1)).is_none());
    let why = table::read::<EpochRecord>(&state, key(1)).unwrap().unwrap().reason;
    assert!(why.contains("a copy was sold"), "{why}");
    assert_eq!(
        state.apply(8, revoke(public(FIRST), 15, None, 101)).0,
        Response::Removed(0),
        "again"
    );
    assert_eq!(
        state.apply(9, revoke(public(FIRST), 0, None, 102)).0,
        Response::Removed(1),
        "all of it"
    );
    refused(&state.apply(10, revoke(public(3), 0, None, 103)).0, "no node ever signed");
}

#[test]
fn an_interval_has_its_first_moment_and_not_its_last() {
    for (after, before, gone) in
        [(10, 20, vec![0]), (11, 20, vec![]), (11, 21, vec![1]), (0, 21, vec![0, 1])]
    {
        let mut state = two_artifacts();
        state.apply(7, revoke(public(FIRST), after, Some(before), 100));
        let went: Vec<u8> = (0..2).filter(|k| state.entry(key(*k)).is_none()).collect();
        assert_eq!(went, gone, "{after}..{before}");
    }
}

#[test]
fn nothing_is_published_under_a_revoked_key_and_all_under_the_next() {
    let mut state = two_artifacts();
    acquired(&mut state, 2, 7);
    // Open at its end: it signs no more, so its lease is nobody's.
    let (_, events) = state.apply(8, revoke(public(FIRST), 50, None, 60));
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
    let publish = stamped(publish_of(2, 2, 13), 7, 71);
    assert_eq!(state.apply(14, publish).0, Response::Committed);
    // The first one goes altogether, and the new one is not touched by that.
    assert_eq!(state.apply(15, revoke(public(FIRST), 0, None, 80)).0, Response::Removed(2));
    assert!(state.entry(key(2)).is_some());
}

#[test]
fn a_time_that_is_over_leaves_the_key_what_it_signs_now() {
    let mut state = two_artifacts();
    assert_eq!(state.apply(7, revoke(public(FIRST), 0, Some(15), 100)).0, Response::Removed(1));
    acquired(&mut state, 2, 8);
    let publish = stamped(publish_of(2, 2, 8), FIRST, 101);
    assert_eq!(state.apply(9, publish).0, Response::Committed);
    // By a clock that is behind: it is after the revocation all the same, and is noted so.
    acquired(&mut state, 0, 10);
    assert_eq!(state.apply(11, stamped(publish_of(0, 0, 10), FIRST, 14)).0, Response::Committed);
    assert_eq!(published(&state, 0).map(|of| of.at_unix_ms), Some(100));
}

#[test]
fn without_an_end_it_is_for_all_that_comes_by_whatever_clock() {
    for (after, at) in [(50, 60), (500, 60)] {
        let mut state = two_artifacts();
        state.apply(7, revoke(public(FIRST), after, None, at));
        for (index, now) in (8..).zip([0, 14, 49, 59, 400]) {
            acquired(&mut state, 2, 2 * index);
            let late = stamped(publish_of(2, 2, 2 * index), FIRST, now);
            refused(&state.apply(2 * index + 1, late).0, "a copy was sold");
            state.apply(2 * index + 1, Command::Expire { key: key(2), token: Token(2 * index) });
        }
        assert!(state.entry(key(0)).is_some() && state.entry(key(1)).is_some(), "of before");
    }
}

#[test]
fn what_has_no_note_is_refused_once_a_key_of_its_signer_has_a_record() {
    for change in [rotate(1, public(7), 30), revoke(public(FIRST), 0, Some(5), 30)] {
        let mut state = founded();
        acquired(&mut state, 0, 3);
        assert_eq!(state.apply(4, publish_of(0, 0, 3)).0, Response::Committed, "none has");
        state.apply(5, change);
        let plain =
            [publish_of(1, 1, 6), whole_of(1, 1, 6, &[]), write_of(1, &[], put_of(1, 1, false))];
        acquired(&mut state, 1, 6);
        for (index, plain) in (7..).zip(plain) {
            refused(&state.apply(index, plain).0, "publish it again");
        }
        assert!(state.entry(key(1)).is_none());
        let done = table::read::<SessionRecord>(&state, 1).unwrap().unwrap().done;
        assert_eq!(done, [(1, false)], "the write is over");
        let other = state.apply(12, write_of(2, &[], Change::Nothing)).0;
        assert_eq!(other, Response::Done, "it publishes nothing");
    }
}

/// A leader that lies, or has not read all of its log.
#[test]
fn a_note_names_the_key_that_signed() {
    let mut state = founded();
    acquired(&mut state, 2, 3);
    let lie = |seed, by| match stamped(publish_of(2, 2, 3), seed, 40) {
        Command::Stamped(of) => Command::Stamped(Stamped { by, ..of }),
        _ => unreachable!(),
    };
    refused(&state.apply(4, lie(9, public(9))).0, "no key with which node 1");
    refused(&state.apply(5, lie(1, public(1))).0, "no key with which node 1");
    state.apply(6, rotate(1, public(7), 30));
    for (index, (seed, by)) in (7..).zip([(7, FIRST), (FIRST, 7), (9, 7), (9, 9), (1, 1)]) {
        refused(&state.apply(index, lie(seed, public(by))).0, "no key with which node 1");
    }
    assert_eq!(state.apply(12, lie(7, public(7))).0, Response::Committed);
}

#[test]
fn what_won_before_is_told_so_though_its_key_is_revoked_since() {
    let mut state = two_artifacts();
    let put = || stamped(write_of(1, &[], put_of(2, 2, false)), FIRST, 30);
    assert_eq!(state.apply(7, put()).0, Response::Committed);
    state.apply(8, revoke(public(FIRST), 40, None, 50));
    assert_eq!(state.apply(9, put()).0, Response::Repeated(true));
    let again = || stamped(publish_of(0, 0, 3), FIRST, 51);
    assert_eq!(state.apply(10, again()).0, Response::Committed);
    assert_eq!(state.apply(11, publish_of(0, 0, 3)).0, Response::Committed, "without a note too");
    let other = Command::OpenSession { node: 1, nonce: 8 };
    assert!(matches!(state.apply(12, other).0, Response::Session(_)));
    assert_eq!(state.apply(13, put()).0, Response::StaleSession);
    state.apply(14, revocation_of(1, true));
    assert_eq!(state.apply(15, again()).0, Response::Committed);
    state.apply(16, revocation_of(1, false));
    refused(&state.apply(17, again()).0, "a copy was sold");
}

#[test]
fn a_key_that_was_revoked_for_many_times_can_be_for_all_of_them() {
    let mut state = two_artifacts();
    let most = crate::signing::MOST_INTERVALS as u64;
    for at in 0..most {
        let revoke = revoke(public(FIRST), 100 * at + 50, Some(100 * at + 60), 9000);
        assert_eq!(state.apply(10 + at, revoke).0, Response::Removed(0));
    }
    let revoked = |state: &Model| {
        let key = Digest::from_bytes(public(FIRST));
        table::read::<KeyRecord>(state, key).unwrap().unwrap().revoked.len() as u64
    };
    let one_more = |after, before| revoke(public(FIRST), after, before, 9001);
    refused(&state.apply(50, one_more(7000, Some(7001))).0, "times already");
    assert_eq!(state.apply(51, one_more(52, Some(55))).0, Response::Removed(0), "within one");
    assert_eq!(revoked(&state), most);
    assert_eq!(state.apply(52, one_more(40, Some(260))).0, Response::Removed(0));
    assert_eq!(revoked(&state), most - 2, "one for three");
    assert_eq!(state.apply(53, one_more(7000, Some(7001))).0, Response::Removed(0));
    assert_eq!(state.apply(54, one_more(0, None)).0, Response::Removed(2));
    assert_eq!(revoked(&state), 1);
}

#[test]
fn no_key_of_a_node_that_has_several_is_anothers() {
    let mut state = founded();
    let joins = |n: u8, key| Command::Join(NewNode { candidate: [n; 16], key, ..new_node(0) });
    // A disk that was copied before it joined.
    assert!(matches!(state.apply(3, joins(70, public(FIRST))).0, Response::Node(_)));
    state.apply(4, rotate(1, public(7), 30));
    refused(&state.apply(5, joins(71, public(FIRST))).0, "one that node 1 has, or had");
    refused(&state.apply(6, joins(72, public(7))).0, "one that node 1 has, or had");
    assert_eq!(state.apply(7, joins(70, public(FIRST))).0, Response::Node(3), "it was here before");
    state.apply(8, revoke(public(7), 0, Some(1), 40));
    refused(&state.apply(9, joins(72, public(7))).0, "its signing key was revoked");
}

/// What was published before there were notes is of a time that nobody knows.
#[test]
fn without_a_note_an_artifact_goes_with_any_time_of_the_first_key_alone() {
    let mut state = founded();
    acquired(&mut state, 0, 3);
    state.apply(4, publish_of(0, 0, 3));
    state.apply(5, rotate(1, public(7), 100));
    assert_eq!(state.apply(6, revoke(public(7), 0, None, 101)).0, Response::Removed(0));
    assert_eq!(state.apply(7, revoke(public(FIRST), 90, None, 102)).0, Response::Removed(1));
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
