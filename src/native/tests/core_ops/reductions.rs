//! Reductions, running sums and the greatest of many.

use super::*;
use crate::core::Reduction::{self, All, Any, ArgMax, ArgMin, Max, Min, Prod, Sum};
use DType::{BF16, Bool, F32, F64, I32, I64};

const NAN: f64 = f64::NAN;

fn reduce(
    bench: &mut Bench,
    x: ValueId,
    how: Reduction,
    dims: &[usize],
    shape: &[usize],
    dtype: DType,
) {
    bench.output(Op::Reduce { how, dims: dims.to_vec() }, &[x], dtype, shape);
}

/// Whole numbers: their sums are exact in any order.
fn some(count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 29) % 17) as f64 - 8.0).collect()
}

#[test]
fn over_any_dimensions() {
    check(|bench| {
        let x = bench.input(F32, &[3, S0, 4, S1], &some(420));
        for (dims, shape) in [
            (&[3][..], &[3, S0, 4][..]),
            (&[0], &[S0, 4, S1]),
            (&[1], &[3, 4, S1]),
            (&[1, 3], &[3, 4]),
            (&[0, 2], &[S0, S1]),
            (&[2, 3], &[3, S0]),
            (&[0, 1, 2, 3], &[]),
            (&[], &[3, S0, 4, S1]),
        ] {
            reduce(bench, x, Sum, dims, shape, F32);
            reduce(bench, x, ArgMin, dims, shape, I64);
            reduce(bench, x, All, dims, shape, Bool);
        }
    });
}

#[test]
fn long_rows_and_columns() {
    check(|bench| {
        for (rows, columns) in [(2, 1100), (600, 2), (1, 1), (1, 33)] {
            let x = bench.input(F32, &[rows, columns], &some(997));
            for (dim, left) in [(0, columns), (1, rows)] {
                for how in [Sum, Max] {
                    reduce(bench, x, how, &[dim], &[left], F32);
                }
                reduce(bench, x, ArgMax, &[dim], &[left], I64);
                reduce(bench, x, ArgMin, &[dim], &[left], I64);
            }
            reduce(bench, x, Sum, &[0, 1], &[], F32);
        }
    });
}

#[test]
fn nan_and_ties() {
    check(|bench| {
        for x in [
            [1.0, NAN, 3.0, NAN, 0.0],
            [2.0, 7.0, -1.0, 7.0, -1.0],
            [f64::NEG_INFINITY; 5],
            [f64::INFINITY, 1.0, f64::NEG_INFINITY, 0.0, 0.0],
            [-0.0, 0.0, -0.0, 0.0, 0.0],
        ] {
            let x = bench.input(F32, &[2, S0], &x);
            for how in [Sum, Max, Min, Prod] {
                reduce(bench, x, how, &[1], &[2], F32);
            }
            for how in [ArgMax, ArgMin] {
                reduce(bench, x, how, &[1], &[2], I64);
                reduce(bench, x, how, &[0], &[S0], I64);
                reduce(bench, x, how, &[0, 1], &[], I64);
            }
            for how in [Any, All] {
                reduce(bench, x, how, &[1], &[2], Bool);
            }
        }
    });
}

#[test]
fn of_nothing_and_of_one() {
    check(|bench| {
        let none = bench.input(F32, &[S0, 0], &[]);
        for (how, dtype) in
            [(Sum, F32), (Prod, F32), (Any, Bool), (All, Bool), (Max, F32), (Min, F32)]
        {
            reduce(bench, none, how, &[1], &[S0], dtype);
            reduce(bench, none, how, &[0, 1], &[], dtype);
            reduce(bench, none, how, &[0], &[0], dtype);
        }
        let one = bench.input(BF16, &[1, S1, 1], &[3.0, NAN]);
        for how in [Sum, Max, Prod] {
            reduce(bench, one, how, &[0, 2], &[S1], BF16);
        }
        reduce(bench, one, ArgMax, &[0], &[S1, 1], I64);
    });
}

