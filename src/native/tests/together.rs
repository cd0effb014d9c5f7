//! Products of one matrix and rows of one length that share a launch, and what
//! follows from a row's mean that shares a kernel with it.

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

/// The template is long to compile: products whose text is the same have one, and each takes
/// its own operands.
#[test]
fn products_that_differ_in_their_operands_alone_are_one_text() {
    let mut program = Program::default();
    let x = program.input(DType::F32, &[ROWS, K], &row_major(&[ROWS, K]));
    let columns = [72, 40, 72, 40];
    let mut data = vec![noise(ROWS * K, &mut 3)];
    for (at, columns) in columns.into_iter().enumerate() {
        let w = program.input(DType::F32, &[K, columns], &row_major(&[K, columns]));
        data.push(noise(K * columns, &mut (at as u64)));
        let args = [("self", Argument::Tensor(x)), ("mat2", Argument::Tensor(w))];
        let out = program.node("aten.mm.default", &args, DType::F32, &[ROWS, columns]);
        program.graph.outputs.push(out);
    }
    let lowered = program.compile();
    let variants: Vec<&str> = lowered.plan.kernels.iter().map(|k| k.variant.as_str()).collect();
    assert!(matches!(variants[..], [only] if only.ends_with("; 4 side by side")), "{variants:?}");
    // One for 72 columns, one for 40.
    assert_eq!(lowered.source.matches("kiln_product_cores<k").count(), 2);
    let inputs: Vec<Vec<u8>> = data.iter().map(|x| bytes(x, DType::F32)).collect();
    let outputs = Module::build(&lowered).run(&inputs);
    for (at, (out, columns)) in outputs.iter().zip(columns).enumerate() {
        for (i, ours) in floats(DType::F32, out).into_iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            let term = |k: usize| {
                f64::from(data[0][row * K + k]) * f64::from(data[at + 1][k * columns + column])
            };
            let right: f64 = (0..K).map(term).sum();
            assert!((ours - right).abs() < 1e-5 * (1.0 + right.abs()), "{at} {i}: {ours}, {right}");
        }
    }
}

/// `x / sqrt(mean(x^2))` along the last dimension, of `size` elements.
fn normed(program: &mut Program, x: ValueId, shape: &[usize]) -> ValueId {
    let t = Argument::Tensor;
    let one = [&shape[..shape.len() - 1], &[1]].concat();
    let by = |a, b| [("self", t(a)), ("other", t(b))];
    let square = program.node("aten.mul.Tensor", &by(x, x), DType::F32, shape);
    let args =
        [("self", t(square)), ("dim", Argument::Ints(vec![-1])), ("keepdim", Argument::Bool(true))];
    let mean = program.node("aten.mean.dim", &args, DType::F32, &one);
    let scale = program.node("aten.rsqrt.default", &[("self", t(mean))], DType::F32, &one);
    program.node("aten.mul.Tensor", &by(x, scale), DType::F32, shape)
}

fn normed_right(x: &[f32], size: usize) -> Vec<f64> {
    let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let row = |row: &[f64]| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / size as f64;
        row.iter().map(|x| x / mean.sqrt()).collect::<Vec<_>>()
    };
    wide.chunks(size).flat_map(row).collect()
}

fn near(ours: &[f64], right: &[f64]) {
    assert_eq!(ours.len(), right.len());
    for (i, (ours, right)) in ours.iter().zip(right).enumerate() {
        assert!((ours - right).abs() < 1e-5 * (1.0 + right.abs()), "{i}: {ours} for {right}");
    }
}

