//! Matrix products and attention.

use super::*;
use DType::{BF16, Bool, F8E4M3, F8E5M2, F16, F32, F64};

/// Small whole numbers: their products are exact in any order.
fn some(count: usize, factor: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * factor) % 7) as f64 - 3.0).collect()
}

fn multiply(bench: &mut Bench, dtype: DType, batch: &[usize], [m, k, n]: [usize; 3]) {
    let shape = |a, b| [batch, &[a, b]].concat();
    let a = bench.input(dtype, &shape(m, k), &some(997, 3));
    let b = bench.input(dtype, &shape(k, n), &some(991, 5));
    bench.output(Op::MatMul, &[a, b], dtype, &shape(m, n));
}

#[test]
fn of_odd_sizes_and_of_nothing() {
    check(|bench| {
        for sizes in [
            [1, 1, 1],
            [S0, 3, S1],
            [3, S1, S0],
            [33, 17, 65],
            [1, 40, 9],
            [70, 35, 1],
            [4, 0, 3],
            [0, 4, 3],
            [3, 4, 0],
        ] {
            multiply(bench, F32, &[], sizes);
            multiply(bench, BF16, &[2], sizes);
            multiply(bench, F64, &[2], sizes);
            multiply(bench, F8E4M3, &[], sizes);
        }
        multiply(bench, F16, &[2, S0], [3, 12, S1]);
        multiply(bench, F32, &[0], [3, 4, 5]);
    });
}

#[test]
fn of_transposed_sides_with_an_epilogue() {
    check(|bench| {
        for dtype in [F32, BF16, F64] {
            let a = bench.input(dtype, &[12, S0], &some(60, 3));
            let b = bench.input(dtype, &[S1, 12], &some(84, 5));
            let a = bench.node(Op::Permute(vec![1, 0]), &[a], dtype, &[S0, 12]);
            let b = bench.node(Op::Permute(vec![1, 0]), &[b], dtype, &[12, S1]);
            let product = bench.output(Op::MatMul, &[a, b], dtype, &[S0, S1]);
            let bias = bench.input(dtype, &[S1], &[0.5, -1.0]);
            let sum = map(Fun::Add, Domain::Float, 2);
            let sum = bench.node(sum, &[product, bias], dtype, &[S0, S1]);
            bench.output(map(Fun::Sigmoid, Domain::Float, 1), &[sum], dtype, &[S0, S1]);
        }
    });
}

#[test]
fn of_groups_of_rows_with_matrices_of_their_own() {
    check(|bench| {
        // Some are empty, some end before they begin, or behind the last row; rows are left.
        let some_ends: [&[f64]; 4] =
            [&[0.0, 3.0, 3.0, 9.0], &[5.0, 2.0, 7.0], &[-4.0, 70.0, 200.0, 80.0], &[40.0]];
        // More groups than a warp has lanes, as many, and one less.
        let many = |count: i64| (0..count).map(|z| (z * 5 % 7 - 1 + z) as f64).collect::<Vec<_>>();
        let many = [70, 64, 31].map(many);
        for ends in some_ends.into_iter().chain(many.iter().map(Vec::as_slice)) {
            let (e, own_ends) = (ends.len(), ends);
            for dtype in [F32, BF16, F64] {
                for [t, k, n] in [[70, 24, 40], [5, 7, 9], [S0, 16, S1], [0, 4, 3], [4, 0, 3]] {
                    let x = bench.input(dtype, &[t, k], &some(997, 3));
                    let w = bench.input(dtype, &[e, k, n], &some(991, 5));
                    let ends = bench.input(DType::I32, &[e], ends);
                    let product = Op::GroupedMatMul;
                    let product = bench.output(product, &[x, w, ends], dtype, &[t, n]);
                    let gate = map(Fun::Sigmoid, Domain::Float, 1);
                    bench.output(gate, &[product], dtype, &[t, n]);
                }
                // Matrices and rows that lie the other way, and ends that are every other one.
                let x = bench.input(dtype, &[24, 33], &some(997, 3));
                let w = bench.input(dtype, &[e, 40, 24], &some(991, 5));
                let twice: Vec<f64> = ends.iter().flat_map(|end| [*end, 1000.0]).collect();
                let all = bench.input(DType::I64, &[2 * e], &twice);
                let x = bench.node(Op::Permute(vec![1, 0]), &[x], dtype, &[33, 24]);
                let w = bench.node(Op::Permute(vec![0, 2, 1]), &[w], dtype, &[e, 24, 40]);
                let every = Op::Slice { dim: 0, start: Size::from(0), step: 2 };
                let ends = bench.node(every, &[all], DType::I64, &[e]);
                bench.output(Op::GroupedMatMul, &[x, w, ends], dtype, &[33, 40]);
                // Sizes that a call decides, in where matrices and ends lie too.
                let x = bench.input(dtype, &[33, 16], &some(997, 3));
                let w = bench.input(dtype, &[e, 16, S1], &some(991, 5));
                let table: Vec<f64> = (0..e * S1)
                    .map(|i| if i % S1 == 0 { own_ends[i / S1] } else { 1000.0 })
                    .collect();
                let table = bench.input(DType::I64, &[e, S1], &table);
                let first = Op::Slice { dim: 1, start: Size::from(0), step: 1 };
                let first = bench.node(first, &[table], DType::I64, &[e, 1]);
                let first = bench.node(Op::Reshape, &[first], DType::I64, &[e]);
                bench.output(Op::GroupedMatMul, &[x, w, first], dtype, &[33, S1]);
            }
        }
    });
}

