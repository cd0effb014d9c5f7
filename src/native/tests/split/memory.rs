//! Where a stitching puts what pieces leave each other.

use super::{
    build::{Build, chain, numbers, products},
    finest, same,
};
use crate::{
    plan::{Expr, Memory},
    split::Settings,
};

/// Every operation a piece, no layers looked for.
fn single() -> Settings {
    Settings { layers: false, at: Vec::new(), ..finest() }
}

#[test]
fn a_chain_of_maps_works_in_place() {
    let done = same(&chain("256", 9), &[vec![numbers(&[256])]], &single()).unwrap();
    let in_place = done.stitching.calls.iter().filter(|call| call.in_place.is_some()).count();
    // The first reads the caller's memory, the last writes it.
    assert_eq!((done.stitching.calls.len(), in_place), (9, 7));
    assert_eq!(done.stitching.workspace_bytes, Expr::Known(1024));
}

#[test]
fn so_does_one_of_any_size() {
    let cases = [3, 64].map(|size| vec![numbers(&[size])]);
    let done = same(&chain("s0", 9), &cases, &single()).unwrap();
    let bytes = |size| done.stitching.workspace_bytes.value(&[size]);
    assert_eq!((bytes(64), bytes(1)), (Some(256), Some(256)));
}

#[test]
fn what_is_read_again_keeps_its_memory() {
    let mut build = Build::default();
    let x = build.input(&["64"]);
    let a = build.node("neg.default", &[("self", x)], &["64"]);
    let b = build.node("exp.default", &[("self", a)], &["64"]);
    let c = build.node("sin.default", &[("self", b)], &["64"]);
    let last = build.node("mul.Tensor", &[("self", c), ("other", a)], &["64"]);
    let graph = build.output(&[last]);
    let done = same(&graph, &[vec![numbers(&[64])]], &single()).unwrap();
    // `a` lives on, `b` and `c` share.
    assert_eq!(done.stitching.workspace_bytes, Expr::Known(512));
    assert_eq!(done.stitching.calls.iter().filter(|call| call.in_place.is_some()).count(), 1);
}

#[test]
fn a_product_never_works_in_place() {
    let mut settings = single();
    settings.budget.most_operations = 1;
    let mut inputs = vec![numbers(&[4, 8])];
    inputs.extend((0..3).map(|_| numbers(&[8, 8])));
    let done = same(&products(3), &[inputs], &settings).unwrap();
    for call in &done.stitching.calls {
        let op = &done.split.items.iter().find(|item| item.piece == call.piece).unwrap().graph;
        let is_product = op.nodes.iter().any(|node| node.op == "aten.mm.default");
        assert!(!(is_product && call.in_place.is_some()));
    }
}

#[test]
fn outputs_are_written_where_the_caller_wants_them() {
    let mut build = Build::default();
    let x = build.input(&["8"]);
    let a = build.node("neg.default", &[("self", x)], &["8"]);
    let b = build.node("exp.default", &[("self", a)], &["8"]);
    let graph = build.output(&[b, a, x, a]);
    let done = same(&graph, &[vec![numbers(&[8])]], &single()).unwrap();
    let memory: Vec<&Memory> = done.stitching.values.iter().map(|value| &value.memory).collect();
    assert_eq!(memory, [&Memory::Output(1), &Memory::Output(0)]);
    let copies: Vec<usize> = done.stitching.copies.iter().map(|copy| copy.output).collect();
    assert_eq!(copies, [2, 3]);
    assert_eq!(done.stitching.workspace_bytes, Expr::Known(0));
}
