//! The artifacts of a key, one after the other.
//!
//! Invariant: a key's artifact never changes within an epoch, and epochs rise. An
//! epoch ends when its artifact is replaced, removed, or proven to be nowhere;
//! never because somebody could not reach it.

use kiln_proto::{ArtifactKey, Digest, Token};

use super::{
    Event, leases, members, packs,
    references::{self, Piece},
    revocations, uses,
};
use crate::{
    command::{Asked, Publication, Response},
    table::{
        self, BlobRecord, Counters, EntryRecord, EpochRecord, FailureRecord, LeaseRecord,
        PublishedRecord, StateError, Txn, View,
    },
};

/// Gives a key its artifact under a live token. `index`, that of the command: names
/// the pack's object if it has no name yet; without it, a condemned pack is refused.
/// `pieces`: what the artifact is stitched of.
pub(super) fn publish<V: View>(
    txn: &mut Txn<'_, V>,
    index: Option<u64>,
    publication: Publication,
    pieces: Option<Vec<Piece>>,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Publication { key, token, pack, .. } = publication;
    if let Some(refused) = revocations::refusal(txn, publication.manifest.signer)? {
        return Ok(refused);
    }
    let old = txn.get::<EntryRecord>(key)?;
    if old.as_ref().is_some_and(|old| old.token == token) {
        return Ok(Response::Committed); // a retry of the publication that won
    }
    match (leases::live(txn, key, token)?, old) {
        (None, None) => Ok(Response::Stale),
        (None, Some(entry)) => {
            if entry.pack != pack {
                txn.put(key, &EntryRecord { differing: entry.differing + 1, ..entry })?;
                let counters = members::counters(txn)?;
                txn.put((), &Counters { differing: counters.differing + 1, ..counters })?;
            }
            Ok(Response::Existing)
        }
        (Some(lease), old) => {
            if index.is_none() && packs::is_condemned(txn, pack)? {
                return Ok(Response::Condemned);
            }
            if let Some(pieces) = &pieces
                && let Some(refused) = references::refusal(txn, key, pieces)?
            {
                return Ok(refused);
            }
            leases::end(txn, key, &lease, events)?;
            if let Some(old) = old {
                // A lease beside an artifact: that one could not be reached.
                replace(txn, key, &old, pack, "its bytes could not be reached", events)?;
            }
            begin(txn, index, publication, events)?;
            if let Some(pieces) = pieces {
                references::refer(txn, key, pieces)?;
            }
            Ok(Response::Committed)
        }
    }
}

/// Overwrites, as the owners of the key's name expect: the last one counts.
pub(super) fn put<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    object: Option<u64>,
    publication: Publication,
    create: bool,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let (key, pack, node) = (publication.key, publication.pack, publication.node);
    if let Some(refused) = revocations::refusal(txn, publication.manifest.signer)? {
        return Ok(refused);
    }
    let old = txn.get::<EntryRecord>(key)?;
    match &old {
        Some(old) if old.pack == pack => {
            // Who puts it again has it: the bytes may be nowhere else any more.
            packs::add_holder(txn, pack, node)?;
            return Ok(Response::Unchanged);
        }
        Some(_) if create => return Ok(Response::Existing),
        _ => {}
    }
    if object.is_none() && packs::is_condemned(txn, pack)? {
        return Ok(Response::Condemned);
    }
    if let Some(old) = old {
        replace(txn, key, &old, pack, "replaced", events)?;
    }
    if let Some(lease) = txn.get::<LeaseRecord>(key)? {
        leases::end(txn, key, &lease, events)?;
    }
    if let Some(FailureRecord { token, .. }) = txn.get(key)? {
        txn.remove::<FailureRecord>(key);
        events.push(Event::Lifted { key, token });
    }
    begin(txn, object, Publication { token: Token(index), ..publication }, events)?;
    Ok(Response::Committed)
}

/// Removes a wrong artifact; its bytes are to be dropped everywhere.
pub(super) fn remove<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    reason: String,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(entry) = txn.get::<EntryRecord>(key)? else {
        return Ok(Response::Changed(false));
    };
    let pack = entry.pack;
    end(txn, key, &entry, &EpochRecord { epoch: entry.epoch, pack, reason, pinned: false })?;
    uses::forget(txn, key)?;
    events.push(Event::Tombstoned { key, pack });
    remove_wholes(txn, key, "is wrong", events)?;
    Ok(Response::Changed(true))
}

