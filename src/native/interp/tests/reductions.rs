//! Reductions, running sums and the greatest of many.

use super::*;
use crate::core::Reduction::{self, All, Any, ArgMax, ArgMin, Max, Min, Prod, Sum};
use DType::{BF16, Bool, F32, I32, I64};

fn reduced(
    how: Reduction,
    dims: &[usize],
    x: Given<'_>,
    dtype: DType,
    shape: &[usize],
) -> Vec<f64> {
    one(Op::Reduce { how, dims: dims.to_vec() }, &[x], dtype, shape)
}

#[test]
fn over_any_dimensions() {
    let x: Vec<f64> = (0..12).map(f64::from).collect();
    let x = (F32, &[2, 3, 2][..], &x[..]);
    assert_same(&reduced(Sum, &[0, 1, 2], x, F32, &[]), &[66.]);
    assert_same(&reduced(Sum, &[1], x, F32, &[2, 2]), &[6., 9., 24., 27.]);
    assert_same(&reduced(Sum, &[0, 2], x, F32, &[3]), &[14., 22., 30.]);
    assert_same(&reduced(Max, &[0, 1], x, F32, &[2]), &[10., 11.]);
    assert_same(&reduced(Sum, &[], x, F32, &[2, 3, 2]), x.2);
    assert_same(&reduced(ArgMax, &[0, 2], x, I64, &[3]), &[3., 3., 3.]);
    assert_same(&reduced(ArgMin, &[0, 1, 2], x, I64, &[]), &[0.]);
}

#[test]
fn of_nothing() {
    let none = (F32, &[2, 0][..], &[][..]);
    assert_same(&reduced(Sum, &[1], none, F32, &[2]), &[0., 0.]);
    assert_same(&reduced(Prod, &[1], none, F32, &[2]), &[1., 1.]);
    assert_same(&reduced(Any, &[1], none, Bool, &[2]), &[0., 0.]);
    assert_same(&reduced(All, &[1], none, Bool, &[2]), &[1., 1.]);
    assert_same(&reduced(Max, &[0], none, F32, &[0]), &[]);
    assert_same(&reduced(Max, &[1], none, F32, &[2]), &[-f64::INFINITY; 2]);
    assert_same(&reduced(Min, &[1], none, F32, &[2]), &[f64::INFINITY; 2]);
    let none_of = |dtype| (dtype, &[1, 0][..], &[][..]);
    assert_same(&reduced(Max, &[1], none_of(I64), I64, &[1]), &[i64::MIN as f64]);
    assert_same(&reduced(Max, &[1], none_of(Bool), Bool, &[1]), &[0.]);
    assert_same(&reduced(Min, &[1], none_of(Bool), Bool, &[1]), &[1.]);
    for how in [ArgMax, ArgMin] {
        let op = Op::Reduce { how, dims: vec![1] };
        assert!(refused(op, &[none], F32, &[2]).contains("of nothing"));
    }
}

#[test]
fn nan_is_the_best_and_the_first_of_equals_wins() {
    let x = (F32, &[4][..], &[1., NAN, 3., NAN][..]);
    for (how, expected) in [(Max, NAN), (Min, NAN), (ArgMax, 1.), (ArgMin, 1.), (Sum, NAN)] {
        assert_same(&reduced(how, &[0], x, F32, &[]), &[expected]);
    }
    let ties = (F32, &[5][..], &[2., 7., -1., 7., -1.][..]);
    assert_same(&reduced(ArgMax, &[0], ties, I64, &[]), &[1.]);
    assert_same(&reduced(ArgMin, &[0], ties, I64, &[]), &[2.]);
    let zeros = (F32, &[2][..], &[-0., 0.][..]);
    assert_same(&reduced(ArgMax, &[0], zeros, I64, &[]), &[0.]);
    let low = (F32, &[2][..], &[-INF, -INF][..]);
    assert_same(&reduced(Max, &[0], low, F32, &[]), &[-INF]);
    let ints = (I32, &[3][..], &[2., 2., 1.][..]);
    assert_same(&reduced(ArgMax, &[0], ints, I64, &[]), &[0.]);
    assert_same(&reduced(Min, &[0], ints, I32, &[]), &[1.]);
}

