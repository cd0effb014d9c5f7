//! Operations that move elements.

use super::*;
use DType::{BF16, Bool, F32, I64};

const SIX: [f64; 6] = [0., 1., 2., 3., 4., 5.];
const X: Given<'static> = (F32, &[2, 3], &SIX);

fn moved(op: Op, shape: &[usize]) -> Vec<f64> {
    one(op, &[X], F32, shape)
}

fn slice(dim: usize, start: usize, step: i64) -> Op {
    Op::Slice { dim, start: start.into(), step }
}

#[test]
fn views() {
    assert_same(&moved(Op::Reshape, &[3, 1, 2]), &SIX);
    assert_same(&moved(Op::Permute(vec![1, 0]), &[3, 2]), &[0., 3., 1., 4., 2., 5.]);
    assert_same(&moved(Op::Expand, &[2, 2, 3])[6..], &SIX);
    assert_same(&moved(Op::Flip(vec![1]), &[2, 3]), &[2., 1., 0., 5., 4., 3.]);
    assert_same(&moved(Op::Flip(vec![0, 1]), &[2, 3]), &[5., 4., 3., 2., 1., 0.]);
    assert_same(&moved(slice(1, 0, 2), &[2, 2]), &[0., 2., 3., 5.]);
    assert_same(&moved(slice(1, 1, 2), &[2, 1]), &[1., 4.]);
    assert_same(&moved(slice(0, 1, 1), &[1, 3]), &[3., 4., 5.]);
    assert_same(&moved(slice(1, 3, 1), &[2, 0]), &[]);
    let x = (BF16, &[3, 1][..], &[1., 2., 3.][..]);
    assert_same(&one(Op::Expand, &[x], BF16, &[3, 2]), &[1., 1., 2., 2., 3., 3.]);
    assert_same(&one(Op::Expand, &[(I64, &[], &[7.])], I64, &[2]), &[7., 7.]);
}

#[test]
fn views_of_nothing() {
    let none = (F32, &[0, 3][..], &[][..]);
    assert_same(&one(Op::Reshape, &[none], F32, &[3, 0, 7]), &[]);
    assert_same(&one(Op::Flip(vec![0]), &[none], F32, &[0, 3]), &[]);
    assert_same(&one(Op::Permute(vec![1, 0]), &[none], F32, &[3, 0]), &[]);
    assert_same(&one(Op::Roll { dim: 0, shift: 1.into() }, &[none], F32, &[0, 3]), &[]);
    assert_same(&one(Op::Expand, &[(F32, &[1], &[1.])], F32, &[0]), &[]);
}

#[test]
fn roll_turns_either_way() {
    let roll = |dim, shift: i64| moved(Op::Roll { dim, shift: shift.into() }, &[2, 3]);
    assert_same(&roll(1, 1), &[2., 0., 1., 5., 3., 4.]);
    assert_same(&roll(1, -4), &[1., 2., 0., 4., 5., 3.]);
    assert_same(&roll(0, 3), &[3., 4., 5., 0., 1., 2.]);
}

#[test]
fn pad_puts_the_value_around() {
    let pad = |before: &[usize], value| Op::Pad {
        before: before.iter().map(|size| Size::from(*size)).collect(),
        value,
    };
    let padded = one(pad(&[1, 0], Number::Float(-INF)), &[X], F32, &[3, 4]);
    let low = -INF;
    assert_same(&padded, &[low, low, low, low, 0., 1., 2., low, 3., 4., 5., low]);
    let bools = (Bool, &[1][..], &[0.][..]);
    assert_same(&one(pad(&[2], Number::Bool(true)), &[bools], Bool, &[3]), &[1., 1., 0.]);
    assert!(refused(pad(&[1, 1], Number::Int(0)), &[X], F32, &[3, 3]).contains("does not fit"));
    let none = (F32, &[0][..], &[][..]);
    assert_same(&one(pad(&[1], Number::Int(2)), &[none], F32, &[2]), &[2., 2.]);
}