/// Ends an epoch whose bytes are nowhere. Only places that may have the bytes count,
/// by what is committed: who asked knew an older list, perhaps.
pub(super) fn retire<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    epoch: u64,
    asked: &Asked,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(entry) = txn.get::<EntryRecord>(key)?.filter(|e| e.epoch == epoch) else {
        return Ok(Response::Changed(false)); // somebody else saw to it
    };
    let blob = txn.get::<BlobRecord>(entry.pack)?.unwrap_or_default();
    let nodes = table::nodes(&*txn)?;
    let answered = |node| asked.nodes.contains(node) || nodes.get(node).is_none_or(|n| n.left());
    let holders_answered = match packs::knows_all_holders(&blob) {
        true => blob.holders.iter().all(answered),
        // More nodes may have it than the record has room for.
        false => nodes.keys().all(answered),
    };
    if !holders_answered || (blob.stored && !asked.object) {
        return Ok(Response::NotProven);
    }
    retire_unproven(txn, key, epoch, events)
}

/// [`retire`] as earlier versions did it.
pub(super) fn retire_unproven<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    epoch: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(entry) = txn.get::<EntryRecord>(key)?.filter(|e| e.epoch == epoch) else {
        return Ok(Response::Changed(false));
    };
    let (pack, pinned) = (entry.pack, entry.pinned);
    end(txn, key, &entry, &EpochRecord { epoch, pack, reason: "bytes lost".into(), pinned })?;
    uses::forget(txn, key)?;
    if let Some(blob) = txn.get::<BlobRecord>(pack)? {
        // Nobody had it: whoever claimed to was wrong.
        txn.put(pack, &BlobRecord { stored: false, holders: Vec::new(), ..blob })?;
    }
    events.push(Event::Retired { key });
    remove_wholes(txn, key, "is lost", events)?;
    Ok(Response::Changed(true))
}

/// Ends the epoch of `old`, which an artifact of the pack `next` follows; a pin stays.
fn replace<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    old: &EntryRecord,
    next: Digest,
    why: &str,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    let (epoch, pack, pinned) = (old.epoch, old.pack, old.pinned);
    end(txn, key, old, &EpochRecord { epoch, pack, reason: why.into(), pinned })?;
    events.push(Event::Replaced { key, pack });
    if pack == next {
        return Ok(()); // the very bytes that wholes were made with
    }
    remove_wholes(txn, key, "has other bytes now", events)
}

/// The pack of `piece` is not its artifact's any more: whatever is stitched of it goes
/// with it, and keeps its pin, since it is compiled again for what it has of that piece.
fn remove_wholes<V: View>(
    txn: &mut Txn<'_, V>,
    piece: ArtifactKey,
    why: &str,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    for whole in table::wholes_of(&*txn, piece)? {
        let Some(entry) = txn.get::<EntryRecord>(whole)? else {
            debug_assert!(false, "a reference outlived its whole");
            continue;
        };
        let (epoch, pack, pinned) = (entry.epoch, entry.pack, entry.pinned);
        let reason = format!("its piece {} {why}", piece.short());
        end(txn, whole, &entry, &EpochRecord { epoch, pack, reason, pinned })?;
        uses::forget(txn, whole)?;
        events.push(Event::Tombstoned { key: whole, pack });
    }
    Ok(())
}

/// Gives a free key its artifact, which begins an epoch.
fn begin<V: View>(
    txn: &mut Txn<'_, V>,
    object: Option<u64>,
    publication: Publication,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    let Publication { key, token, node, pack, pack_size, compile_seconds, manifest } = publication;
    packs::refer(txn, pack, node, object)?;
    let last = txn.get::<EpochRecord>(key)?;
    let entry = EntryRecord {
        epoch: last.as_ref().map_or(1, |e| e.epoch + 1),
        token,
        pinned: last.is_some_and(|e| e.pinned),
        differing: 0,
        pack,
        pack_size,
        compile_seconds,
        manifest,
    };
    txn.put(key, &entry)?;
    let counters = members::counters(txn)?;
    txn.put((), &Counters { entries: counters.entries + 1, ..counters })?;
    events.push(Event::Published { key, pack });
    Ok(())
}

/// Takes the artifact `entry` of `key` away; the next one begins a new epoch.
fn end<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    entry: &EntryRecord,
    last: &EpochRecord,
) -> Result<(), StateError> {
    txn.remove::<EntryRecord>(key);
    txn.remove::<PublishedRecord>(key);
    references::unrefer(txn, key)?;
    txn.put(key, last)?;
    if let Some(blob) = txn.get::<BlobRecord>(entry.pack)? {
        let entries = blob.entries.saturating_sub(1);
        txn.put(entry.pack, &BlobRecord { entries, ..blob })?;
    }
    let counters = members::counters(txn)?;
    txn.put((), &Counters { entries: counters.entries.saturating_sub(1), ..counters })
}