#[test]
fn of_one_row_by_weights_with_scales() {
    check(|bench| {
        for dtype in [F32, BF16] {
            for (rows, k, n, along_k) in [(1, 40, 24, true), (1, 40, 24, false), (2, 9, 7, true)] {
                let shape = if along_k { [n, k] } else { [k, n] };
                let scales = if along_k { [n, 1] } else { [1, n] };
                let weights = bench.input(DType::I8, &shape, &some(997, 3));
                let scales = bench.input(dtype, &scales, &[0.5, -1.0, 0.25]);
                let wide = map(Fun::Mul, Domain::Float, 2);
                let mut wide = bench.node(wide, &[weights, scales], dtype, &shape);
                if along_k {
                    wide = bench.node(Op::Permute(vec![1, 0]), &[wide], dtype, &[k, n]);
                }
                // Rows that are computed too, and once for all columns.
                let x = bench.input(dtype, &[rows, k], &some(991, 5));
                let x = bench.node(map(Fun::Neg, Domain::Float, 1), &[x], dtype, &[rows, k]);
                let product = bench.output(Op::MatMul, &[x, wide], dtype, &[rows, n]);
                bench.output(map(Fun::Sigmoid, Domain::Float, 1), &[product], dtype, &[rows, n]);
            }
        }
    });
}

#[test]
fn infinities_and_nan_spread() {
    check(|bench| {
        let a = bench.input(F32, &[2, 3], &[0.0, 1.0, 2.0, f64::INFINITY, 0.0, 1.0]);
        let b = bench.input(F32, &[3, 2], &[1.0, f64::INFINITY, f64::NAN, 1.0, 0.0, 0.0]);
        bench.output(Op::MatMul, &[a, b], F32, &[2, 2]);
    });
}

struct Sizes {
    dtype: DType,
    heads: usize,
    groups: usize,
    s: usize,
    t: usize,
    d: usize,
}

fn attend(bench: &mut Bench, sizes: &Sizes, causal: bool, mask: Option<(DType, &[usize], &[f64])>) {
    let Sizes { dtype, heads, groups, s, t, d } = *sizes;
    let noise = |factor: usize| -> Vec<f64> {
        (0..509).map(|i| ((i * factor) % 101) as f64 / 50.0 - 1.0).collect()
    };
    let q = bench.input(dtype, &[2, heads, s, d], &noise(17));
    let k = bench.input(dtype, &[2, groups, t, d], &noise(29));
    let v = bench.input(dtype, &[2, groups, t, d], &noise(43));
    let mut reads = vec![q, k, v];
    if let Some((dtype, shape, elements)) = mask {
        reads.push(bench.input(dtype, shape, elements));
    }
    let scale = 1.0 / (d as f64).sqrt();
    bench.output(Op::attention(causal, scale), &reads, dtype, &[2, heads, s, d]);
}

#[test]
fn attention_with_every_mask() {
    let low = f64::NEG_INFINITY;
    check(|bench| {
        for (dtype, s, t) in [(F32, S0, S1), (F16, S1, S0), (F16, 1, S1)] {
            for causal in [false, true] {
                let sizes = Sizes { dtype, heads: 4, groups: 2, s, t, d: 16 };
                attend(bench, &sizes, causal, None);
                let hide = [1.0, 0.0, 1.0, 1.0, 0.0];
                attend(bench, &sizes, causal, Some((Bool, &[s, t], &hide)));
                let weigh = [0.0, -1.5, low, 2.0];
                attend(bench, &sizes, causal, Some((dtype, &[2, 1, s, t], &weigh)));
            }
        }
    });
}

