//! What a whole waits for, and what it is stitched of.

use super::{rules::wholes_have_their_pieces, *};
use crate::{admission::Admission, signing::KeyChange, tokens::AuditHead};

fn want(k: u8, pieces: &[u8], token: u64) -> Command {
    Command::Want(list_of(k, pieces, token))
}

#[test]
fn a_list_is_taken_under_the_live_token_of_its_node_alone() {
    let mut state = founded();
    acquired(&mut state, 1, 3);
    assert_eq!(state.apply(4, want(1, &[2], 2)).0, Response::Stale, "an old token");
    assert_eq!(state.apply(5, want(2, &[3], 3)).0, Response::Stale, "another key's token");
    let of_another = Command::Want(Wanted { node: 2, ..list_of(1, &[2], 3) });
    assert_eq!(state.apply(6, of_another).0, Response::Stale, "another node holds it");
    assert_eq!(state.wanted(key(1)), None);

    let (response, events) = state.apply(7, want(1, &[2, 3], 3));
    assert_eq!((response, events), (Response::Done, vec![Event::Wanted { whole: key(1) }]));
    let retried = state.apply(8, want(1, &[2, 3], 3));
    assert_eq!(retried, (Response::Done, vec![]), "a retry is no news");
    let shorter = state.apply(9, want(1, &[3], 3));
    assert_eq!(shorter, (Response::Done, vec![Event::Wanted { whole: key(1) }]));
    assert_eq!(state.wanted(key(1)), Some(list_of(1, &[3], 3)));
}

#[test]
fn a_list_goes_however_its_lease_ends() {
    let endings = [
        publish_of(1, 1, 3),
        fail_of(1, 3),
        Command::Expire { key: key(1), token: Token(3) },
        write_of(1, &[], put_of(1, 1, false)),
    ];
    for ending in endings {
        let mut state = founded();
        acquired(&mut state, 1, 3);
        acquired(&mut state, 2, 4);
        state.apply(5, want(1, &[0], 3));
        state.apply(6, want(2, &[0], 4));
        let (_, events) = state.apply(7, ending.clone());
        assert!(events.contains(&Event::Unwanted { whole: key(1) }), "{ending}");
        assert_eq!(state.wanted(key(1)), None, "{ending}");
        assert_eq!(state.apply(8, want(1, &[0], 3)).0, Response::Stale, "{ending}");
        assert!(state.wanted(key(2)).is_some(), "the other one's lease lives");
    }
}

/// Logs and snapshots of earlier versions are read by these numbers, and of this one by
/// later ones.
#[test]
fn the_numbers_of_commands_and_tables_stay() {
    let number = |command: &Command| crate::codec::encode(command).unwrap()[0];
    assert_eq!(number(&Command::LoseObject { pack: pack(0), generation: 0 }), 29);
    assert_eq!(number(&want(1, &[2], 3)), 30);
    assert_eq!(number(&whole_of(2, 2, 5, &[(0, 0)])), 31);
    assert_eq!(number(&use_of(1, 2, 3)), 32);
    assert_eq!(number(&revocation_of(1, false)), 33);
    assert_eq!(number(&tokens::issue_of(1, 1, None, 1)), 34);
    assert_eq!(number(&tokens::revoke_of(1)), 35);
    let head = AuditHead { sequence: 1, digest: [0; 32], at_unix_ms: 0 };
    assert_eq!(number(&Command::NoteAudit { node: 1, head }), 36);
    let need = Admission::Need { needs_token: true, node: 1, first: false };
    assert_eq!(number(&Command::Admission(need)), 37);
    assert_eq!(number(&root::said(1, &root::policy(1, true))), 38);
    let rotate = KeyChange::Rotate { node: 1, key: [0; 32], at_unix_ms: 0 };
    assert_eq!(number(&Command::Keys(rotate)), 39);
    let what = Publishes::of(publish_of(1, 1, 1)).unwrap();
    assert_eq!(number(&Command::Stamped(Stamped { by: [0; 32], at_unix_ms: 0, what })), 40);
    let tables = Table::ALL.map(|table| crate::codec::encode(&table).unwrap());
    assert_eq!(tables.concat(), (0..23).collect::<Vec<u8>>());
    let last = [Table::Sessions, Table::Wanted, Table::Pieces, Table::References, Table::Uses];
    assert_eq!(Table::ALL[8..13], last);
    let last = [Table::Revocations, Table::Tokens, Table::AuditHeads, Table::Admissions];
    assert_eq!(Table::ALL[13..17], last);
    let last = [Table::Roots, Table::Certificates, Table::SigningKeys, Table::Published];
    assert_eq!(Table::ALL[17..21], last);
    assert_eq!(Table::ALL[21..], [Table::NextRoots, Table::NextCertificates]);
}

