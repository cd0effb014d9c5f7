//! `apply`: the meaning of every command.
//!
//! Invariant: pure. The answer and the changes follow from the state, the
//! command and its log index alone, so that state machines at the same applied
//! index are equal. No clock, no randomness, no I/O but reads of the state.

mod members;

use kiln_proto::{ArtifactKey, Digest, NodeId, Token};

use crate::{
    command::{AccessReport, Command, Publication, Response},
    table::{
        BlobRecord, Counters, EntryRecord, EpochRecord, FailureRecord, LeaseRecord, StateError,
        Txn, View,
    },
};

/// Most holders remembered for one pack: more would not find it any sooner.
const MOST_HOLDERS: usize = 32;
/// What `apply` did, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Published { key: ArtifactKey, pack: Digest },
    Tombstoned { key: ArtifactKey, pack: Digest },
    Replaced { key: ArtifactKey, pack: Digest },
    Pinned { key: ArtifactKey, pinned: bool },
    Stored { pack: Digest },
    Condemned { pack: Digest },
    Forgotten { pack: Digest },
    LeaseGranted { key: ArtifactKey, token: Token, node: NodeId },
    LeaseEnded { key: ArtifactKey, token: Token },
    Failed { key: ArtifactKey, token: Token, until_unix_ms: u64 },
    Lifted { key: ArtifactKey, token: Token },
    NodesChanged,
}

/// Applies `command`, committed at `index`, to `txn`.
pub(crate) fn apply<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    command: Command,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    match command {
        Command::Found { cluster, nodes } => members::found(txn, cluster, nodes, events),
        Command::Join(node) => members::join(txn, node, events),
        Command::Leave(node) => members::leave(txn, node, events),
        Command::Facts { node, facts } => members::set_facts(txn, node, facts, events),
        Command::SetVoter { node, voter } => members::set_voter(txn, node, voter, events),
        Command::SetVoters { voters, raise } => members::set_voters(txn, voters, raise),
        Command::Acquire { key, node, request } => acquire(
            txn,
            key,
            LeaseRecord { token: Token(index), node, request, pack: None },
            events,
        ),
        Command::Publish(publication) => publish(txn, publication, events),
        Command::Expire { key, token } => match live(txn, key, token)? {
            Some(lease) => {
                end_lease(txn, key, &lease, events)?;
                Ok(Response::Changed(true))
            }
            None => Ok(Response::Changed(false)),
        },
        Command::Fail { key, token, failure, until_unix_ms } => {
            let record = FailureRecord { token, failure, until_unix_ms };
            fail(txn, key, &record, events)
        }
        Command::Lift { key, token } => {
            let found = txn.get::<FailureRecord>(key)?.is_some_and(|f| f.token == token);
            if found {
                txn.remove::<FailureRecord>(key);
                events.push(Event::Lifted { key, token });
            }
            Ok(Response::Changed(found))
        }
        Command::MarkStored { pack } => mark_stored(txn, pack, events),
        Command::Report { node, report } => take_report(txn, node, report),
        Command::SetPinned { key, pinned } => {
            let Some(entry) = txn.get::<EntryRecord>(key)? else {
                return Ok(Response::Changed(false));
            };
            txn.put(key, &EntryRecord { pinned, ..entry })?;
            events.push(Event::Pinned { key, pinned });
            Ok(Response::Changed(true))
        }
        Command::Tombstone { key, reason } => tombstone(txn, key, reason, events),
        Command::Retire { key, epoch } => retire(txn, key, epoch),
        Command::Put { publication, create } => put(txn, index, publication, create, events),
        Command::Condemn { pack } => condemn(txn, pack, events),
        Command::Forget { pack } => {
            let condemned = txn.get::<BlobRecord>(pack)?.is_some_and(|b| b.condemned);
            if condemned {
                txn.remove::<BlobRecord>(pack);
                events.push(Event::Forgotten { pack });
            }
            Ok(Response::Changed(condemned))
        }
    }
}

