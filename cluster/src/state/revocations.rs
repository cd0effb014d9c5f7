//! Signers whose signatures count no more.
//!
//! Invariant: from the command on that revokes a signer, nothing that it signed becomes an
//! artifact of a key, whatever lease or session it is published under; and none that it
//! signed is left, unless the command says that what there was stays.

use kiln_proto::{ArtifactKey, NodeId};

use super::{Event, epochs, keys, leases};
use crate::{
    command::{Response, Revocation},
    table::{self, NodeRecord, RevocationRecord, StateError, Txn, View},
};

/// Revokes a signer. Who was revoked before stays so, for the first reason; a second time may
/// remove what the first one left, never the reverse.
pub(super) fn revoke<V: View>(
    txn: &mut Txn<'_, V>,
    revocation: Revocation,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Revocation { signer, keep, reason, by, at_unix_ms } = revocation;
    if txn.get::<NodeRecord>(signer)?.is_none() {
        return Ok(Response::Refused(format!("there was never a node {signer}")));
    }
    let why = format!("its signer, node {signer}, was revoked: {reason}");
    let record = match txn.get::<RevocationRecord>(signer)? {
        None => RevocationRecord { keep, reason, by, at_unix_ms },
        Some(known) => RevocationRecord { keep: keep && known.keep, ..known },
    };
    txn.put(signer, &record)?;
    events.push(Event::NodesChanged);
    leases::end_all_of(txn, signer, events)?;
    let mut removed = 0;
    if !keep {
        for first in 0..=u8::MAX {
            for key in signed_by(&*txn, signer, first)? {
                if epochs::remove(txn, key, why.clone(), events)? == Response::Changed(true) {
                    removed += 1;
                }
            }
        }
    }
    Ok(Response::Removed(removed))
}

/// The keys that begin with the byte `first` and whose artifact `signer` signed: a part of
/// them at a time, so that of an index of millions only what goes is in memory as a whole.
fn signed_by(view: &impl View, signer: NodeId, first: u8) -> Result<Vec<ArtifactKey>, StateError> {
    let entries = table::entries_starting_with(view, first)?;
    let of_signer = entries.into_iter().filter(|(_, entry)| entry.manifest.signer == signer);
    Ok(of_signer.map(|(key, _)| key).collect())
}

/// The refusal of a publication whose signer was revoked.
pub(super) fn refusal<V: View>(
    txn: &Txn<'_, V>,
    signer: NodeId,
) -> Result<Option<Response>, StateError> {
    let revoked = txn.get::<RevocationRecord>(signer)?;
    Ok(revoked.map(|record| {
        Response::Refused(format!("node {signer}'s signature was revoked: {}", record.reason))
    }))
}

/// Whether a node of that key was revoked: a key, once lost, is nobody's under another id.
pub(super) fn is_revoked_key<V: View>(
    txn: &Txn<'_, V>,
    key: &[u8; 32],
) -> Result<bool, StateError> {
    if keys::is_revoked(txn, key)? {
        return Ok(true);
    }
    let revoked = table::revocations(txn)?;
    Ok(table::nodes(txn)?.iter().any(|(id, node)| revoked.contains_key(id) && node.key == *key))
}
