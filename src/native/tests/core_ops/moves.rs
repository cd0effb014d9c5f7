//! Operations that move elements, alone and in chains.

use super::*;
use DType::{BF16, Bool, F32, I32, I64};

fn count(n: usize) -> Vec<f64> {
    (0..n).map(|i| i as f64).collect()
}

fn double(bench: &mut Bench, x: ValueId, shape: &[usize]) {
    bench.output(map(Fun::Add, Domain::Float, 2), &[x, x], F32, shape);
}

#[test]
fn each_alone_and_before_a_map() {
    check(|bench| {
        let x = bench.input(F32, &[S0, 4, S1], &count(140));
        let slice = |dim, start: usize, step| Op::Slice { dim, start: start.into(), step };
        let whole = [S0, 4, S1];
        let before = |at: [usize; 3]| at.map(Size::from).to_vec();
        let cases: Vec<(Op, Vec<usize>)> = vec![
            (Op::Reshape, vec![4, S0, S1]),
            (Op::Reshape, vec![4, 35]),
            (Op::Permute(vec![2, 0, 1]), vec![S1, S0, 4]),
            (Op::Permute(vec![0, 2, 1]), vec![S0, S1, 4]),
            (Op::Expand, vec![3, S0, 4, S1]),
            (slice(1, 1, 2), vec![S0, 2, S1]),
            (slice(1, 3, 1), vec![S0, 1, S1]),
            (slice(1, 4, 1), vec![S0, 0, S1]),
            (Op::Flip(vec![0]), whole.to_vec()),
            (Op::Flip(vec![1, 2]), whole.to_vec()),
            (Op::Roll { dim: 1, shift: 1.into() }, whole.to_vec()),
            (Op::Roll { dim: 2, shift: (-9).into() }, whole.to_vec()),
            (Op::Pad { before: before([0, 1, 0]), value: Number::Float(-1.5) }, vec![S0, 6, S1]),
            (
                Op::Pad { before: before([2, 0, 0]), value: Number::Float(f64::NAN) },
                vec![12, 4, S1],
            ),
            (Op::Window { dim: 1, step: 1, dilation: 2 }, vec![S0, 2, S1, 2]),
            (Op::Window { dim: 1, step: 2, dilation: 1 }, vec![S0, 2, S1, 2]),
        ];
        for (op, shape) in cases {
            let moved = bench.output(op, &[x], F32, &shape);
            double(bench, moved, &shape);
        }
        bench.output(Op::Cat { dim: 1 }, &[x, x, x], F32, &[S0, 12, S1]);
    });
}

#[test]
fn symbols_in_the_operations_themselves() {
    check(|bench| {
        let x = bench.input(F32, &[2, 12], &count(24));
        let (s0, s1) = (bench.size(S0), bench.size(S1));
        let tail = Op::Slice { dim: 1, start: s0.clone(), step: 1 };
        let tail = bench.output(tail, &[x], F32, &[2, S1]);
        let head = Op::Slice { dim: 1, start: 0.into(), step: 1 };
        let head = bench.output(head, &[x], F32, &[2, S0]);
        bench.output(Op::Cat { dim: 1 }, &[tail, head], F32, &[2, 12]);
        bench.output(Op::Roll { dim: 1, shift: s0.clone() }, &[x], F32, &[2, 12]);
        let pad = Op::Pad { before: vec![0.into(), s0.clone()], value: Number::Int(9) };
        bench.output(pad, &[tail], F32, &[2, 12]);
        let iota = Op::Iota { start: Number::Size(s1), step: Number::Int(-2) };
        bench.output(iota, &[], I64, &[S0]);
        let iota = Op::Iota { start: Number::Float(0.5), step: Number::Float(0.25) };
        bench.output(iota, &[], F32, &[S1]);
        bench.output(Op::Full(Number::Size(s0)), &[], I64, &[S1, 2]);
        bench.output(Op::Full(Number::Float(f64::NEG_INFINITY)), &[], BF16, &[S0]);
        bench.output(Op::Full(Number::Bool(true)), &[], Bool, &[]);
    });
}

