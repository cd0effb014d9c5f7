//! Products of one matrix that share a launch.

use kiln_proto::graph::{Argument, DType, ValueId};

use super::{
    build::{Program, bytes, floats, noise, row_major},
    emulator::Module,
};

const ROWS: usize = 20;
const K: usize = 72;

/// `x @ w`, an input of `columns` columns.
fn product(program: &mut Program, x: ValueId, rows: usize, k: usize, columns: usize) -> ValueId {
    let shape = [k, columns];
    let w = program.input(DType::BF16, &shape, &row_major(&shape));
    let args = [("self", Argument::Tensor(x)), ("mat2", Argument::Tensor(w))];
    program.node("aten.mm.default", &args, DType::BF16, &[rows, columns])
}

#[test]
fn products_of_one_matrix_share_a_launch_and_those_that_wait_do_not() {
    let mut program = Program::default();
    let x = program.input(DType::BF16, &[ROWS, K], &row_major(&[ROWS, K]));
    let first = product(&mut program, x, ROWS, K, 72);
    let relu = program.node(
        "aten.relu.default",
        &[("self", Argument::Tensor(first))],
        DType::BF16,
        &[ROWS, 72],
    );
    let second = product(&mut program, x, ROWS, K, 136);
    // This one waits for the first: its own launch, though it has as many rows.
    let third = product(&mut program, relu, ROWS, 72, 40);
    let fourth = product(&mut program, x, ROWS, K, 8);
    // And so does this one, with what follows from it.
    let fifth = product(&mut program, x, ROWS, K, 72);
    let args = [("self", Argument::Tensor(fifth)), ("other", Argument::Tensor(relu))];
    let fifth = program.node("aten.mul.Tensor", &args, DType::BF16, &[ROWS, 72]);
    program.graph.outputs.extend([relu, second, third, fourth, fifth]);
    let lowered = program.compile();
    let variants: Vec<&str> = lowered.plan.kernels.iter().map(|k| k.variant.as_str()).collect();
    assert_eq!(variants.len(), 3, "{variants:?}");
    assert!(variants[0].ends_with("; 3 side by side"), "{variants:?}");
    assert!(!variants[1..].concat().contains("side by side"), "{variants:?}");

    let mut seed = 11;
    let sizes = [ROWS * K, K * 72, K * 136, 72 * 40, K * 8, K * 72];
    let data: Vec<Vec<f32>> = sizes.iter().map(|size| noise(*size, &mut seed)).collect();
    let inputs: Vec<Vec<u8>> = data.iter().map(|x| bytes(x, DType::BF16)).collect();
    let outputs: Vec<Vec<f64>> =
        Module::build(&lowered).run(&inputs).iter().map(|out| floats(DType::BF16, out)).collect();
    let x: Vec<f64> = data[0].iter().map(|x| f64::from(*x)).collect();
    let check =
        |name: &str, ours: &[f64], (a, w): (&[f64], &[f32]), then: &dyn Fn(usize, f64) -> f64| {
            let (k, columns) = (a.len() / ROWS, w.len() / (a.len() / ROWS));
            for (i, ours) in ours.iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let term = |at: usize| a[row * k + at] * f64::from(w[at * columns + column]);
                let right = then(i, (0..k).map(term).sum());
                let error = (ours - right).abs();
                assert!(error < 0.02 * (1.0 + right.abs()), "{name} {i}: {ours} for {right}");
            }
        };
    let same = |_: usize, sum: f64| sum;
    check("first", &outputs[0], (&x, &data[1]), &|_, sum| sum.max(0.0));
    check("second", &outputs[1], (&x, &data[2]), &same);
    check("third", &outputs[2], (&outputs[0], &data[3]), &same);
    check("fourth", &outputs[3], (&x, &data[4]), &same);
    check("fifth", &outputs[4], (&x, &data[5]), &|i, sum| sum * outputs[0][i]);
}
