//! Who is let in, by which token, and how often.

use super::*;
use crate::{
    admission::{Admission, Admissions, MOST_JOIN_TOKENS, NewJoinToken, NotAdmitted, Word},
    table::admissions,
    tokens::{MOST_TOKENS, TokenEnd},
};

pub(super) fn issue_of(id: u64, digest: u8, uses: u32, at_unix_ms: u64) -> Command {
    let (name, by, digest) = ("fleet".to_owned(), "uid 0".to_owned(), [digest; 32]);
    let token = NewJoinToken { id, digest, name, uses, lifetime_ms: Some(100), by };
    Command::Admission(Admission::Issue { token, node: 1, at_unix_ms })
}

pub(super) fn need_of(needs_token: bool) -> Command {
    Command::Admission(Admission::Need { needs_token, node: 1, first: false })
}

pub(super) fn admit_of(node: u8, id: u64, digest: u8, at_unix_ms: u64) -> Command {
    let by = Word::Token { id, digest: [digest; 32] };
    Command::Admission(Admission::Admit { node: new_node(node), by, at_unix_ms })
}

/// A cluster of the nodes 1 and 2 that asks for a token.
fn closed() -> Model {
    let mut state = founded();
    assert_eq!(state.apply(3, need_of(true)).0, Response::Changed(true));
    state
}

fn used(state: &Model, id: u64) -> u32 {
    admissions(state).unwrap().tokens[&id].used
}

#[test]
fn a_token_lets_in_as_many_disks_as_it_says() {
    let mut state = closed();
    assert_eq!(state.apply(4, issue_of(7, 1, 2, 100)).0, Response::Done);
    let (response, events) = state.apply(5, admit_of(2, 7, 1, 110));
    assert_eq!(response, Response::Node(3));
    assert_eq!(events, vec![Event::NodesChanged, Event::TokensChanged]);
    // The same disk again, whose answer was lost: also with the token over, or none.
    for again in [admit_of(2, 7, 1, 110), admit_of(2, 7, 1, 999), Command::Join(new_node(2))] {
        assert_eq!(state.apply(6, again).0, Response::Node(3));
    }
    assert_eq!(used(&state, 7), 1);
    assert_eq!(state.apply(7, admit_of(3, 7, 1, 120)).0, Response::Node(4));
    let refused = state.apply(8, admit_of(4, 7, 1, 130));
    assert_eq!(refused, (Response::NotAdmitted(NotAdmitted::UsedUp), Vec::new()));
    assert_eq!((used(&state, 7), table::nodes(&state).unwrap().len()), (2, 4));

    // Without a bound: as many as ask.
    assert_eq!(state.apply(9, issue_of(8, 1, 0, 100)).0, Response::Done);
    for n in 4..20 {
        assert_eq!(state.apply(10, admit_of(n, 8, 1, 130)).0, Response::Node(u64::from(n) + 1));
    }
    assert_eq!(used(&state, 8), 16);
}

#[test]
fn what_is_no_good_token_lets_nobody_in() {
    let mut state = closed();
    state.apply(4, issue_of(7, 1, 1, 100));
    state.apply(5, issue_of(8, 1, 1, 100));
    let end = TokenEnd { by: "uid 0".into(), node: 1, at_unix_ms: 9 };
    let revoke = Command::RevokeToken { id: 8, end };
    assert_eq!(state.apply(6, revoke.clone()).0, Response::Changed(true));
    assert_eq!(state.apply(6, revoke).0, Response::Changed(false));
    let before = state.clone();
    for (command, why) in [
        (Command::Join(new_node(2)), NotAdmitted::NoToken),
        (admit_of(2, 7, 2, 110), NotAdmitted::Unknown),
        (admit_of(2, 9, 1, 110), NotAdmitted::Unknown),
        (admit_of(2, 7, 1, 200), NotAdmitted::Expired),
        (admit_of(2, 8, 1, 110), NotAdmitted::Revoked),
    ] {
        assert_eq!(state.apply(7, command).0, Response::NotAdmitted(why));
        assert_eq!(state, before);
    }
    // An admin's word is enough.
    let by = Word::Admin;
    let admin = Admission::Admit { node: new_node(2), by, at_unix_ms: 110 };
    assert_eq!(state.apply(8, Command::Admission(admin)).0, Response::Node(3));
}

#[test]
fn what_an_admin_said_last_counts_and_settings_speak_first_alone() {
    let mut state = founded();
    let first =
        |needs_token| Command::Admission(Admission::Need { needs_token, node: 1, first: true });
    assert_eq!(admissions(&state).unwrap(), Admissions::default());
    assert_eq!(state.apply(3, Command::Join(new_node(2))).0, Response::Node(3));
    assert_eq!(state.apply(4, first(true)).0, Response::Changed(true));
    assert_eq!(state.apply(5, need_of(false)).0, Response::Changed(true));
    assert_eq!(state.apply(6, first(true)).0, Response::Changed(false));
    assert_eq!(state.apply(7, Command::Join(new_node(3))).0, Response::Node(4));
    assert_eq!(state.apply(8, need_of(true)).0, Response::Changed(true));
    assert_eq!(state.apply(9, need_of(true)).0, Response::Changed(false));
    assert!(matches!(state.apply(10, Command::Join(new_node(4))).0, Response::NotAdmitted(_)));
}

#[test]
fn tokens_for_candidates_are_bounded_and_of_ids_that_clients_have_not() {
    let mut state = closed();
    let most = MOST_JOIN_TOKENS as u64;
    for id in 0..most {
        assert_eq!(state.apply(id + 4, issue_of(id, 1, 1, 100 + id)).0, Response::Done);
    }
    let refused = state.apply(500, issue_of(most, 1, 1, 100)).0;
    assert!(matches!(&refused, Response::Refused(why) if why.contains("revoke")), "{refused:?}");
    assert_eq!(state.apply(501, admit_of(2, 5, 1, 110)).0, Response::Node(3));
    assert_eq!(state.apply(502, issue_of(most, 1, 1, 100)).0, Response::Done, "in 5's place");
    assert!(!admissions(&state).unwrap().tokens.contains_key(&5));

    assert_eq!(
        state.apply(503, tokens::issue_of(MOST_TOKENS as u64, 1, None, 1)).0,
        Response::Done
    );
    let taken = [issue_of(MOST_TOKENS as u64, 1, 1, 100), tokens::issue_of(6, 1, None, 1)];
    for taken in taken {
        assert!(matches!(state.apply(504, taken).0, Response::Refused(_)));
    }
}
