//! The keys that nodes sign with, one after the other, and revocations of single keys.
//!
//! Invariant: a node has one key that signs, and a key is one node's. What is published under a
//! key, and when, is told by the leader that verified it; within a time for which the key is
//! revoked nothing becomes an artifact, and nothing that did is left. Of what was published
//! before that was kept, no time is known: it goes with every revocation of the node's first key.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{ArtifactKey, Digest, NodeId};

use super::{Event, epochs, leases};
use crate::{
    command::Response,
    signing::{KeyChange, KeyRevocation, MOST_INTERVALS, MOST_KEYS, Publishes, Stamped, refusal},
    table::{
        self, EntryRecord, KeyRecord, NodeRecord, PublishedRecord, RevocationRecord, StateError,
        Txn, View,
    },
};

pub(super) fn change<V: View>(
    txn: &mut Txn<'_, V>,
    change: KeyChange,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    match change {
        KeyChange::Rotate { node, key, at_unix_ms } => rotate(txn, node, key, at_unix_ms, events),
        KeyChange::Revoke { key, revocation } => revoke(txn, key, revocation, events),
    }
}

/// The key with which a node signs, and how many it had before.
pub(super) fn current(
    view: &impl View,
    node: NodeId,
    first: [u8; 32],
) -> Result<([u8; 32], u32), StateError> {
    let mut last = (first, 0);
    for (key, record) in table::keys(view)? {
        if record.node == node && record.number > last.1 {
            last = (key, record.number);
        }
    }
    Ok(last)
}

fn rotate<V: View>(
    txn: &mut Txn<'_, V>,
    node: NodeId,
    key: [u8; 32],
    at_unix_ms: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let refuse = |why: String| Ok(Response::Refused(why));
    let Some(known) = txn.get::<NodeRecord>(node)?.filter(|known| !known.left()) else {
        return refuse(format!("node {node} is no member"));
    };
    let (now, before) = current(txn, node, known.key)?;
    if now == key {
        return Ok(Response::Changed(false));
    }
    if let Some(revoked) = txn.get::<RevocationRecord>(node)? {
        return refuse(format!("node {node}'s signature was revoked: {}", revoked.reason));
    }
    let Ok(public) = VerifyingKey::from_bytes(&key) else {
        return refuse("the new key is no ed25519 public key".into());
    };
    let is_known = txn.get::<KeyRecord>(Digest::from_bytes(key))?.is_some()
        || table::nodes(txn)?.values().any(|other| other.key == key);
    if is_known {
        return refuse("a key that was somebody's before is no new one".into());
    }
    if before >= MOST_KEYS {
        return refuse(format!("node {node} has had {MOST_KEYS} keys: let it join anew"));
    }
    let trust = table::trust(txn)?;
    let certified = trust.certificate(&public).map(|of| of.says.node.is_none_or(|of| of == node));
    if trust.is_required() && certified != Some(true) {
        return refuse(format!(
            "the root has no certificate of node {node}'s new key {}: kiln signer issue, then \
             kiln signer rotate with that file",
            hex::encode(key)
        ));
    }
    let record = KeyRecord { node, number: before + 1, since_unix_ms: at_unix_ms, revoked: vec![] };
    txn.put(Digest::from_bytes(key), &record)?;
    events.push(Event::NodesChanged);
    Ok(Response::Changed(true))
}