#[test]
fn attention_of_masked_rows_and_odd_sizes() {
    let low = f64::NEG_INFINITY;
    check(|bench| {
        let sizes = Sizes { dtype: F32, heads: 2, groups: 1, s: 3, t: S0, d: 8 };
        attend(bench, &sizes, false, Some((Bool, &[1, S0], &[0.0])));
        attend(bench, &sizes, false, Some((F32, &[1, S0], &[low])));
        attend(bench, &sizes, true, Some((Bool, &[1, 1, 3, S0], &[0.0, 1.0])));
        for d in [1, 24, 80] {
            let sizes = Sizes { dtype: BF16, heads: 3, groups: 3, s: S1, t: 70, d };
            attend(bench, &sizes, false, None);
            attend(bench, &sizes, true, None);
        }
    });
}

#[test]
fn one_head_of_keys_for_all() {
    check(|bench| {
        for (s, t) in [(1, 1), (1, S1), (S0, 3)] {
            let sizes = Sizes { dtype: F32, heads: 2, groups: 1, s, t, d: 8 };
            attend(bench, &sizes, false, None);
            attend(bench, &Sizes { dtype: F16, ..sizes }, true, None);
        }
    });
}

#[test]
fn attention_of_hidden_scores_and_empty_rows() {
    let low = f64::NEG_INFINITY;
    check(|bench| {
        let noise: Vec<f64> = (0..61).map(|i| ((i * 17) % 101) as f64 / 50.0 - 1.0).collect();
        for dtype in [F32, F16] {
            let q = bench.input(dtype, &[1, 2, S0, 8], &noise);
            let k = bench.input(dtype, &[1, 2, S1, 8], &noise);
            let v = bench.input(dtype, &[1, 2, S1, 8], &noise);
            // The second row is hidden altogether.
            let hide: Vec<f64> = (0..35).map(|i| f64::from(i / 7 != 1 && i % 3 != 0)).collect();
            let test = bench.input(Bool, &[S0, S1], &hide);
            let weigh: Vec<f64> = hide.iter().map(|x| if *x == 0.0 { low } else { 0.5 }).collect();
            let added = bench.input(F32, &[S0, S1], &weigh);
            for empty in [Empty::ByMask, Empty::Zero, Empty::Nan] {
                for (hidden, causal) in [(low, false), (low, true), (-1.5, false), (-1.5, true)] {
                    let op = Op::Attention { causal, scale: 0.5, hidden, empty };
                    bench.output(op, &[q, k, v, test], dtype, &[1, 2, S0, 8]);
                }
                let op = Op::Attention { causal: false, scale: 0.5, hidden: low, empty };
                bench.output(op, &[q, k, v, added], dtype, &[1, 2, S0, 8]);
            }
        }
    });
}

/// Sums of `f64` that are others in `f32`, by each of the kernels that have them.
#[test]
fn of_64_bits_and_of_8() {
    let fine = [1.0, 1e-9, 2.0, 3.0, 1e6, 0.1, 1e-7];
    check(|bench| {
        for [m, k, n] in [[2, 64, 24], [40, 64, 72], [S0, 33, S1]] {
            let (a, b) = (bench.input(F64, &[m, k], &fine), bench.input(F64, &[n, k], &fine));
            let b = bench.node(Op::Permute(vec![1, 0]), &[b], F64, &[k, n]);
            let product = bench.output(Op::MatMul, &[a, b], F64, &[m, n]);
            bench.output(map(Fun::Sigmoid, Domain::Float, 1), &[product], F64, &[m, n]);
        }
        for dtype in [F8E4M3, F8E5M2] {
            for [m, k, n] in [[1, 64, 24], [8, 128, 40], [S0, 33, S1]] {
                let (a, b) = (some(m * k, 3), some(n * k, 5));
                let (a, b) = (bench.input(dtype, &[m, k], &a), bench.input(dtype, &[n, k], &b));
                let b = bench.node(Op::Permute(vec![1, 0]), &[b], dtype, &[k, n]);
                bench.output(Op::MatMul, &[a, b], F32, &[m, n]);
            }
        }
    });
}
