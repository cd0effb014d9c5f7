//! The keys that nodes sign with, one after the other, and revocations of single keys.
//!
//! Invariant: a node has one key that signs, and a key is one node's. What is published under a
//! key, and when, is told by the leader that verified it, and the key is judged here again where
//! there are several; within a time for which the key is revoked nothing becomes an artifact, and
//! nothing that did is left. A leader's clock may be behind another's: what comes after a
//! revocation in the log is not earlier than it. Of what was published before that was kept, no
//! time is known: it goes with every revocation of the node's first key.

use ed25519_dalek::VerifyingKey;
use kiln_proto::{ArtifactKey, Digest, NodeId};

use super::{Event, epochs, leases};
use crate::{
    command::Response,
    signing::{
        self, Interval, KeyChange, KeyRevocation, MOST_INTERVALS, MOST_KEYS, Publishes, Stamped,
    },
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
    // Who says "from now on" may have a clock that is ahead of the leader's.
    let within = Interval { after_unix_ms: within.after_unix_ms.min(at_unix_ms), ..within };
    let revocation = KeyRevocation { within, ..revocation };
    let why = format!("the key that signed it was revoked: {}", revocation.reason);
    if !record.revoked.iter().any(|known| known.within.covers(&within)) {
        record.revoked.retain(|known| !within.covers(&known.within));
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

/// The refusal of what `signer` publishes without a note of its key, once any of its keys has a
/// record: under which of them it was verified, and when, would be known to nobody.
pub(super) fn without_note<V: View>(
    txn: &Txn<'_, V>,
    signer: NodeId,
) -> Result<Option<Response>, StateError> {
    let records = table::keys(txn)?;
    if records.is_empty() {
        return Ok(None);
    }
    let first = txn.get::<NodeRecord>(signer)?.map(|known| known.key);
    let has_record =
        records.iter().any(|(key, record)| record.node == signer || Some(*key) == first);
    Ok(has_record.then(|| {
        Response::Refused(format!(
            "a key of node {signer} was changed or revoked while this was published: publish it \
             again"
        ))
    }))
}

/// The time that is noted of a publication; or the refusal of one whose note names a key that did
/// not sign it, or that is revoked for that time.
pub(super) fn judge<V: View>(
    txn: &Txn<'_, V>,
    Stamped { by, at_unix_ms, what }: &Stamped,
) -> Result<Result<u64, Response>, StateError> {
    let Some(publication) = what.publication() else { return Ok(Ok(*at_unix_ms)) };
    let (manifest, signer) = (&publication.manifest, publication.manifest.signer);
    let record = txn.get::<KeyRecord>(Digest::from_bytes(*by))?;
    let is_first = txn.get::<NodeRecord>(signer)?.is_some_and(|known| known.key == *by);
    let is_later = |record: &KeyRecord| record.node == signer && record.number > 0;
    let is_known = is_first || record.as_ref().is_some_and(is_later);
    let has_several = table::keys(txn)?.iter().any(|(_, record)| is_later(record));
    let signed = || VerifyingKey::from_bytes(by).is_ok_and(|by| manifest.is_signed_by(&by));
    if !is_known || (has_several && !signed()) {
        return Ok(Err(Response::Refused(format!(
            "what is noted of it is no key with which node {signer} signed it"
        ))));
    }
    let revoked = record.map(|record| record.revoked).unwrap_or_default();
    Ok(match signing::refused_at(&revoked, *at_unix_ms) {
        Some(why) => Err(Response::Refused(signing::refusal(signer, &why.reason))),
        None => Ok(signing::noted_at(&revoked, *at_unix_ms)),
    })
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
    Ok(!record.revoked.is_empty() || txn.get::<RevocationRecord>(record.node)?.is_some())
}

/// The node that has this key as one of several. It is nobody's under another id: who has an
/// earlier one may have copied it, and a later one was never a candidate's.
pub(super) fn one_of_several<V: View>(
    txn: &Txn<'_, V>,
    key: &[u8; 32],
) -> Result<Option<NodeId>, StateError> {
    let record = txn.get::<KeyRecord>(Digest::from_bytes(*key))?;
    if let Some(later) = record.filter(|record| record.number > 0) {
        return Ok(Some(later.node));
    }
    for (id, node) in table::nodes(txn)? {
        if node.key == *key && current(txn, id, node.key)?.0 != *key {
            return Ok(Some(id));
        }
    }
    Ok(None)
}
