//! What must hold after each command, whatever came before it.

use super::*;
use crate::{
    signing::KeyChange,
    table::{KeyRecord, PublishedRecord},
};

/// What must never come back.
#[derive(Default)]
pub(super) struct History {
    highest: BTreeMap<ArtifactKey, Token>,
    condemned: BTreeSet<(Digest, u64)>,
    applied: BTreeSet<u64>,
}

/// The publication that `command` may commit, and its token.
fn publication_in(command: &Command, index: u64) -> Option<(&Publication, Token)> {
    match command {
        Command::Stamped(stamped) => match &stamped.what {
            Publishes::Write(_) => Some((stamped.what.publication()?, Token(index))),
            what => what.publication().map(|p| (p, p.token)),
        },
        Command::Commit { publication: p, .. } | Command::CommitWhole { publication: p, .. } => {
            Some((p, p.token))
        }
        Command::Write(OrderedWrite { change: Change::Put { publication, .. }, .. }) => {
            Some((publication, Token(index)))
        }
        _ => None,
    }
}

pub(super) fn check_step(
    before: &Model,
    after: &Model,
    index: u64,
    command: &Command,
    response: &Response,
    history: &mut History,
) {
    for key in KEYS.map(key) {
        if let Some(lease) = after.lease(key)
            && before.lease(key).as_ref() != Some(&lease)
        {
            assert!(before.lease(key).is_none(), "a lease replaced a live one");
            let beside = before.entry(key).map(|entry| entry.epoch);
            let instead_of = match command {
                Command::AcquireAgain { epoch, .. } => Some(*epoch),
                _ => None,
            };
            assert!(beside.is_none() || beside == instead_of, "a lease beside an artifact");
            let last = history.highest.insert(key, lease.token);
            assert!(last < Some(lease.token), "tokens rise strictly");
            assert_eq!(lease.token, Token(index));
        }
        let last: Option<EpochRecord> = table::read(before, key).unwrap();
        match (before.entry(key), after.entry(key)) {
            (None, Some(entry)) => {
                let (p, token) = publication_in(command, index).expect("a publication");
                if is_commit(command) {
                    let lease = before.lease(key).expect("a publication under a live lease");
                    assert_eq!(lease.token, token, "a publication with an old token applied");
                }
                assert_eq!((entry.pack, entry.token), (p.pack, token));
                assert!(after.lease(key).is_none());
                assert!(last.is_none_or(|l| entry.epoch > l.epoch), "epochs rise");
            }
            (Some(was), Some(is)) if was.epoch != is.epoch => {
                let (p, token) = publication_in(command, index).expect("a publication");
                if is_commit(command) {
                    assert_eq!(before.lease(key).map(|l| l.token), Some(token));
                } else {
                    assert_ne!(was.pack, is.pack, "equal bytes begin no epoch");
                }
                assert_eq!((is.epoch, is.pack), (was.epoch + 1, p.pack));
                assert_eq!(was.pinned, is.pinned, "a pin outlives the bytes");
            }
            (Some(was), Some(is)) => {
                assert_eq!(
                    (was.epoch, was.pack, &was.manifest),
                    (is.epoch, is.pack, &is.manifest),
                    "an artifact changed within its epoch"
                );
            }
            (Some(_), None) if lost_a_piece(before, after, key) => {
                assert!(after.pieces(key).is_none());
            }
            (Some(was), None) => match command {
                Command::Tombstone { .. }
                | Command::Write(OrderedWrite { change: Change::Remove { .. }, .. }) => {}
                Command::Write(OrderedWrite { node, change: Change::Withdraw { .. }, .. }) => {
                    assert_eq!(was.manifest.signer, *node, "another node put it");
                }
                Command::RetireAbsent { asked, .. } => {
                    let blob = before.blob(was.pack).unwrap();
                    let left = |id: &u64| {
                        table::read::<NodeRecord>(before, *id).unwrap().is_none_or(|n| n.left())
                    };
                    let proven = |holder| asked.nodes.contains(holder) || left(holder);
                    assert!(blob.holders.iter().all(proven), "a holder was not asked");
                    assert!(!blob.stored || asked.object, "the object store was not asked");
                }
                Command::Revoke(Revocation { signer, keep, .. }) => {
                    assert_eq!((was.manifest.signer, false), (*signer, *keep), "it was to stay");
                }
                Command::Keys(KeyChange::Revoke { key: by, revocation }) => {
                    let noted: Option<PublishedRecord> = table::read(before, key).unwrap();
                    let noted = noted.map(|of| (of.by, revocation.within.has(of.at_unix_ms)));
                    assert!(noted.is_none_or(|noted| noted == (*by, true)), "outside: {noted:?}");
                }
                other => panic!("{other:?} removed an artifact"),
            },
            (None, None) => {}
        }
        if let Some(is) = after.entry(key) {
            let is_new = before.entry(key).is_none_or(|was| was.epoch != is.epoch);
            let revoked = after.is_revoked(is.manifest.signer);
            assert!(!(is_new && revoked), "signed by one that was revoked");
            if let Command::Revoke(Revocation { signer, keep: false, .. }) = command {
                assert!(!revoked || is.manifest.signer != *signer, "it was to go");
            }
        }
        let noted: Option<PublishedRecord> = table::read(after, key).unwrap();
        if let Some(noted) = noted {
            assert!(after.entry(key).is_some(), "a note without an artifact");
            let record: Option<KeyRecord> =
                table::read(after, Digest::from_bytes(noted.by)).unwrap();
            let revoked = record.map(|record| record.revoked).unwrap_or_default();
            let gone = revoked.iter().any(|of| of.within.has(noted.at_unix_ms));
            assert!(!gone, "published in a time for which its key is revoked");
        }
        if let Some(used) = after.used(key) {
            assert!(after.entry(key).is_some(), "a count without an artifact");
            let before = before.used(key).unwrap_or_default();
            assert!(used.hits >= before.hits && used.last_unix_ms >= before.last_unix_ms);
        }
        if let Some(list) = after.wanted(key) {
            let lease = after.lease(key).expect("a list without a lease");
            assert_eq!((list.token, list.node), (lease.token, lease.node), "of another lease");
            assert_eq!(list.check(), Ok(()));
        }
        if let Some((p, token)) = publication_in(command, index)
            && is_commit(command)
            && p.key == key
            && *response == Response::Committed
        {
            assert_eq!(after.entry(key).unwrap().token, token);
        }
    }
    wholes_have_their_pieces(after);
    for pack in PACKS.map(pack) {
        let entries = KEYS.map(key).filter(|k| after.entry(*k).is_some_and(|e| e.pack == pack));
        let leases =
            KEYS.map(key).filter(|k| after.lease(*k).is_some_and(|l| l.pack == Some(pack)));
        let (entries, leases) = (entries.count() as u64, leases.count() as u64);
        let blob = after.blob(pack).unwrap_or_default();
        assert_eq!((blob.entries, blob.leases), (entries, leases), "references are counted");
        assert!(!blob.condemned || entries + leases == 0, "a condemned pack is referred to");
        let gone = before.blob(pack).is_some() && after.blob(pack).is_none();
        assert!(!gone || before.blob(pack).unwrap().condemned, "forgotten, never condemned");
        let generation = after.generation(pack);
        if blob.condemned {
            history.condemned.insert((pack, generation));
        } else if entries > 0 {
            let deletable = history.condemned.contains(&(pack, generation));
            assert!(!deletable, "an entry refers to an object that may be deleted any time");
        }
    }
    if let Command::Write(write) = command
        && !matches!(response, Response::Repeated(_))
    {
        assert!(history.applied.insert(write.sequence), "a write applied twice, or superseded");
        history.applied.extend(&write.supersedes);
        let session: SessionRecord = table::read(after, 1u64).unwrap().unwrap();
        assert!(session.done.is_sorted() && session.done.len() <= 8, "{session:?}");
    }
    let counters: Counters = table::read(after, ()).unwrap().unwrap();
    let entries = KEYS.map(key).filter(|k| after.entry(*k).is_some()).count();
    assert_eq!(counters.entries, entries as u64);
}