/// What a leader should have refused changes nothing.
#[test]
fn a_hostile_list_is_not_applied() {
    let mut state = founded();
    acquired(&mut state, 1, 3);
    let before = state.clone();
    let piece = |n: u64| WantedPiece {
        key: ArtifactKey::from_bytes(*Digest::of(&n.to_le_bytes()).as_bytes()),
        seconds: 1.0,
        memory: 1,
    };
    let list = list_of(1, &[2], 3);
    let hostile = [
        Wanted { pieces: (0..1025).map(piece).collect(), ..list.clone() },
        Wanted { pieces: vec![piece(1), piece(1)], ..list.clone() },
        Wanted { fingerprint: Fingerprint::new("x".repeat(1 << 20), [("", ""); 0]), ..list },
    ];
    for list in hostile {
        let (response, events) = state.apply(4, Command::Want(list));
        assert!(matches!(response, Response::Refused(_)), "{response:?}");
        assert_eq!(events, []);
        assert_eq!(state, before);
    }
}

/// Pieces 0 and 1 with packs 0 and 1, and key 2 stitched of them with pack 2.
fn stitched() -> Model {
    let mut state = founded();
    for k in [0, 1] {
        acquired(&mut state, k, 3 + u64::from(k) * 2);
        let published = state.apply(4 + u64::from(k) * 2, publish_of(k, k, 3 + u64::from(k) * 2));
        assert_eq!(published.0, Response::Committed);
    }
    acquired(&mut state, 2, 7);
    let whole = whole_of(2, 2, 7, &[(1, 1), (0, 0)]);
    assert_eq!(state.apply(8, whole.clone()).0, Response::Committed);
    assert_eq!(state.apply(9, whole).0, Response::Committed, "a retry");
    assert_eq!(state.pieces(key(2)), Some(vec![(key(1), pack(1)), (key(0), pack(0))]));
    wholes_have_their_pieces(&state);
    state
}

fn tombstone(k: u8) -> Command {
    Command::Tombstone { key: key(k), reason: "wrong".into() }
}

#[test]
fn a_whole_is_committed_with_each_of_its_pieces_or_not_at_all() {
    let mut state = founded();
    acquired(&mut state, 0, 3);
    state.apply(4, publish_of(0, 0, 3));
    acquired(&mut state, 2, 5);
    let before = state.clone();
    let missing = state.apply(6, whole_of(2, 2, 5, &[(0, 0), (1, 1)])).0;
    assert_eq!(missing, Response::NoPiece(key(1)));
    let other_pack = state.apply(7, whole_of(2, 2, 5, &[(0, 1)])).0;
    assert_eq!(other_pack, Response::NoPiece(key(0)));
    for hostile in [&[][..], &[(0, 0), (0, 0)], &[(2, 2)]] {
        let refused = state.apply(8, whole_of(2, 2, 5, hostile)).0;
        assert!(matches!(refused, Response::Refused(_)), "{hostile:?}: {refused:?}");
    }
    assert_eq!(state, before, "the lease lives, for another try");
    assert_eq!(state.apply(9, whole_of(2, 2, 5, &[(0, 0)])).0, Response::Committed);
    assert_eq!(state.apply(10, whole_of(2, 2, 4, &[(0, 0)])).0, Response::Existing);
    // Nothing falls deeper than from a piece to its wholes.
    acquired(&mut state, 1, 11);
    let nested = state.apply(12, whole_of(1, 1, 11, &[(2, 2)])).0;
    assert!(matches!(nested, Response::Refused(_)), "{nested:?}");
    state.apply(13, Command::AcquireAgain { key: key(0), node: 1, request: 13, epoch: 1 });
    let nested = state.apply(14, whole_of(0, 0, 13, &[(1, 1)])).0;
    assert!(matches!(nested, Response::Refused(_)), "{nested:?}");
}

