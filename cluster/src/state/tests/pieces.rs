//! What a whole waits for.

use super::*;

fn acquired(state: &mut Model, k: u8, index: u64) {
    let acquire = Command::Acquire { key: key(k), node: 1, request: index };
    assert_eq!(state.apply(index, acquire).0, Response::Granted(Token(index)));
}

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
