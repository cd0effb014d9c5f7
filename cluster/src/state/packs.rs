//! What the index knows of packs: who has one, and what its object is called.
//!
//! Invariant: a pack that an entry or an open lease refers to is not condemned, and
//! a generation that was condemned is never again the one of a pack that is: so who
//! deletes the object of a condemned generation, however late, deletes nothing that
//! anybody refers to.

use kiln_proto::{Digest, NodeId};

use super::{Event, members};
use crate::{
    command::{AccessReport, Response},
    table::{BlobRecord, EntryRecord, ObjectRecord, StateError, Txn, View},
};

/// Most holders remembered for one pack: more would not find it any sooner.
const MOST_HOLDERS: usize = 32;
/// Bits of a generation that the log index has; the others are of the cluster's name.
const INDEX_BITS: u32 = 40;

/// Whether the record has every node that was told to have the pack.
pub(super) fn knows_all_holders(blob: &BlobRecord) -> bool {
    blob.holders.len() < MOST_HOLDERS
}

pub(super) fn is_condemned<V: View>(txn: &Txn<'_, V>, pack: Digest) -> Result<bool, StateError> {
    Ok(txn.get::<BlobRecord>(pack)?.is_some_and(|blob| blob.condemned))
}

fn generation<V: View>(txn: &Txn<'_, V>, pack: Digest) -> Result<u64, StateError> {
    Ok(txn.get::<ObjectRecord>(pack)?.unwrap_or_default().generation)
}

/// One more entry refers to the pack, which `node` has. `object`: what its object is
/// called if this is the first one, or the first since the pack was condemned.
pub(super) fn refer<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    node: NodeId,
    object: Option<u64>,
) -> Result<(), StateError> {
    let mut blob = txn.get::<BlobRecord>(pack)?;
    if let Some(index) = object
        && blob.as_ref().is_none_or(|blob| blob.condemned)
    {
        // The log index alone is new within this cluster; another one may have left
        // objects in the same store.
        let cluster = members::counters(txn)?.cluster;
        let generation = cluster << INDEX_BITS | index;
        txn.put(pack, &ObjectRecord { generation })?;
        if let Some(blob) = &mut blob {
            // The object will be deleted; the copies of nodes stay.
            (blob.condemned, blob.stored) = (false, false);
        }
    }
    let mut blob = blob.unwrap_or_default();
    debug_assert!(!blob.condemned, "an entry refers to a condemned pack");
    blob.entries += 1;
    txn.put(pack, &blob)?;
    add_holder(txn, pack, node)
}

pub(super) fn add_holder<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    node: NodeId,
) -> Result<(), StateError> {
    if let Some(mut blob) = txn.get::<BlobRecord>(pack)?
        && blob.holders.len() < MOST_HOLDERS
        && let Err(at) = blob.holders.binary_search(&node)
    {
        blob.holders.insert(at, node);
        txn.put(pack, &blob)?;
    }
    Ok(())
}

/// Adds the other nodes that have what was committed, or was there already.
pub(super) fn add_holders<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    also: &[NodeId],
    response: &Response,
) -> Result<(), StateError> {
    if matches!(response, Response::Committed | Response::Unchanged) {
        for node in also {
            add_holder(txn, pack, *node)?;
        }
    }
    Ok(())
}

pub(super) fn report<V: View>(
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
        add_holder(txn, pack, node)?;
    }
    for pack in report.lost {
        if let Some(mut blob) = txn.get::<BlobRecord>(pack)? {
            blob.holders.retain(|holder| *holder != node);
            txn.put(pack, &blob)?;
        }
    }
    Ok(Response::Done)
}

/// The object of this generation is there; false for another than the present one.
pub(super) fn store_object<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    of: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let known = txn.get::<BlobRecord>(pack)?.filter(|b| !b.condemned && !b.stored);
    let Some(blob) = known else {
        return Ok(Response::Changed(false));
    };
    if generation(txn, pack)? != of {
        return Ok(Response::Changed(false));
    }
    txn.put(pack, &BlobRecord { stored: true, ..blob })?;
    events.push(Event::Stored { pack });
    Ok(Response::Changed(true))
}

/// The object of this generation is not there; false for another than the present one.
/// A holder of the bytes uploads it again.
pub(super) fn lose_object<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    of: u64,
) -> Result<Response, StateError> {
    let known = txn.get::<BlobRecord>(pack)?.filter(|b| !b.condemned && b.stored);
    match known {
        Some(blob) if generation(txn, pack)? == of => {
            txn.put(pack, &BlobRecord { stored: false, ..blob })?;
            Ok(Response::Changed(true))
        }
        _ => Ok(Response::Changed(false)),
    }
}

/// Takes over an object that another index named.
pub(super) fn adopt_object<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    generation: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let adoptable = txn.get::<BlobRecord>(pack)?.is_some_and(|b| !b.condemned && !b.stored);
    if !adoptable {
        return Ok(Response::Changed(false));
    }
    txn.put(pack, &ObjectRecord { generation })?;
    store_object(txn, pack, generation, events)
}

/// Announces a deletion; false where something refers to this generation.
pub(super) fn condemn<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    of: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let blob = txn.get::<BlobRecord>(pack)?;
    if blob.is_some() && generation(txn, pack)? != of {
        return Ok(Response::Changed(true)); // nothing refers to an earlier generation
    }
    let blob = blob.unwrap_or_default();
    if blob.entries > 0 || blob.leases > 0 {
        return Ok(Response::Changed(false));
    }
    if !blob.condemned {
        txn.put(pack, &BlobRecord { condemned: true, ..blob })?;
        txn.put(pack, &ObjectRecord { generation: of })?;
        events.push(Event::Condemned { pack });
    }
    Ok(Response::Changed(true))
}

/// The object of a condemned generation is deleted.
pub(super) fn forget<V: View>(
    txn: &mut Txn<'_, V>,
    pack: Digest,
    of: u64,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let condemned = is_condemned(txn, pack)? && generation(txn, pack)? == of;
    if condemned {
        txn.remove::<BlobRecord>(pack);
        txn.remove::<ObjectRecord>(pack);
        events.push(Event::Forgotten { pack });
    }
    Ok(Response::Changed(condemned))
}
