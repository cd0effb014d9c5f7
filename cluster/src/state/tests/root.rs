//! What the cluster's root says.

use ed25519_dalek::{SigningKey, VerifyingKey};
use kiln_proto::root::{RootStatement, Says, SignedStatement, SignerCertificate};

use super::*;
use crate::trust::Trust;

fn root(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(super) fn policy(serial: u64, required: bool) -> RootStatement {
    RootStatement { serial, cluster: 5, says: Says::Root { required } }
}

fn certificate(serial: u64, namespace: &str) -> RootStatement {
    of_key(root(50).verifying_key().to_bytes(), serial, namespace)
}

pub(super) fn of_key(key: [u8; 32], serial: u64, namespace: &str) -> RootStatement {
    let says = SignerCertificate {
        key,
        node: None,
        name: String::new(),
        namespaces: vec![namespace.into()],
        not_before_unix_ms: 0,
        not_after_unix_ms: None,
    };
    RootStatement { serial, cluster: 5, says: Says::Signer(says) }
}

pub(super) fn said(seed: u8, statement: &RootStatement) -> Command {
    let (root, statement) = (root(seed), statement.sign(&root(seed)).unwrap());
    Command::RootSays { root: root.verifying_key().to_bytes(), statement, node: 1 }
}

/// A cluster of which the root has certified every node.
pub(super) fn certified(by: u8) -> Model {
    let mut state = founded();
    assert_eq!(state.apply(3, said(by, &policy(1, false))).0, Response::Changed(true));
    for node in crate::table::nodes(&state).unwrap().into_values() {
        let response = state.apply(4, said(by, &of_key(node.key, 1, "*"))).0;
        assert_eq!(response, Response::Changed(true));
    }
    state
}

fn trust(state: &Model) -> Trust {
    crate::table::trust(state).unwrap()
}

fn refused(response: &Response, why: &str) {
    assert!(matches!(response, Response::Refused(told) if told.contains(why)), "{response:?}");
}

#[test]
fn a_root_stays_and_only_it_says_who_signs() {
    let mut state = founded();
    refused(&state.apply(3, said(1, &certificate(1, "a"))).0, "no root");
    let (response, events) = state.apply(4, said(1, &policy(5, false)));
    assert_eq!((response, events), (Response::Changed(true), vec![Event::TrustChanged]));
    refused(&state.apply(6, said(2, &certificate(9, "a"))).0, "the root of this cluster is");
    assert_eq!(state.apply(7, said(1, &certificate(1, "a"))).0, Response::Changed(true));
    // In the root's name, and not signed by it.
    let statement = certificate(9, "b").sign(&root(2)).unwrap();
    let forged = Command::RootSays { root: root(1).verifying_key().to_bytes(), statement, node: 1 };
    refused(&state.apply(8, forged).0, "not signed by that root");
    let trust = trust(&state);
    assert_eq!(trust.root().unwrap().key, root(1).verifying_key());
    let of = trust.certificate(&root(50).verifying_key()).unwrap();
    assert_eq!((of.serial, &of.says.namespaces[..]), (1, &["a".to_owned()][..]));
}

#[test]
fn of_two_statements_the_later_counts_in_whichever_order_they_come() {
    let mut state = certified(1);
    state.apply(5, said(1, &policy(5, true)));
    assert!(trust(&state).is_required());
    refused(&state.apply(4, said(1, &policy(4, false))).0, "later statement");
    refused(&state.apply(5, said(1, &policy(5, false))).0, "later statement");
    assert!(trust(&state).is_required(), "an old statement is not brought back");
    assert_eq!(state.apply(6, said(1, &policy(5, true))).0, Response::Changed(false), "again");
    assert_eq!(state.apply(7, said(1, &policy(6, false))).0, Response::Changed(true));
    assert!(!trust(&state).is_required());
    state.apply(8, said(1, &certificate(7, "new")));
    refused(&state.apply(9, said(1, &certificate(6, "old"))).0, "later statement");
    let key = root(50).verifying_key();
    let judge = |state: &Model, namespace| trust(state).judge(1, &key, Some(namespace), 5).is_ok();
    assert!(judge(&state, "new") && !judge(&state, "old"));
}

/// A snapshot may come from a leader that lies.
#[test]
fn what_the_root_has_not_signed_counts_nowhere_though_it_is_in_the_index() {
    use crate::table::{CertificateRecord, RootRecord};
    let by = |seed: u8, statement: &RootStatement| statement.sign(&root(seed)).unwrap();
    let of = |root_by: u8, certificate_by: u8| {
        let key = root(1).verifying_key().to_bytes();
        let root = RootRecord { key, serial: 1, statement: by(root_by, &policy(1, true)) };
        let statement = by(certificate_by, &certificate(1, "a"));
        Trust::of(5, Some(root), [CertificateRecord { serial: 1, statement }])
    };
    assert_eq!((of(1, 1).is_required(), of(1, 1).certificates().count()), (true, 1));
    assert_eq!((of(1, 2).is_required(), of(1, 2).certificates().count()), (true, 0));
    assert_eq!(of(2, 1), Trust::default());
    let swapped = SignedStatement { bytes: Vec::new(), ..by(1, &policy(1, true)) };
    let key = root(1).verifying_key().to_bytes();
    let record = RootRecord { key, serial: 1, statement: swapped };
    assert_eq!(Trust::of(5, Some(record), []), Trust::default());
}

/// A member says so past the API, with a replica of its own.
#[test]
fn none_is_required_while_a_node_that_may_come_back_has_no_certificate() {
    for away in [false, true] {
        let mut state = founded();
        state.apply(3, said(1, &policy(1, false)));
        let nodes = crate::table::nodes(&state).unwrap();
        let (_, key) = nodes.iter().map(|(id, node)| (*id, node.key)).next().unwrap();
        state.apply(4, said(1, &of_key(key, 1, "*")));
        let last = *nodes.keys().last().unwrap();
        if away {
            assert_eq!(state.apply(5, Command::SetAway(last)).0, Response::Changed(true));
        }
        let why = format!("nodes without a certificate: {last};");
        refused(&state.apply(6, said(1, &policy(2, true))).0, &why);
        assert!(!trust(&state).is_required());
        // One for another node is none.
        let RootStatement { serial, cluster, says } = of_key(nodes[&last].key, 2, "*");
        let Says::Signer(of) = says else { unreachable!() };
        let says = Says::Signer(SignerCertificate { node: Some(last + 1), ..of });
        state.apply(7, said(1, &RootStatement { serial, cluster, says }));
        refused(&state.apply(8, said(1, &policy(3, true))).0, &why);
        state.apply(9, said(1, &of_key(nodes[&last].key, 3, "*")));
        assert_eq!(state.apply(10, said(1, &policy(4, true))).0, Response::Changed(true));
    }
    let mut state = founded();
    refused(&state.apply(3, said(1, &policy(1, true))).0, "nodes without a certificate");
    assert_eq!(trust(&state), Trust::default());
}

#[test]
fn what_was_said_of_another_cluster_is_not_taken_and_counts_for_nothing() {
    let mut state = certified(1);
    let elsewhere = |statement: RootStatement| RootStatement { cluster: 6, ..statement };
    for statement in [policy(9, false), policy(9, true), certificate(9, "*")] {
        let response = state.apply(5, said(1, &elsewhere(statement))).0;
        refused(&response, "for the cluster 0000000000000006");
    }
    let mut fresh = founded();
    refused(&fresh.apply(3, said(1, &elsewhere(policy(9, false)))).0, "for the cluster");
    use crate::table::{CertificateRecord, RootRecord};
    let record = |of: u64| {
        let key = root(1).verifying_key().to_bytes();
        let statement = RootStatement { cluster: of, ..policy(1, true) }.sign(&root(1)).unwrap();
        RootRecord { key, serial: 1, statement }
    };
    let certificate = |of: u64| {
        let said = RootStatement { cluster: of, ..certificate(1, "a") };
        CertificateRecord { serial: 1, statement: said.sign(&root(1)).unwrap() }
    };
    assert_eq!(Trust::of(5, Some(record(5)), [certificate(6)]).certificates().count(), 0);
    assert_eq!(Trust::of(5, Some(record(6)), [certificate(5)]), Trust::default());
}

/// Whoever is a member can name the first one: that is no lock-out.
#[test]
fn another_root_takes_the_place_of_one_that_is_not_required_and_of_no_other() {
    let mut state = certified(1);
    assert_eq!(trust(&state).certificates().count(), 2);
    assert_eq!(state.apply(5, said(2, &policy(1, false))).0, Response::Changed(true));
    assert_eq!(trust(&state).root().unwrap().key, root(2).verifying_key());
    assert_eq!(trust(&state).certificates().count(), 0, "the other one's");
    // Nothing of the first root is left that would be in its way.
    let nodes = crate::table::nodes(&state).unwrap();
    for node in nodes.values() {
        let response = state.apply(6, said(2, &of_key(node.key, 1, "*"))).0;
        assert_eq!(response, Response::Changed(true));
    }
    assert_eq!(state.apply(7, said(2, &policy(2, true))).0, Response::Changed(true));
    refused(&state.apply(8, said(1, &policy(99, false))).0, "the root of this cluster is");
}

fn next(serial: u64, key: [u8; 32]) -> RootStatement {
    RootStatement { serial, cluster: 5, says: Says::Next { key } }
}

#[test]
fn a_required_root_is_followed_by_the_one_that_it_named_once_that_has_certified_all() {
    let mut state = certified(1);
    assert_eq!(state.apply(5, said(1, &policy(2, true))).0, Response::Changed(true));
    let new = root(2).verifying_key();
    let keys: Vec<[u8; 32]> =
        crate::table::nodes(&state).unwrap().into_values().map(|node| node.key).collect();
    // Nobody has named it yet, and it names nobody.
    refused(&state.apply(6, said(2, &of_key(keys[0], 1, "*"))).0, "the root of this cluster is");
    refused(&state.apply(7, said(2, &next(1, new.to_bytes()))).0, "the root of this cluster is");
    assert_eq!(state.apply(8, said(1, &next(1, new.to_bytes()))).0, Response::Changed(true));
    assert_eq!(state.apply(9, said(1, &next(1, new.to_bytes()))).0, Response::Changed(false));
    assert_eq!(trust(&state).next_root(), Some(&new));
    refused(&state.apply(10, said(2, &next(1, [3; 32]))).0, "not the root yet");
    refused(&state.apply(11, said(2, &policy(2, true))).0, "nodes without a certificate");

    // What it says of keys counts for nothing yet, and what the present root says does.
    let before = trust(&state);
    for (index, key) in (12..).zip(&keys) {
        assert_eq!(state.apply(index, said(2, &of_key(*key, 2, "new"))).0, Response::Changed(true));
    }
    let public = root(60).verifying_key().to_bytes();
    let (now, first) = (trust(&state), VerifyingKey::from_bytes(&keys[0]).unwrap());
    assert_eq!(now.certificate(&first), before.certificate(&first));
    assert!(now.judge(1, &first, Some("old"), 1).is_ok());
    refused(&state.apply(20, said(2, &of_key(keys[0], 2, "*"))).0, "later statement");
    refused(&state.apply(20, said(2, &of_key(public, 1, "*"))).0, "of before the statement 1");
    refused(&state.apply(20, said(2, &policy(1, true))).0, "of before the statement 1");
    refused(&state.apply(20, said(2, &policy(1, false))).0, "of before the statement 1");
    refused(&state.apply(20, said(2, &policy(2, false))).0, "sign it with --required");

    // In one step the one takes the other's place, with its certificates.
    assert_eq!(state.apply(21, said(2, &policy(2, true))).0, Response::Changed(true));
    let now = trust(&state);
    assert_eq!((now.root().map(|root| root.key), now.is_required()), (Some(new), true));
    assert!(now.judge(1, &first, Some("new"), 1).is_ok());
    assert!(now.judge(1, &first, Some("old"), 1).is_err());
    assert_eq!(now.next_root(), None);
    refused(&state.apply(22, said(2, &of_key(public, 1, "*"))).0, "of before the statement 1");
    refused(&state.apply(22, said(1, &policy(9, true))).0, "the root of this cluster is");
    refused(&state.apply(23, said(1, &next(9, [1; 32]))).0, "the root of this cluster is");
    assert_eq!(state.apply(24, said(2, &of_key(keys[0], 3, "*"))).0, Response::Changed(true));
}

#[test]
fn a_root_can_name_another_one_than_before_or_none() {
    let mut state = certified(1);
    state.apply(5, said(1, &policy(2, true)));
    let keys = [2, 3, 1].map(|seed| root(seed).verifying_key().to_bytes());
    let signer = root(9).verifying_key().to_bytes();
    state.apply(6, said(1, &next(1, keys[0])));
    assert_eq!(state.apply(7, said(2, &of_key(signer, 2, "*"))).0, Response::Changed(true));
    assert_eq!(state.apply(8, said(1, &next(2, keys[1]))).0, Response::Changed(true));
    refused(&state.apply(9, said(2, &of_key(signer, 2, "*"))).0, "the root of this cluster is");
    refused(&state.apply(10, said(1, &next(1, keys[0]))).0, "later statement");
    // What the one before it said of keys is not what it says.
    let of = VerifyingKey::from_bytes(&signer).unwrap();
    let coming = VerifyingKey::from_bytes(&keys[1]).unwrap();
    assert!(trust(&state).after(&coming).certificate(&of).is_none());
    assert_eq!(state.apply(11, said(1, &next(3, keys[2]))).0, Response::Changed(true), "itself");
    assert_eq!(trust(&state).next_root(), None);
    refused(&state.apply(12, said(3, &of_key(signer, 1, "*"))).0, "the root of this cluster is");
}

#[test]
fn naming_the_same_root_again_keeps_what_it_said_and_no_old_word_of_a_root_counts_again() {
    let mut state = certified(1);
    state.apply(5, said(1, &policy(2, true)));
    let keys = [2, 3].map(|seed| root(seed).verifying_key().to_bytes());
    let signer = root(9).verifying_key();
    let of = |serial, namespace| said(2, &of_key(signer.to_bytes(), serial, namespace));
    let may = |state: &Model, namespace| {
        let coming = trust(state).after(&root(2).verifying_key());
        coming.judge(1, &signer, Some(namespace), 1).is_ok()
    };
    state.apply(6, said(1, &next(10, keys[0])));
    assert_eq!(state.apply(7, of(11, "*")).0, Response::Changed(true));
    assert_eq!(state.apply(8, of(12, "team")).0, Response::Changed(true));
    assert_eq!(state.apply(9, said(1, &next(20, keys[0]))).0, Response::Changed(true));
    assert!(may(&state, "team") && !may(&state, "lab"), "what it said last");
    refused(&state.apply(10, of(11, "*")).0, "later statement");
    // Through another one, what it said is forgotten: so the replaced one comes no more.
    state.apply(11, said(1, &next(30, keys[1])));
    state.apply(12, said(1, &next(40, keys[0])));
    refused(&state.apply(13, of(11, "*")).0, "of before the statement 40");
    assert!(!may(&state, "team"));
    for (index, node) in (14..).zip(crate::table::nodes(&state).unwrap().into_values()) {
        state.apply(index, said(2, &of_key(node.key, 41, "*")));
    }
    assert_eq!(state.apply(20, said(2, &policy(41, true))).0, Response::Changed(true));
    refused(&state.apply(21, of(11, "*")).0, "of before the statement 40");
    state.apply(22, said(2, &next(50, keys[1])));
    refused(&state.apply(23, of(11, "*")).0, "of before the statement 40");
    assert_eq!(state.apply(24, of(51, "team")).0, Response::Changed(true));
}

#[test]
fn a_key_that_signs_nothing_more_needs_no_certificate_and_earlier_ones_are_named() {
    use crate::signing::{Interval, KeyChange, KeyRevocation};
    let mut state = founded();
    state.apply(3, said(1, &policy(1, false)));
    let first = keys::public(0);
    let later = keys::public(7);
    state.apply(4, Command::Keys(KeyChange::Rotate { node: 1, key: later, at_unix_ms: 9 }));
    let told = state.apply(5, said(1, &policy(2, true))).0;
    refused(&told, "nodes without a certificate: 1, 2;");
    refused(&told, &format!("{} of node 1", hex::encode(first)));
    assert_eq!(
        state.apply(6, said(1, &of_key(keys::public(1), 1, "*"))).0,
        Response::Changed(true)
    );
    let all = Interval { after_unix_ms: 0, before_unix_ms: None };
    let revocation = KeyRevocation { within: all, reason: "copied".into(), by: 2, at_unix_ms: 20 };
    state.apply(7, Command::Keys(KeyChange::Revoke { key: later, revocation }));
    assert_eq!(state.apply(8, said(1, &policy(3, true))).0, Response::Changed(true));
}