#[test]
fn chains() {
    check(|bench| {
        let x = bench.input(BF16, &[S0, S1], &count(35));
        let t = bench.node(Op::Permute(vec![1, 0]), &[x], BF16, &[S1, S0]);
        let flat = bench.output(Op::Reshape, &[t], BF16, &[35]);
        let back = bench.node(Op::Flip(vec![0]), &[flat], BF16, &[35]);
        let again = bench.output(Op::Reshape, &[back], BF16, &[S0, S1]);
        let wide = bench.node(Op::Expand, &[again], BF16, &[3, S0, S1]);
        let half = Op::Slice { dim: 0, start: 1.into(), step: 1 };
        let half = bench.node(half, &[wide], BF16, &[2, S0, S1]);
        let sum = Op::Reduce { how: crate::core::Reduction::Sum, dims: vec![1] };
        bench.output(sum, &[half], F32, &[2, S1]);
        let pad = Op::Pad { before: vec![1.into(), 0.into()], value: Number::Int(2) };
        let padded = bench.node(pad, &[x], BF16, &[6, S1]);
        let windows = Op::Window { dim: 0, step: 1, dilation: 1 };
        bench.output(windows, &[padded], BF16, &[4, S1, 3]);
        bench.output(Op::Roll { dim: 0, shift: 2.into() }, &[padded], BF16, &[6, S1]);
    });
}

#[test]
fn nothing_at_all() {
    check(|bench| {
        let none = bench.input(F32, &[0, S1], &[]);
        bench.output(Op::Reshape, &[none], F32, &[S1, 0, 3]);
        bench.output(Op::Permute(vec![1, 0]), &[none], F32, &[S1, 0]);
        bench.output(Op::Flip(vec![0, 1]), &[none], F32, &[0, S1]);
        bench.output(Op::Roll { dim: 0, shift: 1.into() }, &[none], F32, &[0, S1]);
        let x = bench.input(F32, &[2, S1], &count(14));
        bench.output(Op::Cat { dim: 0 }, &[none, x], F32, &[2, S1]);
        let pad = Op::Pad { before: vec![1.into(), 0.into()], value: Number::Int(2) };
        bench.output(pad, &[none], F32, &[3, S1]);
        double(bench, none, &[0, S1]);
    });
}

#[test]
fn reads_at_positions() {
    check(|bench| {
        let x = bench.input(F32, &[S0, 4, S1], &count(140));
        for dtype in [I64, I32] {
            let rows = bench.input(dtype, &[2, 3], &[4.0, 0.0, 2.0, 2.0]);
            let index = |dims: &[usize], wrap| Op::Index { dims: dims.to_vec(), wrap };
            bench.output(index(&[0], false), &[x, rows], F32, &[2, 3, 4, S1]);
            let back = bench.input(dtype, &[3], &[-1.0, 0.0, -4.0]);
            bench.output(index(&[1], true), &[x, back], F32, &[3, S0, S1]);
            let other = bench.input(dtype, &[3], &[-7.0, 6.0, 1.0]);
            bench.output(index(&[1, 2], true), &[x, back, other], F32, &[3, S0]);
            bench.output(index(&[0, 2], true), &[x, back, other], F32, &[3, 4]);
            let one = bench.input(dtype, &[], &[3.0]);
            bench.output(index(&[0], true), &[x, one], F32, &[4, S1]);
            let none = bench.input(dtype, &[0], &[]);
            bench.output(index(&[0], true), &[x, none], F32, &[0, 4, S1]);
            let along = bench.input(dtype, &[S0, 2, S1], &[3.0, 0.0, 1.0]);
            bench.output(Op::Gather { dim: 1 }, &[x, along], F32, &[S0, 2, S1]);
            let fewer = bench.input(dtype, &[2, 3, 2], &[3.0, 0.0, 1.0, 4.0]);
            bench.output(Op::Gather { dim: 0 }, &[x, fewer], F32, &[2, 3, 2]);
        }
    });
}

/// A position is the same for all elements, but is read only for some of them.
#[test]
fn positions_that_only_some_elements_need() {
    check(|bench| {
        let x = bench.input(F32, &[S0, 4], &count(20));
        let back = bench.input(I64, &[1], &[-2.0]);
        let row = bench.node(Op::Index { dims: vec![0], wrap: true }, &[x, back], F32, &[1, 4]);
        let pad = Op::Pad { before: vec![0.into(), 1.into()], value: Number::Float(9.0) };
        bench.output(pad, &[row], F32, &[1, 6]);
    });
}
