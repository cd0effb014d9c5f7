//! Two products of one matrix whose elements meet: one kernel, and only where it is right.

use kiln_proto::{
    Target,
    graph::{Argument, DType, ValueId},
};

use super::{
    super::Lowered,
    build::{Program, bytes, floats, noise},
    emulator::Module,
};

const K: usize = 72;
const COLUMNS: usize = 136;

/// `x @ w`, each column of `w` in one piece.
fn product(program: &mut Program, x: ValueId, rows: usize) -> ValueId {
    let w = program.input(DType::BF16, &[K, COLUMNS], &[1, K]);
    let args = [("self", Argument::Tensor(x)), ("mat2", Argument::Tensor(w))];
    program.node("aten.mm.default", &args, DType::BF16, &[rows, COLUMNS])
}

fn gated(rows: usize, outputs: impl Fn([ValueId; 4]) -> Vec<ValueId>) -> Program {
    let mut program = Program::default();
    let x = program.input(DType::BF16, &[rows, K], &[K, 1]);
    let gate = product(&mut program, x, rows);
    let up = product(&mut program, x, rows);
    let shape = [rows, COLUMNS];
    let opened = [("self", Argument::Tensor(gate))];
    let opened = program.node("aten.relu.default", &opened, DType::BF16, &shape);
    let both = [("self", Argument::Tensor(opened)), ("other", Argument::Tensor(up))];
    let through = program.node("aten.mul.Tensor", &both, DType::BF16, &shape);
    program.graph.outputs = outputs([gate, up, opened, through]);
    program
}

/// Of the kernels for `target`: how many, and how many of them are of twins.
fn kernels(program: &Program, target: Target) -> (usize, usize) {
    let plan = program.compile_for(target).plan;
    let twins = plan.kernels.iter().filter(|kernel| kernel.variant.contains("two of one tile"));
    (plan.kernels.len(), twins.count())
}

#[test]
fn a_gate_and_what_it_lets_through_are_one_kernel() {
    for rows in [1, 2] {
        let program = gated(rows, |[.., through]| vec![through]);
        assert_eq!(kernels(&program, Target::cubin(80)), (1, 1), "{rows} rows");
        let lowered = program.compile_for(Target::cubin(80));
        let [_, _, _, through] = right(rows);
        near(&run(&lowered, rows)[0], &through);
    }
}

/// Gate, up, opened and through, from the same numbers as [`run`].
fn right(rows: usize) -> [Vec<f64>; 4] {
    let [x, gate, up] = data(rows).map(|x| floats(DType::BF16, &bytes(&x, DType::BF16)));
    let product = |w: &[f64]| -> Vec<f64> {
        let sum = |row: usize, column: usize| -> f64 {
            (0..K).map(|k| x[row * K + k] * w[column * K + k]).sum()
        };
        (0..rows * COLUMNS).map(|i| sum(i / COLUMNS, i % COLUMNS)).collect()
    };
    let (gate, up) = (product(&gate), product(&up));
    let opened: Vec<f64> = gate.iter().map(|x| x.max(0.0)).collect();
    let through = opened.iter().zip(&up).map(|(a, b)| a * b).collect();
    [gate, up, opened, through]
}

fn data(rows: usize) -> [Vec<f32>; 3] {
    let mut seed = 5;
    [rows * K, K * COLUMNS, K * COLUMNS].map(|size| noise(size, &mut seed))
}

fn run(lowered: &Lowered, rows: usize) -> Vec<Vec<f64>> {
    let inputs = data(rows).each_ref().map(|x| bytes(x, DType::BF16));
    Module::build(lowered).run(&inputs).iter().map(|out| floats(DType::BF16, out)).collect()
}

fn near(ours: &[f64], right: &[f64]) {
    assert_eq!(ours.len(), right.len());
    for (i, (ours, right)) in ours.iter().zip(right).enumerate() {
        assert!((ours - right).abs() < 0.02 * (1.0 + right.abs()), "{i}: {ours} for {right}");
    }
}

#[test]
fn what_else_is_asked_for_of_them_is_right_too() {
    let sm_80 = Target::cubin(80);
    let program = gated(3, |[gate, up, _, through]| vec![gate, up, through]);
    // Both are read elsewhere: neither can stay in the other's registers.
    assert_eq!(kernels(&program, sm_80).1, 0);
    let [gate, up, opened, through] = right(3);
    let ours = run(&program.compile_for(sm_80), 3);
    for (ours, right) in ours.iter().zip([&gate, &up, &through]) {
        near(ours, right);
    }
    let ours = run(&gated(3, |[gate, _, _, through]| vec![gate, through]).compile(), 3);
    near(&ours[0], &gate);
    near(&ours[1], &through);
    let ours = run(&gated(3, |[_, up, opened, _]| vec![up, opened]).compile(), 3);
    near(&ours[0], &up);
    near(&ours[1], &opened);
    // More rows than the only template for it has.
    assert_eq!(kernels(&gated(9, |[.., through]| vec![through]), sm_80).1, 0);
}

#[test]
fn many_rows_are_twins_on_hopper_alone() {
    let program = gated(4096, |[.., through]| vec![through]);
    let hopper = Target { arch_specific: true, ..Target::cubin(90) };
    assert_eq!(kernels(&program, hopper), (1, 1));
    assert_eq!(kernels(&program, Target::cubin(80)).1, 0);
}