fn acquire<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    mut lease: LeaseRecord,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    if txn.get::<EntryRecord>(key)?.is_some() {
        return Ok(Response::Ready);
    }
    if txn.get::<FailureRecord>(key)?.is_some() {
        return Ok(Response::Failed);
    }
    if let Some(held) = txn.get::<LeaseRecord>(key)? {
        let ours = held.node == lease.node && held.request == lease.request;
        return Ok(if ours { Response::Granted(held.token) } else { Response::Held });
    }
    let (token, node) = (lease.token, lease.node);
    if let Some(EpochRecord { pack, .. }) = txn.get(key)?
        && let Some(blob) = txn.get::<BlobRecord>(pack)?.filter(|blob| !blob.condemned)
    {
        txn.put(pack, &BlobRecord { leases: blob.leases + 1, ..blob })?;
        lease.pack = Some(pack);
    }
    txn.put(key, &lease)?;
    events.push(Event::LeaseGranted { key, token, node });
    Ok(Response::Granted(token))
}

/// The lease of `key` if `token` is the live one.
fn live<V: View>(
    txn: &Txn<'_, V>,
    key: ArtifactKey,
    token: Token,
) -> Result<Option<LeaseRecord>, StateError> {
    Ok(txn.get::<LeaseRecord>(key)?.filter(|lease| lease.token == token))
}

fn end_lease<V: View>(
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
    events.push(Event::LeaseEnded { key, token: lease.token });
    Ok(())
}

fn publish<V: View>(
    txn: &mut Txn<'_, V>,
    publication: Publication,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Publication { key, token, pack, .. } = publication;
    if let Some(entry) = txn.get::<EntryRecord>(key)? {
        if entry.token == token {
            return Ok(Response::Committed); // a retry of the publication that won
        }
        if entry.pack != pack {
            txn.put(key, &EntryRecord { differing: entry.differing + 1, ..entry })?;
            let counters = members::counters(txn)?;
            txn.put((), &Counters { differing: counters.differing + 1, ..counters })?;
        }
        return Ok(Response::Existing);
    }
    let Some(lease) = live(txn, key, token)? else {
        return Ok(Response::Stale);
    };
    if txn.get::<BlobRecord>(pack)?.is_some_and(|b| b.condemned) {
        return Ok(Response::Condemned);
    }
    end_lease(txn, key, &lease, events)?;
    begin_epoch(txn, publication, events)?;
    Ok(Response::Committed)
}

/// Gives a free key its artifact, which begins an epoch.
fn begin_epoch<V: View>(
    txn: &mut Txn<'_, V>,
    publication: Publication,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    let Publication { key, token, node, pack, pack_size, compile_seconds, manifest } = publication;
    let mut blob = txn.get::<BlobRecord>(pack)?.unwrap_or_default();
    blob.entries += 1;
    add_holder(&mut blob, node);
    txn.put(pack, &blob)?;
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

/// Overwrites, as the owners of the key's name expect: the last one counts.
fn put<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    publication: Publication,
    create: bool,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let (key, pack) = (publication.key, publication.pack);
    let old = txn.get::<EntryRecord>(key)?;
    match &old {
        Some(old) if old.pack == pack => return Ok(Response::Unchanged),
        Some(_) if create => return Ok(Response::Existing),
        _ => {}
    }
    if txn.get::<BlobRecord>(pack)?.is_some_and(|b| b.condemned) {
        return Ok(Response::Condemned);
    }
    if let Some(EntryRecord { epoch, pack: old, pinned, .. }) = old {
        end_epoch(txn, key, &EpochRecord { epoch, pack: old, reason: "replaced".into(), pinned })?;
        if let Some(blob) = txn.get::<BlobRecord>(old)? {
            let entries = blob.entries.saturating_sub(1);
            txn.put(old, &BlobRecord { entries, ..blob })?;
        }
        events.push(Event::Replaced { key, pack: old });
    }
    if let Some(lease) = txn.get::<LeaseRecord>(key)? {
        end_lease(txn, key, &lease, events)?;
    }
    if let Some(FailureRecord { token, .. }) = txn.get(key)? {
        txn.remove::<FailureRecord>(key);
        events.push(Event::Lifted { key, token });
    }
    begin_epoch(txn, Publication { token: Token(index), ..publication }, events)?;
    Ok(Response::Committed)
}

