//! Signers whose signatures count no more.

use super::*;

#[test]
fn what_a_revoked_signer_made_goes_and_nothing_of_it_comes() {
    let mut state = founded();
    acquired(&mut state, 1, 3);
    assert_eq!(state.apply(4, publish_of(1, 1, 3)).0, Response::Committed);
    // Under way when the revocation comes: a lease, and a write of a session.
    acquired(&mut state, 2, 5);
    let (response, events) = state.apply(6, revocation_of(1, false));
    assert_eq!(response, Response::Removed(1));
    assert!(events.contains(&Event::NodesChanged));
    assert!(events.contains(&Event::Tombstoned { key: key(1), pack: pack(1) }));
    assert!(state.entry(key(1)).is_none());
    let why = table::read::<EpochRecord>(&state, key(1)).unwrap().unwrap().reason;
    assert!(why.contains("node 1") && why.contains("its disk was stolen"), "{why}");
    let late = [publish_of(2, 2, 5), write_of(1, &[], put_of(3, 0, false))];
    for (index, command) in (7..).zip(late) {
        let refused = state.apply(index, command).0;
        assert!(
            matches!(&refused, Response::Refused(why) if why.contains("its disk was stolen"))
                || matches!(refused, Response::Repeated(_)),
            "{refused:?}"
        );
    }
    assert!(state.entry(key(2)).is_none() && state.entry(key(3)).is_none());
    assert_eq!(state.apply(9, revocation_of(1, false)).0, Response::Removed(0), "once more");
}

#[test]
fn a_revoked_key_comes_back_under_no_other_id() {
    let mut state = founded();
    state.apply(3, revocation_of(1, true));
    let again = NewNode { candidate: [77; 16], ..new_node(0) };
    let refused = state.apply(4, Command::Join(again)).0;
    assert!(matches!(&refused, Response::Refused(why) if why.contains("revoked")), "{refused:?}");
    let other = NewNode { candidate: [78; 16], key: [78; 32], ..new_node(0) };
    assert!(matches!(state.apply(5, Command::Join(other)).0, Response::Node(_)));
}

#[test]
fn what_was_there_may_stay() {
    let mut state = founded();
    acquired(&mut state, 1, 3);
    state.apply(4, publish_of(1, 1, 3));
    assert_eq!(state.apply(5, revocation_of(1, true)).0, Response::Removed(0));
    assert!(state.entry(key(1)).is_some());
    let acquire = Command::Acquire { key: key(2), node: 1, request: 6 };
    assert!(matches!(state.apply(6, acquire).0, Response::Refused(_)));
    assert!(matches!(
        state.apply(7, write_of(1, &[], put_of(2, 2, false))).0,
        Response::Refused(_)
    ));
    assert_eq!(state.apply(8, revocation_of(1, false)).0, Response::Removed(1), "then all of it");
    let strange = state.apply(9, revocation_of(9, false)).0;
    assert!(matches!(strange, Response::Refused(_)), "{strange:?}");
}
