//! Tokens of clients, and how far nodes' audit logs have come.
//!
//! Invariant: a token is made once and revoked once; what it allows never changes. There
//! are at most [`MOST_TOKENS`], and none that is good makes room for another. The head of
//! an audit log never goes back.

use kiln_proto::NodeId;

use super::{Event, admission};
use crate::{
    command::Response,
    table::{self, AuditHeadRecord, StateError, Table, TokenRecord, Txn, View},
    tokens::{AuditHead, MOST_TOKENS, NewToken, TokenEnd, TokenInfo},
};

/// Makes a token good. The same one again is as if it were asked for once.
pub(super) fn issue<V: View>(
    txn: &mut Txn<'_, V>,
    token: NewToken,
    node: NodeId,
    at_unix_ms: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let NewToken { id, digest, name, role, namespaces, lifetime_ms, by } = token;
    match txn.get::<TokenRecord>(id)? {
        Some(TokenRecord(known)) if known.digest == digest => return Ok(Response::Done),
        None if !admission::read(txn)?.tokens.contains_key(&id) => {}
        _ => return Ok(Response::Refused(format!("there is a token {id:016x}"))),
    }
    if !make_room(txn, at_unix_ms)? {
        let why = format!("{MOST_TOKENS} tokens are good: revoke some");
        return Ok(Response::Refused(why));
    }
    let expires_unix_ms = lifetime_ms.map(|lifetime| at_unix_ms.saturating_add(lifetime));
    let revoked = None;
    let info = TokenInfo {
        digest,
        name,
        role,
        namespaces,
        by,
        node,
        at_unix_ms,
        expires_unix_ms,
        revoked,
    };
    txn.put(id, &TokenRecord(info))?;
    events.push(Event::TokensChanged);
    Ok(Response::Done)
}

/// Forgets the oldest token that is good no more, where there are as many as may be.
fn make_room<V: View>(txn: &mut Txn<'_, V>, now_unix_ms: u64) -> Result<bool, StateError> {
    if txn.all(Table::Tokens)?.len() < MOST_TOKENS {
        return Ok(true);
    }
    let tokens = table::tokens(&*txn)?;
    let over = tokens.iter().filter(|(_, t)| t.revoked.is_some() || t.has_expired(now_unix_ms));
    let Some((oldest, _)) = over.min_by_key(|(id, token)| (token.at_unix_ms, **id)) else {
        return Ok(false);
    };
    txn.remove::<TokenRecord>(*oldest);
    Ok(true)
}

/// Ends a token for good; false where it was revoked before.
pub(super) fn revoke<V: View>(
    txn: &mut Txn<'_, V>,
    id: u64,
    end: TokenEnd,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(TokenRecord(token)) = txn.get::<TokenRecord>(id)? else {
        let unknown = || Response::Refused(format!("there is no token {id:016x}"));
        return Ok(admission::revoke(txn, id, end, events)?.unwrap_or_else(unknown));
    };
    if token.revoked.is_some() {
        return Ok(Response::Changed(false));
    }
    txn.put(id, &TokenRecord(TokenInfo { revoked: Some(end), ..token }))?;
    events.push(Event::TokensChanged);
    Ok(Response::Changed(true))
}

/// Notes how far a node's audit log has come.
pub(super) fn note_audit<V: View>(
    txn: &mut Txn<'_, V>,
    node: NodeId,
    head: AuditHead,
) -> Result<Response, StateError> {
    let known = txn.get::<AuditHeadRecord>(node)?;
    if known.is_some_and(|AuditHeadRecord(known)| known.sequence >= head.sequence) {
        return Ok(Response::Changed(false));
    }
    txn.put(node, &AuditHeadRecord(head))?;
    Ok(Response::Changed(true))
}