#[test]
fn of_64_bits() {
    // Of 32 bits these sums are others.
    let fine = [1.0, f64::EPSILON, -1e-12, 1e10, 0.1];
    check(|bench| {
        let x = bench.input(F64, &[S0, 12], &fine);
        for how in [Sum, Prod, Max, Min] {
            reduce(bench, x, how, &[1], &[S0], F64);
            reduce(bench, x, how, &[0], &[12], F64);
            reduce(bench, x, how, &[0, 1], &[], F64);
        }
        for how in [ArgMax, ArgMin] {
            reduce(bench, x, how, &[1], &[S0], I64);
        }
        bench.output(Op::CumSum { dim: 1 }, &[x], F64, &[S0, 12]);
        for positions in [true, false] {
            let op = Op::TopK { k: 3, largest: true, positions };
            bench.output(op, &[x], if positions { I64 } else { F64 }, &[S0, 3]);
        }
        // In parts, between which sums are in memory.
        let exact = [1.0, 1.0 + 2f64.powi(-30), 3.0];
        let long = bench.input(F64, &[2, 65536], &exact);
        reduce(bench, long, Sum, &[1], &[2], F64);
        let short = bench.input(F32, &[S0, 12], &[0.1, 1e8]);
        reduce(bench, short, Sum, &[1], &[S0], F64);
    });
}

#[test]
fn of_whole_numbers() {
    check(|bench| {
        let x = bench.input(I32, &[S0, 12], &[2147483647.0, 5.0, -2147483648.0, 5.0]);
        let y = bench.input(I64, &[S0, 12], &[3e18, 3e18, -1.0, 2.0]);
        let z = bench.input(Bool, &[S0, 12], &[1.0, 0.0, 1.0]);
        for (x, own) in [(x, I32), (y, I64)] {
            for how in [Max, Min] {
                reduce(bench, x, how, &[1], &[S0], own);
                reduce(bench, x, how, &[0], &[12], own);
            }
            for how in [Sum, Prod, ArgMax, ArgMin] {
                reduce(bench, x, how, &[1], &[S0], I64);
            }
        }
        reduce(bench, x, Sum, &[1], &[S0], I32);
        reduce(bench, z, Sum, &[0], &[12], I64);
        reduce(bench, z, All, &[0], &[12], Bool);
    });
}

#[test]
fn running_sums() {
    check(|bench| {
        let x = bench.input(F32, &[S0, 12], &some(60));
        for dim in [0, 1] {
            bench.output(Op::CumSum { dim }, &[x], F32, &[S0, 12]);
        }
        let ones = bench.input(BF16, &[2, 400], &[1.0]);
        bench.output(Op::CumSum { dim: 1 }, &[ones], BF16, &[2, 400]);
        let z = bench.input(Bool, &[3, S1, 2], &[1.0, 0.0, 1.0]);
        for dim in [0, 1, 2] {
            bench.output(Op::CumSum { dim }, &[z], I64, &[3, S1, 2]);
        }
        let nan = bench.input(F32, &[S1], &[1.0, 2.0, NAN, 4.0]);
        bench.output(Op::CumSum { dim: 0 }, &[nan], F32, &[S1]);
        let none = bench.input(F32, &[S0, 0], &[]);
        bench.output(Op::CumSum { dim: 1 }, &[none], F32, &[S0, 0]);
    });
}

#[test]
fn the_first_of_many() {
    check(|bench| {
        let x = bench.input(F32, &[S0, S1], &[1.0, NAN, 3.0, 3.0, f64::NEG_INFINITY, -2.0]);
        let y = bench.input(I64, &[2, 12], &[5.0, -1.0, 5.0, 0.0, 9.0, 4.0, 4.0]);
        for largest in [true, false] {
            for (x, dtype, shape) in [(x, F32, [S0, 3]), (y, I64, [2, 3])] {
                for positions in [true, false] {
                    let op = Op::TopK { k: 3, largest, positions };
                    bench.output(op, &[x], if positions { I64 } else { dtype }, &shape);
                }
            }
        }
    });
}