#[test]
fn a_whole_goes_with_any_of_its_pieces() {
    let retire = Command::RetireAbsent {
        key: key(0),
        epoch: 1,
        asked: Asked { nodes: vec![1, 2], object: true },
    };
    for removal in [tombstone(0), tombstone(1), retire, write_of(1, &[], put_of(0, 2, false))] {
        let mut state = stitched();
        state.apply(10, Command::SetPinned { key: key(2), pinned: true });
        let (_, events) = state.apply(11, removal.clone());
        let dropped = Event::Tombstoned { key: key(2), pack: pack(2) };
        assert!(events.contains(&dropped), "{removal}: {events:?}");
        assert_eq!((state.entry(key(2)), state.pieces(key(2))), (None, None), "{removal}");
        wholes_have_their_pieces(&state);
        let left = KEYS.filter(|k| state.entry(key(*k)).is_some()).count() as u64;
        let counters: Counters = table::read(&state, ()).unwrap().unwrap();
        assert_eq!(counters.entries, left);
        // It is stitched again, in a new epoch that keeps its pin.
        acquired(&mut state, 2, 12);
        let again = if state.entry(key(1)).is_some() { (1, 1) } else { (0, 0) };
        assert_eq!(state.apply(13, whole_of(2, 2, 12, &[again])).0, Response::Committed);
        let entry = state.entry(key(2)).unwrap();
        assert_eq!((entry.epoch, entry.pinned), (2, true), "{removal}");
    }
}

/// A piece that was compiled again to the very same bytes is the same piece.
#[test]
fn a_whole_outlives_an_epoch_of_the_same_bytes() {
    let again = Command::AcquireAgain { key: key(0), node: 2, request: 1, epoch: 1 };
    let mut state = stitched();
    state.apply(10, again.clone());
    assert_eq!(state.apply(11, publish_of(0, 0, 10)).0, Response::Committed);
    assert_eq!(state.entry(key(0)).unwrap().epoch, 2);
    assert!(state.entry(key(2)).is_some());
    wholes_have_their_pieces(&state);

    let mut state = stitched();
    state.apply(10, again);
    let (response, events) = state.apply(11, publish_of(0, 2, 10));
    assert_eq!(response, Response::Committed);
    assert!(events.contains(&Event::Tombstoned { key: key(2), pack: pack(2) }), "{events:?}");
    assert!(state.entry(key(2)).is_none());
    wholes_have_their_pieces(&state);
}

#[test]
fn a_whole_that_goes_leaves_its_pieces_and_no_reference() {
    let removals = [
        vec![tombstone(2)],
        vec![write_of(1, &[], put_of(2, 1, false))],
        vec![
            Command::AcquireAgain { key: key(2), node: 1, request: 1, epoch: 1 },
            publish_of(2, 2, 10),
        ],
    ];
    for removal in removals {
        let mut state = stitched();
        for (index, command) in (10..).zip(removal.clone()) {
            state.apply(index, command);
        }
        assert_eq!(state.pieces(key(2)), None, "{removal:?}");
        assert_eq!(state.all(Table::References).unwrap(), [], "{removal:?}");
        for k in [0, 1] {
            assert!(state.entry(key(k)).is_some(), "{removal:?}");
        }
    }
}

#[test]
fn the_packs_of_a_whole_and_of_its_pieces_are_not_condemned() {
    let mut state = stitched();
    let condemn = |state: &mut Model, index: u64, p: u8| {
        let generation = state.generation(pack(p));
        state.apply(index, Command::CondemnObject { pack: pack(p), generation }).0
    };
    for (index, p) in (10..).zip(PACKS) {
        assert_eq!(condemn(&mut state, index, p), Response::Changed(false), "pack {p}");
    }
    state.apply(20, tombstone(0));
    let condemned =
        PACKS.map(|p| condemn(&mut state, 21 + u64::from(p), p) == Response::Changed(true));
    assert_eq!(condemned.collect::<Vec<_>>(), [true, false, true], "the other piece has its entry");
}
