//! Histories that were written by hand: what each command answers after what.

use super::*;

#[test]
fn a_late_publication_of_other_bytes_is_counted_and_not_served() {
    let mut state = founded();
    let acquire = |request| Command::Acquire { key: key(1), node: 1, request };
    state.apply(3, acquire(1));
    state.apply(4, Command::Expire { key: key(1), token: Token(3) });
    assert_eq!(state.apply(5, publish_of(1, 1, 3)).0, Response::Stale);
    assert_eq!(state.apply(6, acquire(2)).0, Response::Granted(Token(6)));
    assert_eq!(state.apply(7, publish_of(1, 1, 6)).0, Response::Committed);
    assert_eq!(state.apply(8, publish_of(1, 1, 6)).0, Response::Committed, "a retry");
    assert_eq!(state.apply(9, publish_of(1, 2, 3)).0, Response::Existing);
    assert_eq!(state.entry(key(1)).unwrap().pack, pack(1));
    assert_eq!(state.entry(key(1)).unwrap().differing, 1);
}

#[test]
fn the_last_put_counts_and_ends_the_lease() {
    let mut state = founded();
    state.apply(3, Command::Acquire { key: key(1), node: 1, request: 1 });
    let (response, events) = state.apply(4, write_of(1, &[], put_of(1, 1, false)));
    assert_eq!(response, Response::Committed);
    assert!(events.contains(&Event::LeaseEnded { key: key(1), token: Token(3) }));
    assert_eq!(state.apply(5, publish_of(1, 2, 3)).0, Response::Existing, "the holder is late");
    assert_eq!(state.apply(6, write_of(2, &[], put_of(1, 1, false))).0, Response::Unchanged);
    assert_eq!(state.apply(7, write_of(3, &[], put_of(1, 2, true))).0, Response::Existing);
    assert_eq!(state.entry(key(1)).unwrap().epoch, 1);
    let (response, events) = state.apply(8, write_of(4, &[], put_of(1, 2, false)));
    assert_eq!(response, Response::Committed);
    assert!(events.contains(&Event::Replaced { key: key(1), pack: pack(1) }));
    assert_eq!(state.entry(key(1)).unwrap().epoch, 2);
}

/// A node takes back what it put itself, in whatever order the two arrived.
#[test]
fn a_withdrawal_leaves_what_another_node_put() {
    let mut state = founded();
    let SignedManifest { bytes, signature, .. } = (*publication(1, 1, 0).manifest).clone();
    let manifest = Arc::new(SignedManifest { bytes, signer: 2, signature });
    let publication = Publication { manifest, ..publication(1, 1, 0) };
    let of_another = Change::Put { publication, create: false, also: Vec::new() };
    let withdraw = || Change::Withdraw { key: key(1) };
    assert_eq!(state.apply(3, write_of(1, &[], of_another)).0, Response::Committed);
    assert_eq!(state.apply(4, write_of(2, &[], withdraw())).0, Response::Changed(false));
    assert_eq!(state.entry(key(1)).unwrap().manifest.signer, 2);
    assert_eq!(state.apply(5, write_of(3, &[], put_of(1, 2, false))).0, Response::Committed);
    assert_eq!(state.apply(6, write_of(4, &[], withdraw())).0, Response::Changed(true));
    assert!(state.entry(key(1)).is_none());
}

#[test]
fn a_superseded_write_never_applies_and_a_repeated_one_applies_once() {
    let mut state = founded();
    let second = write_of(2, &[1], put_of(1, 2, false));
    assert_eq!(state.apply(3, second.clone()).0, Response::Committed);
    let first = write_of(1, &[], put_of(1, 1, false));
    assert_eq!(state.apply(4, first).0, Response::Repeated(false), "it came too late");
    assert_eq!(state.entry(key(1)).unwrap().pack, pack(2));
    assert_eq!(state.apply(5, write_of(3, &[], put_of(1, 1, false))).0, Response::Committed);
    assert_eq!(state.apply(6, second).0, Response::Repeated(true), "the network said it twice");
    assert_eq!(state.entry(key(1)).unwrap().pack, pack(1));
    // A fence without a change, and a removal that the write was before.
    assert_eq!(state.apply(7, write_of(5, &[4], Change::Nothing)).0, Response::Done);
    assert_eq!(state.apply(8, write_of(4, &[], put_of(1, 2, false))).0, Response::Repeated(false));
    let remove = Change::Remove { key: key(1), reason: "deleted".into() };
    assert_eq!(state.apply(9, write_of(7, &[6], remove)).0, Response::Changed(true));
    assert_eq!(state.apply(10, write_of(6, &[], put_of(1, 2, false))).0, Response::Repeated(false));
    assert!(state.entry(key(1)).is_none());
    // Another process of the node: what the last one had under way is over.
    let next = state.apply(11, Command::OpenSession { node: 1, nonce: 8 }).0;
    assert_eq!(next, Response::Session(Token(11)));
    assert_eq!(state.apply(12, Command::OpenSession { node: 1, nonce: 8 }).0, next, "a retry");
    assert_eq!(state.apply(13, write_of(8, &[], put_of(1, 1, false))).0, Response::StaleSession);
}

