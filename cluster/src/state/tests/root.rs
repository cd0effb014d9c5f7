//! What the cluster's root says.

use ed25519_dalek::SigningKey;
use kiln_proto::root::{RootStatement, Says, SignedStatement, SignerCertificate};

use super::*;
use crate::trust::Trust;

fn root(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(super) fn policy(serial: u64, required: bool) -> RootStatement {
    RootStatement { serial, says: Says::Root { required } }
}

fn certificate(serial: u64, namespace: &str) -> RootStatement {
    let says = SignerCertificate {
        key: root(50).verifying_key().to_bytes(),
        node: None,
        name: String::new(),
        namespaces: vec![namespace.into()],
        not_before_unix_ms: 0,
        not_after_unix_ms: None,
    };
    RootStatement { serial, says: Says::Signer(says) }
}

pub(super) fn said(seed: u8, statement: &RootStatement) -> Command {
    let (root, statement) = (root(seed), statement.sign(&root(seed)).unwrap());
    Command::RootSays { root: root.verifying_key().to_bytes(), statement, node: 1 }
}

fn trust(state: &Model) -> Trust {
    crate::table::trust(state).unwrap()
}

fn refused(response: &Response, why: &str) {
    assert!(matches!(response, Response::Refused(told) if told.contains(why)), "{response:?}");
}

#[test]
fn the_first_root_stays_and_only_it_says_who_signs() {
    let mut state = founded();
    refused(&state.apply(3, said(1, &certificate(1, "a"))).0, "no root");
    let (response, events) = state.apply(4, said(1, &policy(5, false)));
    assert_eq!((response, events), (Response::Changed(true), vec![Event::TrustChanged]));
    refused(&state.apply(5, said(2, &policy(9, false))).0, "the root of this cluster is");
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
    let mut state = founded();
    state.apply(3, said(1, &policy(5, true)));
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
        Trust::of(Some(root), [CertificateRecord { serial: 1, statement }])
    };
    assert_eq!((of(1, 1).is_required(), of(1, 1).certificates().count()), (true, 1));
    assert_eq!((of(1, 2).is_required(), of(1, 2).certificates().count()), (true, 0));
    assert_eq!(of(2, 1), Trust::default());
    let swapped = SignedStatement { bytes: Vec::new(), ..by(1, &policy(1, true)) };
    let key = root(1).verifying_key().to_bytes();
    let record = RootRecord { key, serial: 1, statement: swapped };
    assert_eq!(Trust::of(Some(record), []), Trust::default());
}
