//! Kernels with sums along rows: warps and blocks, sums that wait for sums,
//! values of rows and of elements stored side by side.

use kiln_proto::graph::{Argument, DType};

use super::{
    super::Lowered,
    build::{Program, bytes, floats, noise, row_major},
    emulator::Module,
};

/// `(x - mean) / sqrt(var + 0.01)`, the variance of each row, and the mean of
/// the first result's squares.
fn program(dtype: DType, rows: usize, columns: usize) -> Lowered {
    let (full, row) = ([rows, columns], [rows, 1]);
    let mut p = Program::default();
    let x = p.input(dtype, &full, &row_major(&full));
    let t = |value| Argument::Tensor(value);
    let mean = |p: &mut Program, value| {
        let args = [
            ("self", t(value)),
            ("dim", Argument::Ints(vec![-1])),
            ("keepdim", Argument::Bool(true)),
        ];
        p.node("aten.mean.dim", &args, dtype, &row)
    };
    let average = mean(&mut p, x);
    let d = p.node("aten.sub.Tensor", &[("self", t(x)), ("other", t(average))], dtype, &full);
    let square = p.node("aten.mul.Tensor", &[("self", t(d)), ("other", t(d))], dtype, &full);
    let variance = mean(&mut p, square);
    let eps = [("self", t(variance)), ("other", Argument::Float(0.01))];
    let safe = p.node("aten.add.Tensor", &eps, dtype, &row);
    let scale = p.node("aten.rsqrt.default", &[("self", t(safe))], dtype, &row);
    let y = p.node("aten.mul.Tensor", &[("self", t(d)), ("other", t(scale))], dtype, &full);
    let again = p.node("aten.mul.Tensor", &[("self", t(y)), ("other", t(y))], dtype, &full);
    let last = mean(&mut p, again);
    p.graph.outputs = vec![y, variance, last];
    p.compile()
}

fn check(dtype: DType, rows: usize, columns: usize, block: u32, limit: f64) {
    let lowered = program(dtype, rows, columns);
    assert_eq!(lowered.plan.kernels.len(), 1, "three sums, one kernel");
    assert_eq!(lowered.plan.kernels[0].block[0], block);
    let x = noise(rows * columns, &mut 9);
    let outputs = Module::build(&lowered).run(&[bytes(&x, dtype)]);
    let ours: Vec<Vec<f64>> = outputs.iter().map(|output| floats(dtype, output)).collect();
    for row in 0..rows {
        let x: Vec<f64> = x[row * columns..][..columns].iter().map(|x| f64::from(*x)).collect();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / columns as f64;
        let average = mean(&x);
        let d: Vec<f64> = x.iter().map(|x| x - average).collect();
        let variance = mean(&d.iter().map(|d| d * d).collect::<Vec<_>>());
        let y: Vec<f64> = d.iter().map(|d| d / (variance + 0.01).sqrt()).collect();
        let last = mean(&y.iter().map(|y| y * y).collect::<Vec<_>>());
        let near = |ours: f64, golden: f64| (ours - golden).abs() < limit * golden.abs().max(1.0);
        assert!(near(ours[1][row], variance), "variance of row {row}");
        assert!(near(ours[2][row], last), "mean of row {row}");
        for (column, y) in y.iter().enumerate() {
            let ours = ours[0][row * columns + column];
            assert!(near(ours, *y), "[{row}, {column}] of {columns}: {ours} for {y}");
        }
    }
}

#[test]
fn a_warp_for_each_short_row() {
    check(DType::F32, 7, 100, 128, 1e-5);
    check(DType::F32, 5, 31, 128, 1e-5);
    check(DType::BF16, 6, 1, 128, 1e-2);
}

#[test]
fn a_block_for_each_long_row() {
    check(DType::F32, 3, 2052, 512, 1e-5);
    check(DType::F32, 2, 1001, 512, 1e-5);
    check(DType::BF16, 3, 2056, 256, 1e-2);
}
