//! Publications: with a note of key and time, and without.
//!
//! Invariant: what a signer publishes of whom any key is noted has a note, and is signed under the
//! key that the note names. What is refused changes nothing, but that a write of a session is
//! over; and one that won before is told so, whatever was revoked since.

use super::{Event, epochs, keys, packs, revocations, writes};
use crate::{
    command::{Change, OrderedWrite, Response},
    signing::{Publishes, Stamped},
    table::{EntryRecord, PublishedRecord, StateError, Txn, View},
};

/// A publication without a note: of a log of an earlier version, or of a leader that knew of no
/// key but the signer's first one when it proposed it.
pub(super) fn plain<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    what: Publishes,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let signer = what.publication().map(|publication| publication.manifest.signer);
    if let Some(signer) = signer
        && let Some(refused) = keys::without_note(txn, signer)?
    {
        return refuse(txn, index, what, refused, events);
    }
    carry_out(txn, index, what, events)
}

/// A publication, with a note of when it was and under which key.
pub(super) fn stamped<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    stamped: Stamped,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let noted_unix_ms = match keys::judge(txn, &stamped)? {
        Ok(noted_unix_ms) => noted_unix_ms,
        Err(refused) => return refuse(txn, index, stamped.what, refused, events),
    };
    let Stamped { by, what, .. } = stamped;
    if let Publishes::Commit { publication, .. } | Publishes::CommitWhole { publication, .. } =
        &what
        && let Some(refused) = revocations::refusal(txn, publication.manifest.signer)?
    {
        return refuse(txn, index, what, refused, events);
    }
    let before = keys::epoch_of(txn, &what)?;
    let response = carry_out(txn, index, what, events)?;
    if let Some(before) = before {
        keys::note(txn, before, &PublishedRecord { by, at_unix_ms: noted_unix_ms })?;
    }
    Ok(response)
}

fn carry_out<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    what: Publishes,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let (publication, also, pieces) = match what {
        Publishes::Commit { publication, also } => (publication, also, None),
        Publishes::CommitWhole { publication, also, pieces } => (publication, also, Some(pieces)),
        Publishes::Write(write) => return writes::write(txn, index, write, events),
    };
    let pack = publication.pack;
    let response = epochs::publish(txn, Some(index), publication, pieces, events)?;
    packs::add_holders(txn, pack, &also, &response)?;
    Ok(response)
}

/// The answer to what is `refused`, unless it came before and is over.
fn refuse<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    what: Publishes,
    refused: Response,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    match what {
        Publishes::Write(write) => {
            // It is over all the same.
            let over = OrderedWrite { change: Change::Nothing, ..write };
            Ok(match writes::write(txn, index, over, events)? {
                before @ (Response::Repeated(_) | Response::StaleSession) => before,
                _ => refused,
            })
        }
        Publishes::Commit { publication, .. } | Publishes::CommitWhole { publication, .. } => {
            let entry = txn.get::<EntryRecord>(publication.key)?;
            Ok(match entry.is_some_and(|entry| entry.token == publication.token) {
                true => Response::Committed,
                false => refused,
            })
        }
    }
}
