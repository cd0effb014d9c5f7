#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    command::NodeFacts,
    signing::{Interval, NodeKey},
};

const CLUSTER: u64 = 5;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> [u8; 32] {
    key(seed).verifying_key().to_bytes()
}

/// The word of `by` for a node; whose keys are of the seeds that are their ids.
fn word(node: u8, by: u8) -> Endorsement {
    let keys = Keys { name: public(node), signing: public(node) };
    let owner = Owner { cluster: CLUSTER, node: node.into() };
    Endorsement::sign(owner, keys, by.into(), &key(by)).unwrap()
}

/// That of 1 for the first, of that one for the next, and so on.
fn chain(nodes: &[u8]) -> Proof {
    let by = [1].iter().chain(nodes);
    nodes.iter().zip(by).fold(Proof::default(), |proof, (node, by)| proof.with(word(*node, *by)))
}

fn nodes(ids: &[u8]) -> Nodes {
    let node = |id: &u8| {
        let key = key(*id).verifying_key();
        let (left, away, eligible, revoked) = (false, false, true, None);
        let (facts, candidate, keys) = (NodeFacts::default(), [*id; 16], NodeInfo::only(key));
        let info = NodeInfo { facts, key, keys, left, away, eligible, revoked, candidate };
        (NodeId::from(*id), info)
    };
    ids.iter().map(node).collect()
}

fn proves(proof: &Proof, roster: &dyn Roster, node: u8) -> bool {
    let proved = proof.proves(CLUSTER, roster, node.into(), Some(public(node)));
    assert_eq!(proved, proof.proves(CLUSTER, roster, node.into(), None));
    proved
}

#[test]
fn a_node_that_a_known_member_let_in_proves_it_and_nobody_else_does() {
    let known = nodes(&[1, 2, 3]);
    assert!(proves(&chain(&[4]), &known, 4));
    assert!(proves(&Proof::default().with(word(4, 3)), &known, 4));
    for (proof, why) in [
        (Proof::default(), "nobody's word"),
        (Proof::default().with(word(4, 9)), "the word of one who is not known"),
        (Proof::default().with(word(4, 4)), "its own"),
        (chain(&[5]), "that of another node"),
        (chain(&[4, 5]), "that of one that it let in"),
    ] {
        assert!(!proof.proves(CLUSTER, &known, 4, None), "{why}");
    }
    assert!(!chain(&[4]).proves(CLUSTER, &known, 4, Some(public(9))), "another's certificate");
    assert!(!chain(&[4]).proves(CLUSTER + 1, &known, 4, None), "of another cluster");
    for change in [
        |of: &mut Endorsement| of.node = 5,
        |of: &mut Endorsement| of.by = 2,
        |of: &mut Endorsement| of.keys.name = public(9),
        |of: &mut Endorsement| of.keys.signing = public(9),
        |of: &mut Endorsement| of.signature[0] ^= 1,
        |of: &mut Endorsement| of.signature.clear(),
    ] {
        let mut proof = chain(&[4]);
        change(&mut proof.0[0]);
        let (node, keys) = proof.of().unwrap();
        assert!(!proof.proves(CLUSTER, &known, node, Some(keys.name)), "{proof:?}");
    }
}

/// All members that the replica knew may be gone by now.
#[test]
fn a_proof_goes_back_to_whomever_the_replica_knows() {
    let proof = chain(&[4, 5, 6, 7]);
    for known in [&[1][..], &[1, 4, 5], &[6], &[5, 9]] {
        assert!(proves(&proof, &nodes(known), 7), "{known:?}");
    }
    assert!(!proves(&proof, &nodes(&[2, 3]), 7));
    // One link of them is made up.
    for at in 0..3 {
        let mut forged = proof.clone();
        forged.0[at].signature[7] ^= 1;
        assert!(!proves(&forged, &nodes(&[1]), 7), "{at}");
        let mut shorter = proof.clone();
        shorter.0.remove(at + 1);
        assert!(!shorter.proves(CLUSTER, &nodes(&[1]), 7, None), "{at}");
    }
}

#[test]
fn a_proof_stays_short_and_goes_back_as_far_as_it_can() {
    let many: Vec<u8> = (2..60).collect();
    let proof = chain(&many);
    assert_eq!(proof.0.len(), MOST);
    let bytes = codec::encode(&proof).unwrap();
    assert!(bytes.len() < 4096, "{} bytes beside each message", bytes.len());
    assert!(proves(&proof, &nodes(&[59 - MOST as u8]), 59));
    assert!(!proves(&proof, &nodes(&[1]), 59), "longer ago than a proof goes back");
    let longer = Proof(many.iter().map(|node| word(*node, node - 1)).collect());
    assert!(!proves(&longer, &nodes(&[58]), 59), "it takes nobody's time");
}

#[test]
fn who_left_or_was_revoked_lets_nobody_in() {
    let with = |change: &dyn Fn(&mut NodeInfo)| {
        let mut known = nodes(&[1, 2]);
        change(known.get_mut(&2).unwrap());
        // By 2 itself, and by one whom 2 let in.
        let by = Proof::default().with(word(4, 2));
        [proves(&by, &known, 4), proves(&by.with(word(5, 4)), &known, 5)]
    };
    let revoked = |after_unix_ms, before_unix_ms| {
        let within = Interval { after_unix_ms, before_unix_ms };
        vec![KeyRevocation { within, reason: "stolen".into(), by: 1, at_unix_ms: 9 }]
    };
    assert_eq!(with(&|_| {}), [true; 2]);
    assert_eq!(with(&|of| of.left = true), [false; 2]);
    assert_eq!(with(&|of| of.away = true), [true; 2], "it is silent, and comes back");
    let all = crate::watch::Revoked { keep: true, reason: String::new(), by: 1, at_unix_ms: 9 };
    assert_eq!(with(&|of| of.revoked = Some(all.clone())), [false; 2]);
    assert_eq!(
        with(&|of| of.keys[0].revoked = revoked(7, None)),
        [false; 2],
        "since it was stolen"
    );
    assert_eq!(with(&|of| of.keys[0].revoked = revoked(7, Some(8))), [true; 2], "it signs on");
}