fn revoke<V: View>(
    txn: &mut Txn<'_, V>,
    key: [u8; 32],
    revocation: KeyRevocation,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let refuse = |why: String| Ok(Response::Refused(why));
    let known = txn.get::<KeyRecord>(Digest::from_bytes(key))?;
    let nodes = table::nodes(txn)?;
    // A disk that was copied before it joined has its key twice.
    let mut of: Vec<NodeId> =
        nodes.iter().filter(|(_, node)| node.key == key).map(|(id, _)| *id).collect();
    let firsts = of.clone();
    of.extend(known.as_ref().map(|known| known.node).filter(|node| !of.contains(node)));
    let Some(first) = of.first().copied() else {
        return refuse("no node ever signed with this key: kiln signer list".into());
    };
    let mut record = known.unwrap_or(KeyRecord {
        node: first,
        number: 0,
        since_unix_ms: 0,
        revoked: Vec::new(),
    });
    let KeyRevocation { within, at_unix_ms, .. } = revocation;
    let why = format!("the key that signed it was revoked: {}", revocation.reason);
    if !record.revoked.iter().any(|known| known.within == within) {
        if record.revoked.len() >= MOST_INTERVALS {
            return refuse(format!(
                "the key is revoked for {MOST_INTERVALS} times already: revoke it for one that \
                 has them all"
            ));
        }
        record.revoked.push(revocation);
    }
    txn.put(Digest::from_bytes(key), &record)?;
    events.push(Event::NodesChanged);
    if within.has(at_unix_ms) {
        for node in &of {
            let signs = nodes.get(node).map(|known| current(txn, *node, known.key)).transpose()?;
            if signs.is_some_and(|(signs, _)| signs == key) {
                leases::end_all_of(txn, *node, events)?;
            }
        }
    }
    let mut removed = 0;
    for byte in 0..=u8::MAX {
        let entries = table::entries_starting_with(txn, byte)?;
        let of_signer = entries.into_iter().filter(|(_, e)| of.contains(&e.manifest.signer));
        for (artifact, entry) in of_signer {
            let goes = match txn.get::<PublishedRecord>(artifact)? {
                Some(published) => published.by == key && within.has(published.at_unix_ms),
                None => firsts.contains(&entry.manifest.signer),
            };
            if goes
                && epochs::remove(txn, artifact, why.clone(), events)? == Response::Changed(true)
            {
                removed += 1;
            }
        }
    }
    Ok(Response::Removed(removed))
}

/// Why nothing that is published under this key at that time becomes an artifact.
pub(super) fn refused<V: View>(
    txn: &Txn<'_, V>,
    stamped: &Stamped,
) -> Result<Option<Response>, StateError> {
    let record = txn.get::<KeyRecord>(Digest::from_bytes(stamped.by))?;
    let revoked = record.iter().flat_map(|record| &record.revoked);
    let why = revoked.clone().find(|revoked| revoked.within.has(stamped.at_unix_ms));
    let signer = stamped.what.publication().map_or(0, |publication| publication.manifest.signer);
    Ok(why.map(|why| Response::Refused(refusal(signer, &why.reason))))
}

/// The artifact of a key, and its epoch, before a publication.
pub(super) fn epoch_of<V: View>(
    txn: &Txn<'_, V>,
    what: &Publishes,
) -> Result<Option<(ArtifactKey, Option<u64>)>, StateError> {
    let Some(key) = what.publication().map(|publication| publication.key) else { return Ok(None) };
    Ok(Some((key, txn.get::<EntryRecord>(key)?.map(|entry| entry.epoch))))
}

/// Notes key and time where the publication began an epoch.
pub(super) fn note<V: View>(
    txn: &mut Txn<'_, V>,
    (artifact, before): (ArtifactKey, Option<u64>),
    published: &PublishedRecord,
) -> Result<(), StateError> {
    match txn.get::<EntryRecord>(artifact)?.map(|entry| entry.epoch) {
        Some(epoch) if Some(epoch) != before => txn.put(artifact, published),
        _ => Ok(()),
    }
}

/// Whether that key was revoked, for any time at all: it is nobody's under another id.
pub(super) fn is_revoked<V: View>(txn: &Txn<'_, V>, key: &[u8; 32]) -> Result<bool, StateError> {
    let Some(record) = txn.get::<KeyRecord>(Digest::from_bytes(*key))? else { return Ok(false) };
    Ok(!record.revoked.is_empty()
        || record.number > 0
        || txn.get::<RevocationRecord>(record.node)?.is_some())
}