fn fail<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    record: &FailureRecord,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let token = record.token;
    if let Some(lease) = live(txn, key, token)? {
        end_lease(txn, key, &lease, events)?;
        txn.put(key, record)?;
        events.push(Event::Failed { key, token, until_unix_ms: record.until_unix_ms });
        return Ok(Response::Done);
    }
    let retried = txn.get::<FailureRecord>(key)?.is_some_and(|f| f.token == token);
    Ok(if retried { Response::Done } else { Response::Stale })
}

fn mark_stored<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let known = txn.get::<BlobRecord>(pack)?.filter(|b| !b.condemned && !b.stored);
    let Some(blob) = known else {
        return Ok(Response::Changed(false));
    };
    txn.put(pack, &BlobRecord { stored: true, ..blob })?;
    events.push(Event::Stored { pack });
    Ok(Response::Changed(true))
}

fn take_report<V: View>(
    txn: &mut Txn<'_, V>,
    node: NodeId,
    report: AccessReport,
) -> Result<Response, StateError> {
    for (key, hits) in report.hits {
        if let Some(EntryRecord { pack, .. }) = txn.get(key)?
            && let Some(blob) = txn.get::<BlobRecord>(pack)?
        {
            let hits = blob.hits.saturating_add(hits.into());
            txn.put(pack, &BlobRecord { hits, ..blob })?;
        }
    }
    for pack in report.gained {
        if let Some(mut blob) = txn.get::<BlobRecord>(pack)? {
            add_holder(&mut blob, node);
            txn.put(pack, &blob)?;
        }
    }
    for pack in report.lost {
        if let Some(mut blob) = txn.get::<BlobRecord>(pack)? {
            blob.holders.retain(|holder| *holder != node);
            txn.put(pack, &blob)?;
        }
    }
    Ok(Response::Done)
}

fn add_holder(blob: &mut BlobRecord, node: NodeId) {
    if blob.holders.len() < MOST_HOLDERS
        && let Err(at) = blob.holders.binary_search(&node)
    {
        blob.holders.insert(at, node);
    }
}

fn tombstone<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    reason: String,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(entry) = txn.get::<EntryRecord>(key)? else {
        return Ok(Response::Changed(false));
    };
    let pack = entry.pack;
    end_epoch(txn, key, &EpochRecord { epoch: entry.epoch, pack, reason, pinned: false })?;
    if let Some(blob) = txn.get::<BlobRecord>(pack)? {
        txn.put(pack, &BlobRecord { entries: blob.entries.saturating_sub(1), ..blob })?;
    }
    events.push(Event::Tombstoned { key, pack });
    Ok(Response::Changed(true))
}

fn retire<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    epoch: u64,
) -> Result<Response, StateError> {
    let Some(entry) = txn.get::<EntryRecord>(key)?.filter(|e| e.epoch == epoch) else {
        return Ok(Response::Changed(false)); // somebody else saw to it
    };
    let (pack, pinned) = (entry.pack, entry.pinned);
    end_epoch(txn, key, &EpochRecord { epoch, pack, reason: "bytes lost".into(), pinned })?;
    if let Some(blob) = txn.get::<BlobRecord>(pack)? {
        let entries = blob.entries.saturating_sub(1);
        // Nobody had it: whoever claimed to was wrong.
        txn.put(pack, &BlobRecord { entries, stored: false, holders: Vec::new(), ..blob })?;
    }
    Ok(Response::Changed(true))
}

/// Takes the artifact of `key` away; its next one begins a new epoch.
fn end_epoch<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    last: &EpochRecord,
) -> Result<(), StateError> {
    txn.remove::<EntryRecord>(key);
    txn.put(key, last)?;
    let counters = members::counters(txn)?;
    txn.put((), &Counters { entries: counters.entries.saturating_sub(1), ..counters })
}

fn condemn<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let blob = txn.get::<BlobRecord>(pack)?.unwrap_or_default();
    if blob.entries > 0 || blob.leases > 0 {
        return Ok(Response::Changed(false));
    }
    if !blob.condemned {
        txn.put(pack, &BlobRecord { condemned: true, ..blob })?;
        events.push(Event::Condemned { pack });
    }
    Ok(Response::Changed(true))
}

#[cfg(test)]
pub(crate) mod tests;
