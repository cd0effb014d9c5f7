//! Every tile of the product kernels, at sizes and strides that fit none of
//! them, against sums in f64.

use kiln_proto::graph::{Argument, DType};

use super::{
    super::Lowered,
    build::{Program, bytes, floats, noise, row_major},
    emulator::Module,
};

/// `[batch, m, k] x [batch, k, n]`, each operand dense or with its last two dimensions swapped.
#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    m: usize,
    k: usize,
    n: usize,
    swapped: (bool, bool),
}

fn case(batch: usize, [m, k, n]: [usize; 3], swapped: (bool, bool)) -> Case {
    Case { batch, m, k, n, swapped }
}

fn strides(shape: [usize; 3], swapped: bool) -> Vec<usize> {
    let [b, rows, columns] = shape;
    match swapped {
        false => row_major(&shape),
        true => vec![row_major(&[b, columns, rows])[0], 1, rows],
    }
}

/// One program with a product for each case.
fn program(cases: &[Case], dtype: DType) -> Lowered {
    let mut program = Program::default();
    for Case { batch, m, k, n, swapped } in cases.iter().copied() {
        let (a, b) = ([batch, m, k], [batch, k, n]);
        let a = program.input(dtype, &a, &strides(a, swapped.0));
        let b = program.input(dtype, &b, &strides(b, swapped.1));
        let args = [("self", Argument::Tensor(a)), ("mat2", Argument::Tensor(b))];
        let out = program.node("aten.bmm.default", &args, dtype, &[batch, m, n]);
        program.graph.outputs.push(out);
    }
    program.compile()
}

fn check(cases: &[Case], dtype: DType, limit: f64) {
    let lowered = program(cases, dtype);
    let mut seed = 5;
    let data: Vec<(Vec<f32>, Vec<f32>)> = cases
        .iter()
        .map(|c| (noise(c.batch * c.m * c.k, &mut seed), noise(c.batch * c.k * c.n, &mut seed)))
        .collect();
    let inputs: Vec<Vec<u8>> =
        data.iter().flat_map(|(a, b)| [bytes(a, dtype), bytes(b, dtype)]).collect();
    let outputs = Module::build(&lowered).run(&inputs);
    for ((case, (a, b)), output) in cases.iter().zip(&data).zip(&outputs) {
        let Case { batch, m, k, n, swapped } = *case;
        let (sa, sb) = (strides([batch, m, k], swapped.0), strides([batch, k, n], swapped.1));
        let at = |x: &[f32], s: &[usize], i: [usize; 3]| {
            f64::from(x[i[0] * s[0] + i[1] * s[1] + i[2] * s[2]])
        };
        let (ours, mut index) = (floats(dtype, output), 0);
        for z in 0..batch {
            for row in 0..m {
                for column in 0..n {
                    let product = |i| at(a, &sa, [z, row, i]) * at(b, &sb, [z, i, column]);
                    let sum: f64 = (0..k).map(product).sum();
                    let ours = ours[index];
                    let error = (ours - sum).abs() / (k as f64).sqrt();
                    assert!(error < limit, "{case:?} at [{z}, {row}, {column}]: {ours} for {sum}");
                    index += 1;
                }
            }
        }
    }
}

/// Sizes for every tile: enough of them, few of them, and few rows.
fn cases() -> Vec<Case> {
    let all = [(false, false), (false, true), (true, false), (true, true)];
    let mut cases = Vec::new();
    for swapped in all {
        // Odd sizes in every dimension; then sizes that whole chunks divide.
        cases.push(case(2, [37, 19, 41], swapped));
        cases.push(case(1, [65, 40, 72], swapped));
        cases.push(case(3, [1, 70, 66], swapped));
    }
    cases.push(case(132, [67, 24, 9], (false, true)));
    cases.push(case(132, [72, 9, 24], (true, false)));
    cases
}

#[test]
fn products_on_the_ordinary_cores_are_right_at_every_edge() {
    check(&cases(), DType::F32, 1e-6);
}

#[test]
fn products_on_the_tensor_cores_are_right_at_every_edge() {
    check(&cases(), DType::BF16, 1e-2);
}
