//! Tokens: made once, revoked once, bounded.

use super::*;
use crate::{
    table::{AuditHeadRecord, TokenRecord},
    tokens::{AuditHead, MOST_TOKENS, NewToken, Role, TokenEnd, TokenInfo},
};

pub(super) fn issue_of(id: u64, digest: u8, lifetime_ms: Option<u64>, at_unix_ms: u64) -> Command {
    let (name, by, namespaces) = ("ci".to_owned(), "uid 0".to_owned(), vec!["team".to_owned()]);
    let (digest, role) = ([digest; 32], Role::Write);
    let token = NewToken { id, digest, name, role, namespaces, lifetime_ms, by };
    Command::IssueToken { token, node: 1, at_unix_ms }
}

pub(super) fn revoke_of(id: u64) -> Command {
    let end = TokenEnd { by: "uid 0".into(), node: 1, at_unix_ms: 9 };
    Command::RevokeToken { id, end }
}

fn token(state: &Model, id: u64) -> Option<TokenInfo> {
    table::read::<TokenRecord>(state, id).unwrap().map(|record| record.0)
}

#[test]
fn a_token_is_made_once_and_revoked_once() {
    let mut state = founded();
    let (response, events) = state.apply(3, issue_of(7, 1, Some(50), 100));
    assert_eq!((response, events), (Response::Done, vec![Event::TokensChanged]));
    let made = token(&state, 7).unwrap();
    assert_eq!((made.at_unix_ms, made.expires_unix_ms, made.role), (100, Some(150), Role::Write));
    assert!(!made.has_expired(149) && made.has_expired(150));
    // A retry; and another one that came to the same id.
    assert_eq!(state.apply(4, issue_of(7, 1, None, 200)).0, Response::Done);
    assert!(matches!(state.apply(5, issue_of(7, 2, None, 200)).0, Response::Refused(_)));
    assert_eq!(token(&state, 7), Some(made));

    let (response, events) = state.apply(6, revoke_of(7));
    assert_eq!((response, events), (Response::Changed(true), vec![Event::TokensChanged]));
    assert_eq!(state.apply(7, revoke_of(7)).0, Response::Changed(false));
    assert!(token(&state, 7).unwrap().revoked.is_some());
    assert_eq!(state.apply(8, issue_of(7, 1, None, 300)).0, Response::Done);
    assert!(token(&state, 7).unwrap().revoked.is_some(), "a revoked one does not come back");
    assert!(matches!(state.apply(9, revoke_of(8)).0, Response::Refused(_)));
}

#[test]
fn tokens_are_bounded_and_none_that_is_good_goes() {
    let mut state = founded();
    let most = MOST_TOKENS as u64;
    for id in 0..most {
        let lifetime = (id == 5).then_some(10);
        assert_eq!(state.apply(id + 3, issue_of(id, 1, lifetime, id)).0, Response::Done);
    }
    state.apply(most + 3, revoke_of(9));
    assert_eq!(state.apply(most + 4, issue_of(most, 1, None, 10_000)).0, Response::Done);
    assert_eq!(token(&state, 5), None, "the oldest that is over");
    assert_eq!(state.apply(most + 5, issue_of(most + 1, 1, None, 10_000)).0, Response::Done);
    assert_eq!(token(&state, 9), None);
    let refused = state.apply(most + 6, issue_of(most + 2, 1, None, 10_000)).0;
    assert!(matches!(&refused, Response::Refused(why) if why.contains("revoke")), "{refused:?}");
    assert_eq!(table::tokens(&state).unwrap().len(), MOST_TOKENS);
}

#[test]
fn the_head_of_an_audit_log_never_goes_back() {
    let mut state = founded();
    let note = |sequence, digest| {
        let head = AuditHead { sequence, digest: [digest; 32], at_unix_ms: 1 };
        Command::NoteAudit { node: 2, head }
    };
    assert_eq!(state.apply(3, note(5, 1)).0, Response::Changed(true));
    for back in [note(4, 2), note(5, 2)] {
        assert_eq!(state.apply(4, back).0, Response::Changed(false));
    }
    let known = table::read::<AuditHeadRecord>(&state, 2).unwrap().unwrap().0;
    assert_eq!((known.sequence, known.digest), (5, [1; 32]));
    assert_eq!(state.apply(5, note(6, 3)).0, Response::Changed(true));
}