/// Where so many are wanted that each is counted by what comes before it.
#[test]
fn a_row_in_order() {
    let odd = [1.0, NAN, 3.0, -0.0, 3.0, f64::NEG_INFINITY, 0.0, f64::INFINITY, NAN, -2.0, 1e-3];
    check(|bench| {
        let floats = bench.input(F32, &[3, 40], &odd);
        let wide = bench.input(F64, &[2, S1, 17], &odd);
        let small = bench.input(BF16, &[S0, 33], &odd);
        let numbers = bench.input(I64, &[40], &[5.0, -1.0, 5.0, 9e18, -9e18, 4.0, 4.0]);
        let truths = bench.input(Bool, &[2, 20], &[1.0, 0.0, 0.0]);
        // Of more elements than a block sorts.
        let long: Vec<f64> = (0..997).map(|i| f64::from(i * 389 % 211) - 100.0).collect();
        let long = bench.input(F32, &[2, 2100], &long);
        // Of a row that lies across memory, and of one that is computed.
        let across = bench.input(F32, &[30, 3], &odd);
        let across = bench.node(Op::Permute(vec![1, 0]), &[across], F32, &[3, 30]);
        let computed = bench.node(map(Fun::Neg, Domain::Float, 1), &[floats], F32, &[3, 40]);
        for largest in [true, false] {
            for (x, dtype, shape, k) in [
                (floats, F32, [3, 40].as_slice(), 40),
                (floats, F32, &[3, 40], 21),
                (wide, F64, &[2, S1, 17], 17),
                (small, BF16, &[S0, 33], 33),
                (numbers, I64, &[40], 40),
                (truths, Bool, &[2, 20], 20),
                (across, F32, &[3, 30], 30),
                (computed, F32, &[3, 40], 40),
                (long, F32, &[2, 2100], 2100),
                (long, F32, &[2, 2100], 1030),
            ] {
                let shape = [&shape[..shape.len() - 1], &[k]].concat();
                for positions in [true, false] {
                    let op = Op::TopK { k, largest, positions };
                    bench.output(op, &[x], if positions { I64 } else { dtype }, &shape);
                }
            }
        }
    });
}

/// Those are added up element by element, beside their neighbours.
#[test]
fn of_a_few_rows_one_below_the_other() {
    check(|bench| {
        let odd = [0.5, -1.0, NAN, 3.0, f64::INFINITY, -0.25, 2.0];
        for (dtype, values) in [(F32, odd.as_slice()), (BF16, &odd), (I64, &[3.0, -7.0, 5e18])] {
            let x = bench.input(dtype, &[S0, 8, 16], values);
            let across = bench.input(dtype, &[16, S1, 3], values);
            let across = bench.node(Op::Permute(vec![1, 2, 0]), &[across], dtype, &[S1, 3, 16]);
            for how in [Sum, Max, Min] {
                reduce(bench, x, how, &[1], &[S0, 16], dtype);
                reduce(bench, x, how, &[0], &[8, 16], dtype);
                reduce(bench, across, how, &[1], &[S1, 16], dtype);
            }
            if dtype != I64 {
                let zeros = bench.input(dtype, &[2, 8], &[-0.0]);
                let sum = bench.node(Op::Reduce { how: Sum, dims: vec![0] }, &[zeros], dtype, &[8]);
                let by = map(Fun::Reciprocal, Domain::Float, 1);
                bench.output(by, &[sum], dtype, &[8]);
            }
            let single = bench.input(dtype, &[1, 8], values);
            reduce(bench, single, Sum, &[0], &[8], dtype);
        }
    });
}
