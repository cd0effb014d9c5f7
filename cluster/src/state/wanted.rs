//! The pieces that wholes wait for.
//!
//! Invariant: a list is there only while the lease is live under which it was asked for,
//! so none is left over, however that lease ends.

use kiln_proto::ArtifactKey;

use super::Event;
use crate::{
    command::Response,
    table::{LeaseRecord, StateError, Txn, View},
    wanted::Wanted,
};

/// Takes the list, in the place of an earlier one of the same lease.
pub(super) fn want<V: View>(
    txn: &mut Txn<'_, V>,
    wanted: &Wanted,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    // The leader looked as well, if it was honest.
    if let Err(why) = wanted.check() {
        return Ok(Response::Refused(why));
    }
    let whole = wanted.whole;
    let ours = |lease: LeaseRecord| lease.token == wanted.token && lease.node == wanted.node;
    if !txn.get::<LeaseRecord>(whole)?.is_some_and(ours) {
        return Ok(Response::Stale);
    }
    if txn.get::<Wanted>(whole)?.as_ref() != Some(wanted) {
        txn.put(whole, wanted)?;
        events.push(Event::Wanted { whole });
    }
    Ok(Response::Done)
}

/// The lease of `whole` ended.
pub(super) fn end<V: View>(
    txn: &mut Txn<'_, V>,
    whole: ArtifactKey,
    events: &mut Vec<Event>,
) -> Result<(), StateError> {
    if txn.get::<Wanted>(whole)?.is_some() {
        txn.remove::<Wanted>(whole);
        events.push(Event::Unwanted { whole });
    }
    Ok(())
}
