//! `apply`: the meaning of every command.
//!
//! Invariant: pure. The answer and the changes follow from the state, the
//! command and its log index alone, so that state machines at the same applied
//! index are equal. No clock, no randomness, no I/O but reads of the state.

mod admission;
mod epochs;
mod keys;
mod leases;
mod members;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod model;
mod packs;
mod publications;
mod references;
mod revocations;
mod root;
mod tokens;
mod uses;
mod wanted;
mod writes;

use kiln_proto::{ArtifactKey, Digest, NodeId, Token};

pub(crate) use self::members::may_return;
use crate::{
    command::{Command, Response},
    signing::Publishes,
    table::{EntryRecord, FailureRecord, LeaseRecord, StateError, Txn, View},
};

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
    LeaseGranted { key: ArtifactKey, token: Token, node: NodeId, request: u64 },
    LeaseEnded { key: ArtifactKey, token: Token },
    Failed { key: ArtifactKey, token: Token, until_unix_ms: u64 },
    Lifted { key: ArtifactKey, token: Token },
    NodesChanged,
    TokensChanged,
    TrustChanged,
    Wanted { whole: ArtifactKey },
    Unwanted { whole: ArtifactKey },
    Retired { key: ArtifactKey },
}

/// Applies `command`, committed at `index`, to `txn`.
///
/// Some commands are only found in logs that an earlier version wrote: they mean
/// what they meant.
pub(crate) fn apply<V: View>(
    txn: &mut Txn<'_, V>,
    index: u64,
    command: Command,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let lease = |node, request| LeaseRecord { token: Token(index), node, request, pack: None };
    match command {
        Command::Found { cluster, nodes } => members::found(txn, cluster, nodes, events),
        Command::Join(node) => members::join(txn, node, events),
        Command::Leave(node) => members::leave(txn, node, events),
        Command::Facts { node, facts } => members::set_facts(txn, node, facts, events),
        Command::SetAway(node) => members::set_away(txn, node, events),
        Command::SetVoter { node, voter } => members::set_voter(txn, node, voter, events),
        Command::SetVoters { voters, raise } => members::set_voters(txn, voters, raise),

        Command::Acquire { key, node, request } => {
            leases::acquire(txn, key, lease(node, request), None, events)
        }
        Command::AcquireAgain { key, node, request, epoch } => {
            leases::acquire(txn, key, lease(node, request), Some(epoch), events)
        }
        Command::Expire { key, token } => leases::expire(txn, key, token, events),
        Command::Fail { key, token, failure, until_unix_ms } => {
            leases::fail(txn, key, &FailureRecord { token, failure, until_unix_ms }, events)
        }
        Command::Lift { key, token } => leases::lift(txn, key, token, events),
        Command::Want(list) => wanted::want(txn, &list, events),

        Command::Commit { publication, also } => {
            publications::plain(txn, index, Publishes::Commit { publication, also }, events)
        }
        Command::CommitWhole { publication, also, pieces } => {
            let what = Publishes::CommitWhole { publication, also, pieces };
            publications::plain(txn, index, what, events)
        }
        Command::Write(write) => publications::plain(txn, index, Publishes::Write(write), events),
        Command::Stamped(stamped) => publications::stamped(txn, index, stamped, events),
        Command::OpenSession { node, nonce } => writes::open_session(txn, index, node, nonce),
        Command::SetPinned { key, pinned } => set_pinned(txn, key, pinned, events),
        Command::RetireAbsent { key, epoch, asked } => {
            epochs::retire(txn, key, epoch, &asked, events)
        }

        Command::Keys(change) => keys::change(txn, change, events),
        Command::Revoke(revocation) => revocations::revoke(txn, revocation, events),
        Command::IssueToken { token, node, at_unix_ms } => {
            tokens::issue(txn, token, node, at_unix_ms, events)
        }
        Command::RevokeToken { id, end } => tokens::revoke(txn, id, end, events),
        Command::Admission(change) => admission::apply(txn, change, events),
        Command::NoteAudit { node, head } => tokens::note_audit(txn, node, head),
        Command::RootSays { root, statement, .. } => root::say(txn, root, statement, events),
        Command::Report { node, report } => packs::report(txn, node, report),
        Command::Use { hits, at_unix_ms, .. } => uses::count(txn, hits, at_unix_ms),
        Command::StoreObject { pack, generation } => {
            packs::store_object(txn, pack, generation, events)
        }
        Command::LoseObject { pack, generation } => packs::lose_object(txn, pack, generation),
        Command::AdoptObject { pack, generation } => {
            packs::adopt_object(txn, pack, generation, events)
        }
        Command::CondemnObject { pack, generation } => {
            packs::condemn(txn, pack, generation, events)
        }
        Command::ForgetObject { pack, generation } => packs::forget(txn, pack, generation, events),

        // Of earlier logs.
        Command::Tombstone { key, reason } => epochs::remove(txn, key, reason, events),
        Command::Publish(publication) => epochs::publish(txn, None, publication, None, events),
        Command::Put { publication, create } => {
            epochs::put(txn, index, None, publication, create, events)
        }
        Command::Retire { key, epoch } => epochs::retire_unproven(txn, key, epoch, events),
        Command::MarkStored { pack } => packs::store_object(txn, pack, 0, events),
        Command::Condemn { pack } => packs::condemn(txn, pack, 0, events),
        Command::Forget { pack } => packs::forget(txn, pack, 0, events),
    }
}

fn set_pinned<V: View>(
    txn: &mut Txn<'_, V>,
    key: ArtifactKey,
    pinned: bool,
    events: &mut Vec<Event>,
) -> Result<Response, StateError> {
    let Some(entry) = txn.get::<EntryRecord>(key)? else {
        return Ok(Response::Changed(false));
    };
    txn.put(key, &EntryRecord { pinned, ..entry })?;
    events.push(Event::Pinned { key, pinned });
    Ok(Response::Changed(true))
}

#[cfg(test)]
pub(crate) mod tests;
