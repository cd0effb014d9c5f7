//! Writes in an order, each at most once.
//!
//! Invariant: of one session, a write that was superseded never applies once its
//! successor did, however late it comes; and a write that comes twice applies once.
//! A session's record is as long as the writes that its node has under way.

use kiln_proto::{NodeId, Token};

use super::{Event, epochs, packs};
use crate::{
    command::{Change, OrderedWrite, Response},
    table::{EntryRecord, SessionRecord, StateError, Txn, View},
};

pub(super) fn open_session<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    node: NodeId,
    nonce: u64,
) -> Result<Response, StateError> {
    if let Some(known) = txn.get::<SessionRecord>(node)?.filter(|known| known.nonce == nonce) {
        return Ok(Response::Session(known.session));
    }
    let session = Token(index);
    txn.put(node, &SessionRecord { session, nonce, ..SessionRecord::default() })?;
    Ok(Response::Session(session))
}

pub(super) fn write<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    write: OrderedWrite,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let OrderedWrite { node, session, sequence, floor, supersedes, change } = write;
    let Some(mut record) = txn.get::<SessionRecord>(node)?.filter(|r| r.session == session) else {
        return Ok(Response::StaleSession);
    };
    let over = |record: &SessionRecord, sequence: u64| {
        record.done.binary_search_by_key(&sequence, |(known, _)| *known)
    };
    if sequence < record.floor {
        return Ok(Response::Repeated(false));
    }
    if let Ok(at) = over(&record, sequence) {
        return Ok(Response::Repeated(record.done[at].1));
    }
    let response = match change {
        Change::Nothing => Response::Done,
        Change::Put { publication, create, also } => {
            let pack = publication.pack;
            let response = epochs::put(txn, index, Some(index), publication, create, events)?;
            packs::add_holders(txn, pack, &also, &response)?;
            response
        }
        Change::Remove { key, reason } => epochs::remove(txn, key, reason, events)?,
        Change::Withdraw { key } => {
            let ours = |entry: EntryRecord| entry.manifest.signer == node;
            match txn.get::<EntryRecord>(key)?.is_some_and(ours) {
                true => epochs::remove(txn, key, "a later write was given up".into(), events)?,
                false => Response::Changed(false),
            }
        }
    };
    let changed = matches!(response, Response::Committed | Response::Changed(true));
    let ended = supersedes.into_iter().map(|earlier| (earlier, false)).chain([(sequence, changed)]);
    for (sequence, changed) in ended {
        if let Err(at) = over(&record, sequence) {
            record.done.insert(at, (sequence, changed));
        }
    }
    record.floor = record.floor.max(floor);
    record.done.retain(|(sequence, _)| *sequence >= record.floor);
    txn.put(node, &record)?;
    Ok(response)
}