#[test]
fn cat_joins_parts_of_any_size() {
    let parts = [X, (F32, &[2, 0], &[]), (F32, &[2, 1], &[8., 9.])];
    let joined = one(Op::Cat { dim: 1 }, &parts, F32, &[2, 4]);
    assert_same(&joined, &[0., 1., 2., 8., 3., 4., 5., 9.]);
    assert_same(&one(Op::Cat { dim: 0 }, &[X, X], F32, &[4, 3])[6..], &SIX);
    assert!(refused(Op::Cat { dim: 0 }, &[X, X], F32, &[5, 3]).contains("do not fill"));
    assert!(refused(Op::Cat { dim: 0 }, &[X, X], F32, &[3, 3]).contains("does not fit"));
}

#[test]
fn windows_overlap_and_skip() {
    let x = (F32, &[1, 6][..], &SIX[..]);
    let window = |step, dilation| Op::Window { dim: 1, step, dilation };
    let windows = one(window(2, 1), &[x], F32, &[1, 2, 3]);
    assert_same(&windows, &[0., 1., 2., 2., 3., 4.]);
    let windows = one(window(1, 2), &[x], F32, &[1, 4, 2]);
    assert_same(&windows, &[0., 2., 1., 3., 2., 4., 3., 5.]);
    let inner = one(Op::Window { dim: 0, step: 1, dilation: 1 }, &[X], F32, &[1, 3, 2]);
    assert_same(&inner, &[0., 3., 1., 4., 2., 5.]);
    assert!(refused(window(2, 1), &[x], F32, &[1, 3, 3]).contains("are not in 6"));
}

#[test]
fn counting_and_filling() {
    let iota = |start, step| Op::Iota { start, step };
    let count = one(iota(Number::Int(5), Number::Int(-2)), &[], I64, &[4]);
    assert_same(&count, &[5., 3., 1., -1.]);
    let count = one(iota(Number::Float(0.5), Number::Int(1)), &[], F32, &[3]);
    assert_same(&count, &[0.5, 1.5, 2.5]);
    assert_same(&one(iota(Number::Int(0), Number::Int(1)), &[], F32, &[0]), &[]);
    assert_same(&one(Op::Full(Number::Float(NAN)), &[], BF16, &[2, 1]), &[NAN, NAN]);
    assert_same(&one(Op::Full(Number::Bool(true)), &[], Bool, &[]), &[1.]);
    assert_same(&one(Op::Full(Number::Float(2.7)), &[], I64, &[1]), &[2.]);
}

#[test]
fn what_breaks_a_rule_is_refused() {
    for (op, shape, why) in [
        (Op::Reshape, &[4][..], "not as many"),
        (Op::Permute(vec![0, 0]), &[2, 2], "no order"),
        (Op::Permute(vec![0, 2]), &[2, 2], "no order"),
        (Op::Expand, &[3, 3], "does not broadcast"),
        (Op::Flip(vec![2]), &[2, 3], "no dimension 2"),
        (slice(1, 2, 1), &[2, 2], "are not in 3"),
        (slice(1, 2, 0), &[2, 1], "forwards"),
        (slice(7, 2, 1), &[2, 1], "no dimension 7"),
        (Op::Slice { dim: 0, start: (-1).into(), step: 1 }, &[1, 3], "-1"),
        (Op::Cat { dim: 3 }, &[2, 3], "no dimension 3"),
        (Op::Roll { dim: 2, shift: 1.into() }, &[2, 3], "no dimension 2"),
        (Op::CumSum { dim: 2 }, &[2, 3], "no dimension 2"),
        (Op::Permute(vec![1, 0]), &[2, 3], "the program says [2, 3]"),
        (Op::MatMul, &[2, 3], "no operand 1"),
    ] {
        let said = refused(op.clone(), &[X], F32, shape);
        assert!(said.contains(why), "{op:?}: {said}");
    }
}