fn is_commit(command: &Command) -> bool {
    let stamped = |of: &Stamped| !matches!(of.what, Publishes::Write(_));
    matches!(command, Command::Commit { .. } | Command::CommitWhole { .. })
        || matches!(command, Command::Stamped(of) if stamped(of))
}

/// Whether `whole` had a piece whose artifact has not that pack any more.
fn lost_a_piece(before: &Model, after: &Model, whole: ArtifactKey) -> bool {
    let lost = |(piece, pack): &(ArtifactKey, Digest)| {
        after.entry(*piece).is_none_or(|entry| entry.pack != *pack)
    };
    before.pieces(whole).is_some_and(|pieces| pieces.iter().any(lost))
}

pub(super) fn wholes_have_their_pieces(state: &Model) {
    let mut references = BTreeMap::new();
    for whole in KEYS.map(key) {
        let Some(pieces) = state.pieces(whole) else { continue };
        assert!(state.entry(whole).is_some(), "pieces of nothing");
        for (piece, pack) in pieces {
            let entry = state.entry(piece).expect("a whole without its piece");
            assert_eq!(entry.pack, pack, "a whole with another piece than it was made with");
            assert!(state.pieces(piece).is_none(), "a piece that is a whole");
            references.insert((piece, whole), pack);
        }
    }
    let found = state.all(Table::References).unwrap().len();
    assert_eq!(found, references.len(), "references are those of the wholes");
    for ((piece, whole), pack) in references {
        let found: ReferenceRecord = table::read(state, (piece, whole)).unwrap().unwrap();
        assert_eq!(found.pack, pack);
        assert!(table::wholes_of(state, piece).unwrap().contains(&whole));
    }
}
