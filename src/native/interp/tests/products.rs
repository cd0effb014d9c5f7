//! Matrix products and attention.

use super::*;
use DType::{BF16, Bool, F32, I64};

#[test]
fn products_of_small_matrices() {
    let a = (F32, &[2, 3][..], &[1., 2., 3., 4., 5., 6.][..]);
    let b = (F32, &[3, 2][..], &[7., 8., 9., 10., 11., 12.][..]);
    assert_same(&one(Op::MatMul, &[a, b], F32, &[2, 2]), &[58., 64., 139., 154.]);
    let ints = [(I64, &[1, 2][..], &[3., -4.][..]), (I64, &[2, 1], &[5., 6.])];
    assert_same(&one(Op::MatMul, &ints, I64, &[1, 1]), &[-9.]);
    let spread = [(F32, &[1, 2][..], &[0., 1.][..]), (F32, &[2, 2], &[INF, 1., 2., NAN])];
    assert_same(&one(Op::MatMul, &spread, F32, &[1, 2]), &[NAN, NAN]);
}

#[test]
fn products_of_nothing() {
    let a = (F32, &[2, 0][..], &[][..]);
    let b = (F32, &[0, 3][..], &[][..]);
    assert_same(&one(Op::MatMul, &[a, b], F32, &[2, 3]), &[0.; 6]);
    assert_same(&one(Op::MatMul, &[b, (F32, &[3, 2], &[1.; 6])], F32, &[0, 2]), &[]);
    let batches = [(F32, &[0, 2, 2][..], &[][..]), (F32, &[0, 2, 2], &[])];
    assert_same(&one(Op::MatMul, &batches, F32, &[0, 2, 2]), &[]);
}

#[test]
fn batches_larger_than_any_block_on_several_threads() {
    let (batch, m, k, n) = (3, 70, 130, 300);
    let small = |count: usize, factor: usize| -> Vec<f64> {
        (0..count).map(|i| ((i * factor) % 17) as f64 - 8.0).collect()
    };
    let (a, b) = (small(batch * m * k, 7), small(batch * k * n, 5));
    let mut expected = Vec::new();
    for z in 0..batch {
        for i in 0..m {
            for j in 0..n {
                let at = |l| a[(z * m + i) * k + l] * b[(z * k + l) * n + j];
                expected.push((0..k).map(at).sum::<f64>());
            }
        }
    }
    let reads = [(F32, &[batch, m, k][..], &a[..]), (F32, &[batch, k, n], &b)];
    assert_eq!(one(Op::MatMul, &reads, F32, &[batch, m, n]), expected);
}

#[test]
fn rows_in_groups_have_matrices_of_their_own() {
    let rows = (F32, &[5, 1][..], &[1., 2., 3., 4., 5.][..]);
    let matrices = (F32, &[3, 1, 2][..], &[1., -1., 10., -10., 100., -100.][..]);
    let grouped =
        |ends: &[f64]| one(Op::GroupedMatMul, &[rows, matrices, (I64, &[3], ends)], F32, &[5, 2]);
    let expected = [1., -1., 2., -2., 300., -300., 400., -400., 0., 0.];
    assert_same(&grouped(&[2., 2., 4.]), &expected);
    // A group that ends before it begins has no rows, and none ends behind the last row.
    assert_same(&grouped(&[2., -7., 4.]), &expected);
    let all = [1., -1., 2., -2., 30., -30., 40., -40., 50., -50.];
    assert_same(&grouped(&[2., 90., 3.]), &all);
    let wrong = &[rows, matrices, (I64, &[2], &[1., 2.][..])];
    assert!(refused(Op::GroupedMatMul, wrong, F32, &[5, 2]).contains("in groups [2]"));
}

#[test]
fn shapes_that_do_not_match_are_refused() {
    let a = (F32, &[2, 3][..], &[0.; 6][..]);
    assert!(refused(Op::MatMul, &[a, a], F32, &[2, 3]).contains("[2, 3] times [2, 3]"));
    let op = Op::attention(false, 1.0);
    assert!(refused(op, &[a, a, a], F32, &[2, 3]).contains("attention of"));
}

/// Two heads of one group, two positions, sizes of one.
fn attention(causal: bool, mask: Option<Given<'_>>) -> Vec<f64> {
    let q = (F32, &[1, 2, 2, 1][..], &[0., 1., 2., 3.][..]);
    let k = (F32, &[1, 1, 2, 1][..], &[0., 1.][..]);
    let v = (F32, &[1, 1, 2, 1][..], &[10., 20.][..]);
    let reads: Vec<Given<'_>> = [q, k, v].into_iter().chain(mask).collect();
    one(Op::attention(causal, 0.5), &reads, F32, &[1, 2, 2, 1])
}

#[test]
fn attention_is_a_mean_by_likeness() {
    let mean = |q: f64| f64::from((10.0 + 10.0 / (1.0 + (-q / 2.0).exp())) as f32);
    assert_same(&attention(false, None), &[mean(0.), mean(1.), mean(2.), mean(3.)]);
    assert_same(&attention(true, None), &[10., mean(1.), 10., mean(3.)]);
}

#[test]
fn masks_hide_and_weigh() {
    let mean = |q: f64| f64::from((10.0 + 10.0 / (1.0 + (-q).exp())) as f32);
    let hide = (Bool, &[2, 2][..], &[0., 1., 0., 0.][..]);
    assert_same(&attention(false, Some(hide)), &[20., 0., 20., 0.]);
    assert_same(&attention(true, Some(hide)), &[0., 0., 0., 0.]);
    let weigh = (F32, &[2, 1, 2][..], &[0., 1., 0., -INF][..]);
    assert_same(&attention(false, Some(weigh)), &[mean(1.), mean(1.5), 10., 10.]);
    let never = (F32, &[1, 2][..], &[-INF, -INF][..]);
    assert_same(&attention(false, Some(never)), &[NAN; 4]);
    let unknown = (F32, &[1, 2][..], &[0., NAN][..]);
    assert_same(&attention(false, Some(unknown)), &[NAN; 4]);
}

#[test]
fn heads_of_a_group_share_keys_and_values() {
    let q = (BF16, &[1, 4, 1, 1][..], &[100.; 4][..]);
    let k = (BF16, &[1, 2, 2, 1][..], &[1., -1., -1., 1.][..]);
    let v = (BF16, &[1, 2, 2, 2][..], &[1., 2., 3., 4., 5., 6., 7., 8.][..]);
    let op = Op::attention(false, 1.0);
    let expected = [1., 2., 1., 2., 7., 8., 7., 8.];
    assert_same(&one(op, &[q, k, v], BF16, &[1, 4, 1, 2]), &expected);
}

#[test]
fn attention_to_nothing_is_zero() {
    let q = (F32, &[1, 1, 2, 1][..], &[1., 2.][..]);
    let none = (F32, &[1, 1, 0, 1][..], &[][..]);
    let op = || Op::attention(true, 1.0);
    assert_same(&one(op(), &[q, none, none], F32, &[1, 1, 2, 1]), &[0., 0.]);
    assert_same(&one(op(), &[none, q, q], F32, &[1, 1, 0, 1]), &[]);
}

#[test]
fn values_that_a_mask_hides_do_not_count() {
    let x = (F32, &[1, 1, 2, 1][..], &[1., 2.][..]);
    let v = (F32, &[1, 1, 2, 1][..], &[3., NAN][..]);
    let op = Op::attention(true, 1.0);
    assert_same(&one(op, &[x, x, v], F32, &[1, 1, 2, 1]), &[3., NAN]);
}