#[test]
fn unreachable_bytes_are_compiled_once_more_and_absent_ones_are_proven() {
    let mut state = founded();
    let again = |request, epoch| Command::AcquireAgain { key: key(1), node: 2, request, epoch };
    state.apply(3, Command::Acquire { key: key(1), node: 1, request: 1 });
    state.apply(4, publish_of(1, 1, 3));
    assert_eq!(state.apply(5, again(1, 2)).0, Response::Ready, "that is another epoch");
    assert_eq!(state.apply(6, again(1, 1)).0, Response::Granted(Token(6)));
    assert_eq!(state.apply(7, again(2, 1)).0, Response::Held, "one compile for all");
    assert!(state.entry(key(1)).is_some(), "who can reach it still finds it");
    assert_eq!(state.apply(8, publish_of(1, 1, 6)).0, Response::Committed, "the same bytes");
    assert_eq!(state.entry(key(1)).unwrap().epoch, 2);
    assert_eq!(state.apply(9, again(2, 1)).0, Response::Ready);

    let report = |gained| Command::Report {
        node: 2,
        report: AccessReport { gained, ..AccessReport::default() },
    };
    state.apply(10, report(vec![pack(1)]));
    let retire = |nodes: &[u64], object| Command::RetireAbsent {
        key: key(1),
        epoch: 2,
        asked: Asked { nodes: nodes.to_vec(), object },
    };
    assert_eq!(state.apply(11, retire(&[1], true)).0, Response::NotProven, "node 2 was not asked");
    let generation = state.generation(pack(1));
    state.apply(12, Command::StoreObject { pack: pack(1), generation });
    assert_eq!(state.apply(13, retire(&[1, 2], false)).0, Response::NotProven, "it is in L3");
    state.apply(14, Command::Leave(2));
    assert_eq!(state.apply(15, retire(&[1], true)).0, Response::Changed(true), "node 2 left");
    assert!(state.entry(key(1)).is_none());
}

#[test]
fn a_condemned_pack_is_published_again_under_another_name() {
    let mut state = founded();
    let acquire = |request| Command::Acquire { key: key(1), node: 1, request };
    state.apply(3, acquire(1));
    state.apply(4, publish_of(1, 1, 3));
    let first = state.generation(pack(1));
    let of_index = |index: u64| 5 << 40 | index;
    assert_eq!(first, of_index(4));
    let condemn = |generation| Command::CondemnObject { pack: pack(1), generation };
    assert_eq!(state.apply(5, condemn(first)).0, Response::Changed(false), "an entry names it");
    state.apply(6, Command::Tombstone { key: key(1), reason: "wrong".into() });
    state.apply(7, acquire(2));
    assert_eq!(state.apply(8, condemn(first)).0, Response::Changed(false), "a lease may name it");
    state.apply(9, Command::Expire { key: key(1), token: Token(7) });
    assert_eq!(state.apply(10, condemn(first)).0, Response::Changed(true));
    state.apply(11, acquire(3));
    assert_eq!(state.apply(12, publish_of(1, 1, 11)).0, Response::Committed);
    assert_eq!(state.generation(pack(1)), of_index(12));
    assert_eq!(state.entry(key(1)).unwrap().epoch, 2);
    let stored = |generation| Command::StoreObject { pack: pack(1), generation };
    assert_eq!(state.apply(13, stored(first)).0, Response::Changed(false), "that one is condemned");
    let forget = Command::ForgetObject { pack: pack(1), generation: first };
    assert_eq!(state.apply(14, forget).0, Response::Changed(false), "the pack is needed");
    assert_eq!(state.apply(15, condemn(first)).0, Response::Changed(true), "nothing refers to it");
    assert_eq!(state.apply(16, stored(of_index(12))).0, Response::Changed(true));
    assert!(state.blob(pack(1)).unwrap().stored);
    let lost = |generation| Command::LoseObject { pack: pack(1), generation };
    assert_eq!(state.apply(17, lost(first)).0, Response::Changed(false), "not the present one");
    assert_eq!(state.apply(18, lost(of_index(12))).0, Response::Changed(true));
    assert!(!state.blob(pack(1)).unwrap().stored);
}

#[test]
fn commands_of_earlier_logs_mean_what_they_meant() {
    let mut state = founded();
    state.apply(3, Command::Acquire { key: key(1), node: 1, request: 1 });
    let publish = |token| Command::Publish(publication(1, 1, token));
    assert_eq!(state.apply(4, publish(3)).0, Response::Committed);
    assert_eq!(state.generation(pack(1)), 0);
    assert_eq!(state.apply(5, Command::MarkStored { pack: pack(1) }).0, Response::Changed(true));
    let put = Command::Put { publication: publication(1, 2, 0), create: false };
    assert_eq!(state.apply(6, put).0, Response::Committed);
    assert_eq!(state.apply(7, Command::Condemn { pack: pack(1) }).0, Response::Changed(true));
    let put = || Command::Put { publication: publication(1, 1, 0), create: false };
    assert_eq!(state.apply(8, put()).0, Response::Condemned);
    assert_eq!(state.apply(9, Command::Forget { pack: pack(1) }).0, Response::Changed(true));
    assert_eq!(state.apply(10, put()).0, Response::Committed);
    let retire = Command::Retire { key: key(1), epoch: 3 };
    assert_eq!(state.apply(11, retire).0, Response::Changed(true));
}