/// Who changes its key is let in again, as it were, with the new one.
#[test]
fn a_member_that_signs_with_another_key_lets_nodes_in_as_before() {
    let keys = Keys { name: public(2), signing: public(20) };
    let owner = Owner { cluster: CLUSTER, node: 2 };
    let of_two = Proof::default().with(Endorsement::sign(owner, keys, 1, &key(1)).unwrap());
    let four = Owner { cluster: CLUSTER, node: 4 };
    let of_four = Keys { name: public(4), signing: public(4) };
    let by_new = of_two.with(Endorsement::sign(four, of_four, 2, &key(20)).unwrap());
    assert!(proves(&by_new, &nodes(&[1, 2]), 4), "the replica knows the old key of 2");
    let mut knows = nodes(&[2]);
    assert!(!proves(&by_new, &knows, 4), "and nobody who says that it has another");
    let (key, since_unix_ms) = (key(20).verifying_key(), 1);
    let new = NodeKey { key, since_unix_ms, revoked: Vec::new() };
    knows.get_mut(&2).unwrap().keys.push(new);
    assert!(proves(&by_new, &knows, 4));
}

#[test]
fn a_revoked_key_lets_nobody_in_by_an_older_word_for_it() {
    let keys = Keys { name: public(2), signing: public(2) };
    let owner = Owner { cluster: CLUSTER, node: 2 };
    let of_two = Proof::default().with(Endorsement::sign(owner, keys, 1, &key(1)).unwrap());
    let by_old = of_two.with(word(4, 2));
    let mut known = nodes(&[1, 2]);
    assert!(proves(&by_old, &known, 4));
    // Its key was stolen, and it signs with another one since.
    let within = Interval { after_unix_ms: 7, before_unix_ms: None };
    let stolen = KeyRevocation { within, reason: "stolen".into(), by: 1, at_unix_ms: 9 };
    let two = known.get_mut(&2).unwrap();
    two.keys[0].revoked.push(stolen);
    let on_the_roll = |nodes: &Nodes| Roll::of(nodes).keys(2).is_some();
    assert!(!on_the_roll(&known), "its present key is the stolen one");
    let (key, since_unix_ms) = (key(20).verifying_key(), 10);
    known.get_mut(&2).unwrap().keys.push(NodeKey { key, since_unix_ms, revoked: Vec::new() });
    assert!(!proves(&by_old, &known, 4));
    assert!(on_the_roll(&known));
}

#[test]
fn who_the_index_has_not_heard_of_is_known_by_the_roll_and_others_by_the_index() {
    let given = Admitted::by(chain(&[4]), &nodes(&[1, 2, 3]));
    let mut replayed = nodes(&[1]);
    let known = Known { index: &replayed, roll: Some(&given.roll) };
    assert_eq!(known.name(3), Some(public(3)), "which leads, maybe");
    assert!(known.has_name(&public(3)) && !known.has_name(&public(4)));
    assert!(proves(&Proof::default().with(word(5, 3)), &known, 5));
    replayed.get_mut(&1).unwrap().left = true;
    let known = Known { index: &replayed, roll: Some(&given.roll) };
    assert!(!proves(&Proof::default().with(word(5, 1)), &known, 5), "it left since");
    let nobody = Nodes::default();
    assert!(Known { index: &nobody, roll: None }.knows_nobody());
    assert!(!Known { index: &nobody, roll: Some(&given.roll) }.knows_nobody());
}

#[test]
fn without_an_index_a_replica_judges_by_the_roll_that_it_was_given() {
    let mut members = nodes(&[1, 2, 3]);
    members.get_mut(&3).unwrap().left = true;
    let given = Admitted::by(chain(&[4]), &members);
    let read = Admitted::decode(&given.encode().unwrap()).unwrap().unwrap();
    assert_eq!(read, given);
    assert_eq!(Admitted::decode(&[]).unwrap(), None, "by an earlier version");
    assert!(Admitted::decode(&[7; 40]).is_err());
    assert_eq!((read.roll.name(2), read.roll.name(3)), (Some(public(2)), None));
    assert!(read.roll.has_name(&public(1)) && !read.roll.has_name(&public(4)));
    assert!(proves(&chain(&[5]), &read.roll, 5), "who came after it");
    assert!(!proves(&Proof::default().with(word(5, 3)), &read.roll, 5), "by one who left");
    members.get_mut(&2).unwrap().facts.version = "0.1.0".into();
    assert!(Admitted::by(chain(&[4]), &members).roll.knows_nobody(), "2 could endorse nobody");
    let new =
        |id: u8| NewNode { candidate: [id; 16], facts: NodeFacts::default(), key: public(id) };
    let founders = Admitted::of_founders(&[new(1), new(2)]);
    assert_eq!(founders.roll.name(2), Some(public(2)));
}
