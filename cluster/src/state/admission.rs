//! What joining takes, and who is let in by it.
//!
//! Invariant: pure, as all of [`super::apply`]. A use of a token and the node that it lets
//! in are one change: neither is there without the other.

use super::{Event, members};
use crate::{
    admission::{
        Admission, Admissions, JoinToken, MOST_JOIN_TOKENS, NewJoinToken, NotAdmitted, Word,
    },
    command::{NewNode, Response},
    table::{AdmissionsRecord, StateError, TokenRecord, Txn, View},
    tokens::TokenEnd,
};

pub(super) fn read<V: View>(txn: &Txn<'_, V>) -> Result<Admissions, StateError> {
    let record: Option<AdmissionsRecord> = txn.get(())?;
    Ok(record.map(|record| record.0).unwrap_or_default())
}

fn write<V: View>(
    txn: &mut Txn<'_, V>,
    admissions: Admissions,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    txn.put((), &AdmissionsRecord(admissions))?;
    events.push(Event::TokensChanged);
    Ok(())
}

pub(super) fn apply<V: View>(
    txn: &mut Txn<'_, V>,
    admission: Admission,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    match admission {
        Admission::Issue { token, node, at_unix_ms } => issue(txn, token, node, at_unix_ms, events),
        Admission::Need { needs_token, first, .. } => {
            let admissions = read(txn)?;
            if admissions.needs_token == Some(needs_token)
                || first && admissions.needs_token.is_some()
            {
                return Ok(Response::Changed(false));
            }
            let needs_token = Some(needs_token);
            write(txn, Admissions { needs_token, ..admissions }, events)?;
            Ok(Response::Changed(true))
        }
        Admission::Admit { node, by, at_unix_ms } => admit(txn, node, by, at_unix_ms, events),
    }
}

/// Makes a token good. The same one again is as if it were asked for once.
fn issue<V: View>(
    txn: &mut Txn<'_, V>,
    token: NewJoinToken,
    node: u64,
    at_unix_ms: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let NewJoinToken { id, digest, name, uses, lifetime_ms, by } = token;
    let mut admissions = read(txn)?;
    match admissions.tokens.get(&id) {
        Some(known) if known.digest == digest => return Ok(Response::Done),
        None if txn.get::<TokenRecord>(id)?.is_none() => {}
        _ => return Ok(Response::Refused(format!("there is a token {id:016x}"))),
    }
    if admissions.tokens.len() >= MOST_JOIN_TOKENS {
        let over = admissions.tokens.iter().filter(|(_, token)| token.check(at_unix_ms).is_err());
        let Some(oldest) =
            over.min_by_key(|(id, token)| (token.at_unix_ms, **id)).map(|(id, _)| *id)
        else {
            let why = format!("{MOST_JOIN_TOKENS} join tokens are good: revoke some");
            return Ok(Response::Refused(why));
        };
        admissions.tokens.remove(&oldest);
    }
    let expires_unix_ms = lifetime_ms.map(|lifetime| at_unix_ms.saturating_add(lifetime));
    let (used, revoked) = (0, None);
    let token =
        JoinToken { digest, name, uses, used, by, node, at_unix_ms, expires_unix_ms, revoked };
    admissions.tokens.insert(id, token);
    write(txn, admissions, events)?;
    Ok(Response::Done)
}

/// Ends a token for candidates; `None`: there is none of that id.
pub(super) fn revoke<V: View>(
    txn: &mut Txn<'_, V>,
    id: u64,
    end: TokenEnd,
    events: &mut Vec<Event>,
) -> Result<Option<Response>, StateError> {
    let mut admissions = read(txn)?;
    let Some(token) = admissions.tokens.get_mut(&id) else { return Ok(None) };
    if token.revoked.is_some() {
        return Ok(Some(Response::Changed(false)));
    }
    token.revoked = Some(end);
    write(txn, admissions, events)?;
    Ok(Some(Response::Changed(true)))
}

/// Whether a candidate that nobody speaks for is let in.
pub(super) fn without_word<V: View>(
    txn: &Txn<'_, V>,
) -> Result<Result<(), NotAdmitted>, StateError> {
    Ok(match read(txn)?.needs_token {
        Some(true) => Err(NotAdmitted::NoToken),
        Some(false) | None => Ok(()),
    })
}

fn admit<V: View>(
    txn: &mut Txn<'_, V>,
    node: NewNode,
    by: Word,
    at_unix_ms: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let mut admissions = read(txn)?;
    let judge = || match by {
        Word::Admin => Ok(()),
        Word::Token { id, digest } => admissions.judge(id, &digest, at_unix_ms),
    };
    let known = txn.get::<crate::table::Counters>(())?.unwrap_or_default().next_node;
    let answer = members::join_by(txn, node, judge(), events)?;
    // A disk that was let in before uses nothing up.
    if answer == Response::Node(known)
        && let Word::Token { id, .. } = by
        && let Some(token) = admissions.tokens.get_mut(&id)
    {
        token.used = token.used.saturating_add(1);
        write(txn, admissions, events)?;
    }
    Ok(answer)
}
