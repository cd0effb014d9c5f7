//! Who may compile a key, and which keys fail.
//!
//! Invariant: a key has at most one live lease; its token is the log index of the
//! command that granted it, so tokens strictly rise. A key has a lease beside an
//! artifact only where that artifact's bytes cannot be reached.

use kiln_proto::{ArtifactKey, NodeId, Token};

use super::{Event, revocations, wanted};
use crate::{
    command::Response,
    table::{
        self, BlobRecord, EntryRecord, EpochRecord, FailureRecord, LeaseRecord, StateError, Txn,
        View,
    },
};

/// Grants the key to `lease` where it is free. `instead_of`: also where its artifact
/// is the one of that epoch.
pub(super) fn acquire<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    mut lease: LeaseRecord,
    instead_of: Option<u64>,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let entry = txn.get::<EntryRecord>(key)?;
    if entry.is_some_and(|entry| Some(entry.epoch) != instead_of) {
        return Ok(Response::Ready);
    }
    if txn.get::<FailureRecord>(key)?.is_some() {
        return Ok(Response::Failed);
    }
    if let Some(held) = txn.get::<LeaseRecord>(key)? {
        let ours = held.node == lease.node && held.request == lease.request;
        return Ok(if ours { Response::Granted(held.token) } else { Response::Held });
    }
    let LeaseRecord { token, node, request, .. } = lease;
    if let Some(refused) = revocations::refusal(txn, node)? {
        return Ok(refused);
    }
    if let Some(EpochRecord { pack, .. }) = txn.get(key)?
        && let Some(blob) = txn.get::<BlobRecord>(pack)?.filter(|blob| !blob.condemned)
    {
        txn.put(pack, &BlobRecord { leases: blob.leases + 1, ..blob })?;
        lease.pack = Some(pack);
    }
    txn.put(key, &lease)?;
    events.push(Event::LeaseGranted { key, token, node, request });
    Ok(Response::Granted(token))
}

/// The lease of `key` if `token` is the live one.
pub(super) fn live<V: View>(
    txn: &Txn<'_, V>,
    key: ArtifactKey,
    token: Token,
) -> Result<Option<LeaseRecord>, StateError> {
    Ok(txn.get::<LeaseRecord>(key)?.filter(|lease| lease.token == token))
}

/// Ends a lease that is live, and with it the list of pieces that was wanted under it.
pub(super) fn end<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    lease: &LeaseRecord,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    txn.remove::<LeaseRecord>(key);
    if let Some(pack) = lease.pack
        && let Some(blob) = txn.get::<BlobRecord>(pack)?
    {
        txn.put(pack, &BlobRecord { leases: blob.leases.saturating_sub(1), ..blob })?;
    }
    wanted::end(txn, key, events)?;
    events.push(Event::LeaseEnded { key, token: lease.token });
    Ok(())
}

/// Ends the leases of a node, whose artifacts nobody would take.
pub(super) fn end_all_of<V: View>(
    txn: &mut Txn<'_, V>,
    node: NodeId,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    for (key, lease) in table::leases(&*txn)? {
        if lease.node == node {
            end(txn, key, &lease, events)?;
        }
    }
    Ok(())
}

pub(super) fn expire<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    token: Token,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(lease) = live(txn, key, token)? else {
        return Ok(Response::Changed(false));
    };
    end(txn, key, &lease, events)?;
    Ok(Response::Changed(true))
}

pub(super) fn fail<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    record: &FailureRecord,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let token = record.token;
    if let Some(lease) = live(txn, key, token)? {
        end(txn, key, &lease, events)?;
        txn.put(key, record)?;
        events.push(Event::Failed { key, token, until_unix_ms: record.until_unix_ms });
        return Ok(Response::Done);
    }
    let retried = txn.get::<FailureRecord>(key)?.is_some_and(|f| f.token == token);
    Ok(if retried { Response::Done } else { Response::Stale })
}

pub(super) fn lift<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    token: Token,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let found = txn.get::<FailureRecord>(key)?.is_some_and(|f| f.token == token);
    if found {
        txn.remove::<FailureRecord>(key);
        events.push(Event::Lifted { key, token });
    }
    Ok(Response::Changed(found))
}