#[test]
fn any_and_all_count_nan_as_true() {
    let x = (F32, &[3, 2][..], &[0., -0., NAN, 0., 1., 2.][..]);
    assert_same(&reduced(Any, &[1], x, Bool, &[3]), &[0., 1., 1.]);
    assert_same(&reduced(All, &[1], x, Bool, &[3]), &[0., 0., 1.]);
    let x = (Bool, &[2, 2][..], &[1., 1., 0., 1.][..]);
    assert_same(&reduced(All, &[1], x, Bool, &[2]), &[1., 0.]);
    assert_same(&reduced(Any, &[0], x, Bool, &[2]), &[1., 1.]);
}

#[test]
fn sums_are_rounded_once_and_whole_sums_wrap_in_64_bits() {
    let many = vec![0.001; 4096];
    let rounded = f64::from(half::bf16::from_f64(0.001)) * 4096.0;
    let x = (BF16, &[4096][..], &many[..]);
    assert_same(&reduced(Sum, &[0], x, BF16, &[]), &[f64::from(half::bf16::from_f64(rounded))]);
    let most = f64::from(i32::MAX);
    let x = (I32, &[2][..], &[most, most][..]);
    assert_same(&reduced(Sum, &[0], x, I64, &[]), &[2. * most]);
    assert_same(&reduced(Sum, &[0], x, I32, &[]), &[-2.]);
    assert_same(&reduced(Prod, &[0], x, I32, &[]), &[1.]);
    let x = (Bool, &[3][..], &[1., 1., 0.][..]);
    assert_same(&reduced(Sum, &[0], x, I64, &[]), &[2.]);
}

#[test]
fn running_sums() {
    let x = (F32, &[2, 3][..], &[1., 2., 3., 4., NAN, 6.][..]);
    let sums = |dim, x: Given<'_>, dtype| one(Op::CumSum { dim }, &[x], dtype, x.1);
    assert_same(&sums(1, x, F32), &[1., 3., 6., 4., NAN, NAN]);
    assert_same(&sums(0, x, F32), &[1., 2., 3., 5., NAN, 9.]);
    assert_same(&sums(0, (Bool, &[3], &[1., 0., 1.]), I64), &[1., 1., 2.]);
    assert_same(&sums(1, (F32, &[2, 0], &[]), F32), &[]);
    // What is added up is not what was rounded.
    let ones = [1.0; 300];
    assert_same(&sums(0, (BF16, &[300], &ones), BF16)[299..], &[300.]);
}

#[test]
fn the_first_of_many_in_order() {
    let top = |k, largest, positions, x: Given<'_>, shape: &[usize]| {
        let dtype = if positions { I64 } else { x.0 };
        one(Op::TopK { k, largest, positions }, &[x], dtype, shape)
    };
    let x = (F32, &[5][..], &[1., NAN, 3., 3., NAN][..]);
    assert_same(&top(4, true, false, x, &[4]), &[NAN, NAN, 3., 3.]);
    assert_same(&top(4, true, true, x, &[4]), &[1., 4., 2., 3.]);
    assert_same(&top(4, false, false, x, &[4]), &[1., 3., 3., NAN]);
    assert_same(&top(4, false, true, x, &[4]), &[0., 2., 3., 1.]);
    let x = (I64, &[2, 3][..], &[5., -1., 5., 0., 9., 4.][..]);
    assert_same(&top(2, true, true, x, &[2, 2]), &[0., 2., 1., 2.]);
    assert_same(&top(2, true, false, x, &[2, 2]), &[5., 5., 9., 4.]);
    assert_same(&top(0, true, false, x, &[2, 0]), &[]);
    let op = Op::TopK { k: 4, largest: true, positions: false };
    assert!(refused(op, &[x], I64, &[2, 4]).contains("the 4 first of 3"));
}
