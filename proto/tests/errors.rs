//! The page of errors is the table of classes, and the table is whole.
//!
//! `make errors` writes the page anew: this test with KILN_WRITE_ERRORS set.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use kiln_proto::{CLASSES, FailureKind, classes, code_meaning, errors_page};

#[test]
fn the_page_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ERRORS.md");
    if std::env::var_os("KILN_WRITE_ERRORS").is_some() {
        std::fs::write(path, errors_page()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page == errors_page(), "deploy/ERRORS.md is stale: run `make errors`");
}

#[test]
fn each_kind_has_one_class_with_something_to_do() {
    // On the wire each kind has a number: as many as there are.
    let on_the_wire: BTreeSet<_> = (1..64)
        .filter_map(|number| kiln_proto::pb::FailureKind::try_from(number).ok())
        .map(|kind| {
            let wire = kiln_proto::pb::Failure { kind: kind.into(), message: String::new() };
            kiln_proto::convert::failure(wire).unwrap().kind.name()
        })
        .collect();
    let in_the_table: BTreeSet<_> = CLASSES.iter().map(|class| class.kind.name()).collect();
    assert_eq!(in_the_table, on_the_wire);
    assert_eq!(in_the_table.len(), CLASSES.len(), "none twice");
    assert!(CLASSES.iter().all(|class| FailureKind::named(class.kind.name()) == Some(class.kind)));
    for class in &CLASSES {
        assert_eq!(class.kind.class(), class);
        assert!(!class.advice.is_empty() && !class.done.is_empty() && !class.meaning.is_empty());
        // A cell of a table, and a header of HTTP/2.
        for text in [class.meaning, class.advice, class.done] {
            assert!(text.is_ascii() && !text.contains(['|', '\n']), "{text:?}");
        }
        assert!(!code_meaning(class.kind.code()).is_empty());
    }
}

#[test]
fn a_code_a_kind_or_an_exit_code_is_found() {
    let kinds = |of| classes(of).iter().map(|class| class.kind).collect::<Vec<_>>();
    assert_eq!(kinds("timeout"), [FailureKind::Timeout]);
    assert_eq!(kinds("c004"), [FailureKind::Timeout]);
    assert_eq!(kinds("14"), [FailureKind::Timeout]);
    assert_eq!(kinds("C005").len(), 4);
    assert!(kinds("C006").is_empty() && kinds("").is_empty());
}
