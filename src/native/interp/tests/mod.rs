//! Each operation against values worked out by hand.

mod floats;
mod ints;
mod movement;
mod positions;
mod products;
mod reductions;
mod whole;

use kiln_proto::{Failure, graph::DType};

use super::{Precision, Settings, Tensor, run, tensor::Data};
use crate::{
    core::{Domain, Fun, Input, Node, Number, Op, Operand, Program, Range, Value, ValueId},
    size::Size,
};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// A type, sizes and elements.
type Given<'a> = (DType, &'a [usize], &'a [f64]);

/// A program of one operation.
fn program(op: Op, reads: &[Given<'_>], dtype: DType, shape: &[usize]) -> Program {
    let mut program = Program::default();
    let mut value = |dtype: DType, shape: &[usize]| {
        let shape = shape.iter().map(|size| Size::from(*size)).collect();
        program.values.push(Value { dtype, shape });
        ValueId(program.values.len() - 1)
    };
    let inputs: Vec<ValueId> = reads.iter().map(|(dtype, shape, _)| value(*dtype, shape)).collect();
    let writes = value(dtype, shape);
    let input = |(position, value): (usize, &ValueId)| Input {
        value: *value,
        position,
        strides: Vec::new(),
    };
    program.inputs = inputs.iter().enumerate().map(input).collect();
    program.nodes = vec![Node { op, reads: inputs, writes, origin: 0 }];
    program.outputs = vec![writes];
    program
}

fn tensor((dtype, shape, elements): Given<'_>) -> Tensor<'static> {
    let data = Data::Float(elements.to_vec()).cast(dtype, Precision::Rounded);
    Tensor::dense(dtype, shape, data.to_bytes(dtype))
}

fn outcome(
    op: Op,
    reads: &[Given<'_>],
    dtype: DType,
    shape: &[usize],
) -> Result<Vec<f64>, Failure> {
    let inputs: Vec<Tensor<'_>> = reads.iter().map(|given| tensor(*given)).collect();
    let program = program(op, reads, dtype, shape);
    let outputs = run(&program, &inputs, &Settings::default())?;
    assert_eq!((outputs[0].dtype, &outputs[0].shape[..]), (dtype, shape));
    outputs[0].to_f64()
}

/// The result of one operation, of sizes `shape`.
fn one(op: Op, reads: &[Given<'_>], dtype: DType, shape: &[usize]) -> Vec<f64> {
    outcome(op, reads, dtype, shape).unwrap()
}

/// What is said about an operation that cannot be.
fn refused(op: Op, reads: &[Given<'_>], dtype: DType, shape: &[usize]) -> String {
    outcome(op, reads, dtype, shape).unwrap_err().message
}

fn map(fun: Fun, domain: Domain, operands: usize) -> Op {
    Op::Map { fun, domain, args: (0..operands).map(Operand::Read).collect() }
}

/// Equal, NaN to NaN, and zeros of one sign.
fn assert_same(ours: &[f64], expected: &[f64]) {
    let shown = |all: &[f64]| all.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>();
    assert_eq!(shown(ours), shown(expected));
}

/// Equal to a few units in the last place of an `f64`.
fn assert_close(ours: &[f64], expected: &[f64]) {
    assert_eq!(ours.len(), expected.len());
    for (a, b) in ours.iter().zip(expected) {
        let close = (a - b).abs() <= 1e-15 * b.abs().max(1.0) || (a.is_nan() && b.is_nan());
        assert!(close || a == b, "{a:?} is not {b:?}");
    }
}
