//! Reads at computed positions.

use super::*;
use DType::{F32, I32, I64};

const X: Given<'static> = (F32, &[2, 3], &[0., 1., 2., 3., 4., 5.]);

#[test]
fn gather_replaces_one_coordinate() {
    let gather = |dim, positions: Given<'_>, shape: &[usize]| {
        one(Op::Gather { dim }, &[X, positions], F32, shape)
    };
    let columns = (I64, &[2, 2][..], &[2., 0., 1., 1.][..]);
    assert_same(&gather(1, columns, &[2, 2]), &[2., 0., 4., 4.]);
    let rows = (I32, &[1, 2][..], &[1., 0.][..]);
    assert_same(&gather(0, rows, &[1, 2]), &[3., 1.]);
    assert_same(&gather(1, (I64, &[2, 0], &[]), &[2, 0]), &[]);
}

#[test]
fn index_gathers_whole_parts() {
    let index = |dims: &[usize], wrap, positions: &[Given<'_>], shape: &[usize]| {
        let reads: Vec<Given<'_>> = [X].iter().chain(positions).copied().collect();
        one(Op::Index { dims: dims.to_vec(), wrap }, &reads, F32, shape)
    };
    // As an embedding: rows by number, in the shape of the numbers.
    let rows = (I64, &[3, 1][..], &[1., 0., 1.][..]);
    let expected = [3., 4., 5., 0., 1., 2., 3., 4., 5.];
    assert_same(&index(&[0], false, &[rows], &[3, 1, 3]), &expected);
    let columns = (I64, &[2][..], &[-1., 0.][..]);
    assert_same(&index(&[1], true, &[columns], &[2, 2]), &[2., 5., 0., 3.]);
    let points = [(I64, &[2][..], &[-1., 0.][..]), (I64, &[2], &[1., -3.])];
    assert_same(&index(&[0, 1], true, &points, &[2]), &[4., 0.]);
    assert_same(&index(&[0], true, &[(I64, &[], &[1.])], &[3]), &[3., 4., 5.]);
    assert_same(&index(&[0], true, &[(I64, &[0], &[])], &[0, 3]), &[]);
}

#[test]
fn a_position_out_of_range_is_named() {
    let index = |position: f64, wrap| {
        let reads = [X, (I64, &[1][..], &[position][..])];
        refused(Op::Index { dims: vec![1], wrap }, &reads, F32, &[2, 1])
    };
    assert!(index(3., true).contains("position 3 is not in a dimension of 3"));
    assert!(index(-4., true).contains("position -4 "));
    assert!(index(-1., false).contains("position -1 "));
    assert!(index(-1., false).contains("operation 0, Index"), "{}", index(-1., false));
    let reads = [X, (I64, &[2, 1][..], &[0., -1.][..])];
    assert!(refused(Op::Gather { dim: 1 }, &reads, F32, &[2, 1]).contains("position -1 "));
}

#[test]
fn positions_that_do_not_fit_are_refused() {
    let floats = [X, (F32, &[1, 1][..], &[0.][..])];
    assert!(refused(Op::Gather { dim: 0 }, &floats, F32, &[1, 1]).contains("whole numbers"));
    let more = [X, (I64, &[3, 1][..], &[0., 0., 0.][..])];
    assert!(refused(Op::Gather { dim: 1 }, &more, F32, &[3, 1]).contains("positions [3, 1]"));
    let two = [X, (I64, &[1][..], &[0.][..]), (I64, &[2], &[0., 0.])];
    let op = Op::Index { dims: vec![0, 1], wrap: true };
    assert!(refused(op, &two, F32, &[1]).contains("beside"));
    let op = Op::Index { dims: vec![0], wrap: true };
    assert!(refused(op, &two, F32, &[1, 3]).contains("2 tensors of positions"));
}