#[test]
fn a_retried_acquire_finds_its_own_grant() {
    let mut state = founded();
    let acquire = Command::Acquire { key: key(1), node: 1, request: 7 };
    assert_eq!(state.apply(2, acquire.clone()).0, Response::Granted(Token(2)));
    assert_eq!(state.apply(3, acquire).0, Response::Granted(Token(2)));
    let other = Command::Acquire { key: key(1), node: 1, request: 8 };
    assert_eq!(state.apply(4, other).0, Response::Held);
}

#[test]
fn a_failure_ends_the_lease_and_is_lifted_by_name_only() {
    let mut state = founded();
    let acquire = Command::Acquire { key: key(1), node: 1, request: 7 };
    state.apply(2, acquire.clone());
    assert_eq!(state.apply(3, fail_of(1, 9)).0, Response::Stale);
    assert_eq!(state.apply(4, fail_of(1, 2)).0, Response::Done);
    assert_eq!(state.apply(5, fail_of(1, 2)).0, Response::Done, "a retry");
    assert_eq!(state.apply(6, acquire.clone()).0, Response::Failed);
    let lift = |token| Command::Lift { key: key(1), token: Token(token) };
    assert_eq!(state.apply(7, lift(1)).0, Response::Changed(false));
    assert_eq!(state.apply(8, lift(2)).0, Response::Changed(true));
    assert_eq!(state.apply(9, acquire).0, Response::Granted(Token(9)));
}

#[test]
fn node_ids_are_never_used_twice() {
    let mut state = founded();
    assert_eq!(state.apply(2, Command::Join(new_node(5))).0, Response::Node(3));
    assert_eq!(state.apply(3, Command::Join(new_node(5))).0, Response::Node(3), "a retry");
    assert_eq!(state.apply(4, Command::Leave(3)).0, Response::Changed(true));
    assert!(matches!(state.apply(5, Command::Join(new_node(5))).0, Response::Refused(_)));
    assert_eq!(state.apply(6, Command::Join(new_node(6))).0, Response::Node(4));
    let gone: NodeRecord = table::read(&state, 3u64).unwrap().unwrap();
    assert!(gone.left() && gone.key == keys::public(5), "its manifests stay verifiable");
}

#[test]
fn a_use_counts_for_its_key_and_not_for_others_of_the_same_bytes() {
    let mut state = founded();
    state.apply(3, write_of(1, &[], put_of(1, 1, false)));
    state.apply(4, write_of(2, &[], put_of(2, 1, false)));
    assert_eq!(state.entry(key(1)).unwrap().pack, state.entry(key(2)).unwrap().pack);
    state.apply(5, use_of(1, 1, 3));
    state.apply(6, use_of(2, 1, 2));
    state.apply(7, use_of(1, 3, 1));
    state.apply(8, use_of(1, 2, 0));
    let used = Some(UseRecord { hits: 5, last_unix_ms: 3000 });
    assert_eq!(state.used(key(1)), used, "the later report's clock was behind");
    assert_eq!((state.used(key(2)), state.used(key(3))), (None, None));
    state.apply(9, write_of(3, &[], put_of(1, 2, false)));
    assert_eq!(state.entry(key(1)).unwrap().pack, pack(2));
    assert_eq!(state.used(key(1)), used, "other bytes of the same key");
    state.apply(10, write_of(4, &[], Change::Remove { key: key(1), reason: "wrong".into() }));
    assert_eq!(state.used(key(1)), None, "nothing is left of what was removed");
}

#[test]
fn a_date_of_a_wrong_clock_lasts_until_the_next_use() {
    let mut state = founded();
    state.apply(3, write_of(1, &[], put_of(1, 1, false)));
    let now = 1_800_000_000_000;
    let year = 365 * 24 * 3600 * 1000;
    let mut use_at = |index, at_unix_ms| {
        state.apply(index, Command::Use { node: 1, hits: vec![(key(1), 1)], at_unix_ms });
        state.used(key(1)).unwrap().last_unix_ms
    };
    assert_eq!(use_at(4, now), now);
    assert_eq!(use_at(5, now + year), now + year, "a leader whose clock is ahead");
    assert_eq!(use_at(6, now + 5000), now + 5000, "the next leader");
    assert_eq!(use_at(7, now + 2000), now + 5000, "and one a little behind");
    assert_eq!(use_at(8, now - year), now - year, "a leader whose clock is behind");
    assert_eq!(use_at(9, now + 9000), now + 9000);
}