#[test]
fn rows_of_one_length_share_a_launch_and_those_that_wait_do_not() {
    let mut program = Program::default();
    let shapes = [[7, 32], [130, 32], [5, 96]];
    let given = shapes.map(|shape| program.input(DType::F32, &shape, &row_major(&shape)));
    let firsts: Vec<ValueId> =
        given.iter().zip(&shapes).map(|(x, shape)| normed(&mut program, *x, shape)).collect();
    // Its rows are of the same length as those that it waits for.
    let matrix = [("self", Argument::Tensor(firsts[0])), ("dim", Argument::Ints(vec![0]))];
    let sum = program.node("aten.sum.dim_IntList", &matrix, DType::F32, &[32]);
    let last = normed(&mut program, sum, &[32]);
    program.graph.outputs.extend(firsts.iter().chain([&last]));
    let lowered = program.compile();
    let variants: Vec<&str> = lowered.plan.kernels.iter().map(|k| k.variant.as_str()).collect();
    assert!(variants[0].ends_with("; 2 side by side"), "{variants:?}");
    assert!(!variants[1..].concat().contains("side by side"), "{variants:?}");

    let mut seed = 5;
    let data = shapes.map(|[rows, columns]| noise(rows * columns, &mut seed));
    let inputs = data.each_ref().map(|x| bytes(x, DType::F32));
    let outputs = Module::build(&lowered).run(&inputs);
    let ours: Vec<Vec<f64>> = outputs.iter().map(|out| floats(DType::F32, out)).collect();
    for (i, [_, columns]) in shapes.iter().enumerate() {
        near(&ours[i], &normed_right(&data[i], *columns));
    }
    let sums: Vec<f32> =
        (0..32).map(|c| ours[0].iter().skip(c).step_by(32).sum::<f64>() as f32).collect();
    near(&ours[3], &normed_right(&sums, 32));
}

#[test]
fn a_row_is_normed_and_rotated_by_one_kernel() {
    const SHAPE: [usize; 3] = [6, 2, 64];
    let mut program = Program::default();
    let t = Argument::Tensor;
    let x = program.input(DType::F32, &SHAPE, &row_major(&SHAPE));
    let waves = [6, 1, 64];
    let [cos, sin] = [(); 2].map(|()| program.input(DType::F32, &waves, &row_major(&waves)));
    let y = normed(&mut program, x, &SHAPE);
    let half = |program: &mut Program, start, end| {
        let args = [
            ("self", t(y)),
            ("dim", Argument::Int(2)),
            ("start", Argument::Int(start)),
            ("end", Argument::Int(end)),
        ];
        program.node("aten.slice.Tensor", &args, DType::F32, &[6, 2, 32])
    };
    let (low, high) = (half(&mut program, 0, 32), half(&mut program, 32, 64));
    let high = program.node("aten.neg.default", &[("self", t(high))], DType::F32, &[6, 2, 32]);
    let parts =
        [("tensors", Argument::Tensors(vec![Some(high), Some(low)])), ("dim", Argument::Int(2))];
    let turned = program.node("aten.cat.default", &parts, DType::F32, &SHAPE);
    let mut by =
        |op, a, b| program.node(op, &[("self", t(a)), ("other", t(b))], DType::F32, &SHAPE);
    let (a, b) = (by("aten.mul.Tensor", y, cos), by("aten.mul.Tensor", turned, sin));
    let rope = by("aten.add.Tensor", a, b);
    program.graph.outputs.push(rope);
    let lowered = program.compile();
    assert_eq!(lowered.plan.kernels.len(), 1, "{:?}", lowered.plan.kernels);

    let mut seed = 3;
    let data = [6 * 2 * 64, 6 * 64, 6 * 64].map(|count| noise(count, &mut seed));
    let inputs = data.each_ref().map(|x| bytes(x, DType::F32));
    let ours = floats(DType::F32, &Module::build(&lowered).run(&inputs)[0]);
    let y = normed_right(&data[0], 64);
    let rotated = |i: usize| {
        let (row, column) = (i / 64, i % 64);
        let turned =
            if column < 32 { -y[row * 64 + column + 32] } else { y[row * 64 + column - 32] };
        let wave = row / 2 * 64 + column;
        y[i] * f64::from(data[1][wave]) + turned * f64::from(data[2][wave])
    };
    near(&ours, &(0..ours.len()).map(rotated).collect::<Vec<_>>());
}
