//! Programs as a whole: inputs, symbols, memory.

use std::borrow::Cow;

use kiln_proto::FailureKind;

use super::*;
use crate::bind::{self, Sight};
use DType::{F32, I64};

/// `x + x` where `x` is `[2 * s0 + 1, s1]`, then the first again.
fn symbolic() -> Program {
    let s0 = Size::symbol(0);
    let add = |a, b| Op::Map {
        fun: Fun::Add,
        domain: Domain::Float,
        args: vec![Operand::Read(a), Operand::Read(b)],
    };
    let mut built = program(add(0, 0), &[(F32, &[1, 1], &[])], F32, &[1, 1]);
    built.symbols = vec![Range { min: 1, max: 8 }, Range { min: 0, max: i64::MAX }];
    for value in &mut built.values {
        value.shape = vec![&(&s0 + &s0) + &Size::from(1), Size::symbol(1)];
    }
    built.values.push(built.values[1].clone());
    built.nodes.push(Node {
        op: add(0, 1),
        reads: vec![ValueId(0), ValueId(1)],
        writes: ValueId(2),
        origin: 1,
    });
    built.outputs = vec![ValueId(2), ValueId(0)];
    built
}

fn failure(program: &Program, inputs: &[Tensor<'_>]) -> Failure {
    run(program, inputs, &Settings::default()).unwrap_err()
}

#[test]
fn symbols_are_bound_by_the_inputs() {
    let x = tensor((F32, &[3, 2], &[1., 2., 3., 4., 5., 6.]));
    let outputs = run(&symbolic(), std::slice::from_ref(&x), &Settings::default()).unwrap();
    assert_eq!(outputs[0].shape, [3, 2]);
    assert_same(&outputs[0].to_f64().unwrap(), &[3., 6., 9., 12., 15., 18.]);
    assert_eq!(outputs[1], x);
    let sights = bind::sights(&symbolic()).unwrap();
    let offset = |dim, scale, offset| Sight { input: 0, dim, scale, offset };
    assert_eq!(sights, [offset(0, 2, 1), offset(1, 1, 0)]);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for (shape, why) in [
        (&[4, 2][..], "dimension 0 of input 0 is 4, not 2 * s0 + 1"),
        (&[1, 2], "at least 1 and at most 8"),
        (&[19, 2], "makes s0 9"),
        (&[3], "no dimension 1"),
        (&[3, 2, 1], "not [3, 2]"),
    ] {
        let count: usize = shape.iter().product();
        let failure = failure(&symbolic(), &[tensor((F32, shape, &vec![0.; count]))]);
        assert_eq!(failure.kind, FailureKind::InvalidInput);
        assert!(failure.message.contains(why), "{failure}");
    }
    let mut unbound = symbolic();
    unbound.symbols.push(Range { min: 0, max: 1 });
    let x = tensor((F32, &[3, 0], &[]));
    let failure = failure(&unbound, &[x]);
    assert_eq!(failure.kind, FailureKind::UnsupportedOp);
    assert!(failure.message.contains("s2"));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let program = symbolic();
    assert!(failure(&program, &[]).message.contains("input 0 is missing"));
    let ints = tensor((I64, &[3, 1], &[0.; 3]));
    assert!(failure(&program, &[ints]).message.contains("input 0 is i64, not f32"));
    let mut short = tensor((F32, &[3, 1], &[0.; 3]));
    short.bytes.to_mut().pop();
    assert!(failure(&program, &[short]).message.contains("11 bytes hold no f32 [3, 1]"));
    let mut far = tensor((F32, &[3, 2], &[0.; 6]));
    far.strides = vec![usize::MAX, 1];
    assert!(failure(&program, &[far]).message.contains("hold no"));
}

#[test]
fn inputs_have_any_strides() {
    let bytes: Vec<u8> = [1f32, 2., 3., 4., 5., 6.].iter().flat_map(|x| x.to_le_bytes()).collect();
    let x = Tensor { dtype: F32, shape: vec![3, 2], strides: vec![1, 3], bytes: Cow::Owned(bytes) };
    let outputs = run(&symbolic(), &[x], &Settings::default()).unwrap();
    assert_same(&outputs[1].to_f64().unwrap(), &[1., 4., 2., 5., 3., 6.]);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let program = symbolic();
    let run = |rows: usize, memory_bytes| {
        let x = tensor((F32, &[rows, 10], &vec![1.; rows * 10]));
        run(&program, &[x], &Settings { memory_bytes, ..Settings::default() })
    };
    // Three tensors of 30 elements are alive at once.
    assert!(run(3, 3 * 240).is_ok());
    let failure = run(3, 3 * 240 - 1).unwrap_err();
    assert_eq!(failure.kind, FailureKind::OutOfMemory);
    assert!(failure.message.contains("over 719 bytes"), "{failure}");

    // A chain of any length needs two tensors at a time, besides the input.
    let mut chain = program.clone();
    for at in 3..40 {
        chain.values.push(chain.values[1].clone());
        let mut node = chain.nodes[1].clone();
        (node.reads, node.writes) = (vec![ValueId(at - 1), ValueId(at - 1)], ValueId(at));
        chain.nodes.push(node);
    }
    chain.outputs = vec![ValueId(39)];
    let x = tensor((F32, &[3, 10], &[0.; 30]));
    let settings = Settings { memory_bytes: 3 * 240, ..Settings::default() };
    assert!(super::run(&chain, &[x], &settings).is_ok());
}

#[test]
fn a_program_that_reads_ahead_is_refused() {
    let mut program = symbolic();
    program.nodes.swap(0, 1);
    let x = tensor((F32, &[3, 1], &[0.; 3]));
    assert!(failure(&program, &[x]).message.contains("before it is there"));
}
