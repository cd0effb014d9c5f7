//! Maps of whole numbers and truth values.

use super::*;
use DType::{Bool, F16, F32, I32, I64, U8};

fn ints(fun: Fun, dtype: DType, operands: &[&[f64]]) -> Vec<f64> {
    let shape = [operands[0].len()];
    let reads: Vec<Given<'_>> = operands.iter().map(|all| (dtype, &shape[..], *all)).collect();
    one(map(fun, Domain::Int, reads.len()), &reads, dtype, &shape)
}

#[test]
fn division_rounds_as_its_name_says() {
    let (a, b) = ([7., -7., 7., -7., 6., 5.], [2., 2., -2., -2., 3., 0.]);
    assert_same(&ints(Fun::FloorDiv, I64, &[&a, &b]), &[3., -4., -4., 3., 2., -1.]);
    assert_same(&ints(Fun::TruncDiv, I64, &[&a, &b]), &[3., -3., -3., 3., 2., -1.]);
    assert_same(&ints(Fun::Remainder, I64, &[&a, &b]), &[1., 1., -1., -1., 0., 5.]);
    assert_same(&ints(Fun::Fmod, I64, &[&a, &b]), &[1., -1., 1., -1., 0., 5.]);
    let least = [i64::MIN as f64];
    assert_same(&ints(Fun::FloorDiv, I64, &[&least, &[-1.]]), &least);
    assert_same(&ints(Fun::Remainder, I64, &[&least, &[-1.]]), &[0.]);
}

#[test]
fn overflow_wraps_at_the_width_of_the_type() {
    let (most, least) = (f64::from(i32::MAX), f64::from(i32::MIN));
    assert_same(&ints(Fun::Add, I32, &[&[most], &[1.]]), &[least]);
    assert_same(&ints(Fun::Neg, I32, &[&[least]]), &[least]);
    assert_same(&ints(Fun::Abs, I64, &[&[i64::MIN as f64, -3.]]), &[i64::MIN as f64, 3.]);
    assert_same(&ints(Fun::Mul, U8, &[&[16., 15.], &[17., 17.]]), &[16., 255.]);
    assert_same(&ints(Fun::Sub, U8, &[&[1.], &[2.]]), &[255.]);
    assert_same(&ints(Fun::Sign, I32, &[&[-5., 0., 5.]]), &[-1., 0., 1.]);
}

#[test]
fn shifts_out_of_range_move_all_bits_out() {
    let (x, by) = ([1., -1., -8., 5., 3.], [64., 65., -1., 2., 0.]);
    assert_same(&ints(Fun::Shl, I64, &[&x, &by]), &[0., 0., 0., 20., 3.]);
    assert_same(&ints(Fun::Shr, I64, &[&x, &by]), &[0., -1., -1., 1., 3.]);
    assert_same(&ints(Fun::Shl, I32, &[&[1., 3.], &[31., 40.]]), &[f64::from(i32::MIN), 0.]);
}

#[test]
fn powers_of_whole_numbers() {
    let (x, by) = ([2., -1., 1., -1., 0., 3., 2.], [-1., -3., -2., -2., 0., 4., 62.]);
    let expected = [0., -1., 1., 1., 1., 81., (1i64 << 62) as f64];
    assert_same(&ints(Fun::Pow, I64, &[&x, &by]), &expected);
}

#[test]
fn bits_and_order() {
    let (a, b) = ([12., -1.], [10., 3.]);
    assert_same(&ints(Fun::And, I64, &[&a, &b]), &[8., 3.]);
    assert_same(&ints(Fun::Or, I64, &[&a, &b]), &[14., -1.]);
    assert_same(&ints(Fun::Xor, I64, &[&a, &b]), &[6., -4.]);
    assert_same(&ints(Fun::BitNot, I32, &[&[0., -1., 5.]]), &[-1., 0., -6.]);
    assert_same(&ints(Fun::Not, I32, &[&[0., -1., 5.]]), &[1., 0., 0.]);
    assert_same(&ints(Fun::Min, I64, &[&a, &b]), &[10., -1.]);
    assert_same(&ints(Fun::Max, I64, &[&a, &b]), &[12., 3.]);
    assert_same(&ints(Fun::Where, I64, &[&[2., 0.], &a, &b]), &[12., 3.]);
    for (fun, expected) in [
        (Fun::Eq, [0., 0.]),
        (Fun::Ne, [1., 1.]),
        (Fun::Lt, [0., 1.]),
        (Fun::Le, [0., 1.]),
        (Fun::Gt, [1., 0.]),
        (Fun::Ge, [1., 0.]),
    ] {
        assert_same(&ints(fun, I64, &[&a, &b]), &expected);
    }
}

#[test]
fn truth_values_are_logical() {
    let shape = [2];
    let reads = [(Bool, &shape[..], &[1., 1.][..]), (Bool, &shape[..], &[1., 0.])];
    let bools = |fun, operands| one(map(fun, Domain::Bool, operands), &reads, Bool, &shape);
    assert_same(&bools(Fun::And, 2), &[1., 0.]);
    assert_same(&bools(Fun::Or, 2), &[1., 1.]);
    assert_same(&bools(Fun::Xor, 2), &[0., 1.]);
    assert_same(&bools(Fun::Add, 2), &[1., 1.]);
    assert_same(&bools(Fun::Mul, 2), &[1., 0.]);
    assert_same(&bools(Fun::Not, 1), &[0., 0.]);
    assert_same(&bools(Fun::BitNot, 1), &[0., 0.]);
    // Any number but zero is true, before anything is computed.
    let floats = [(F32, &shape[..], &[0.5, 2.][..]), (F32, &shape[..], &[3., 0.])];
    assert_same(&one(map(Fun::Eq, Domain::Bool, 2), &floats, Bool, &shape), &[1., 0.]);
}

#[test]
fn casts_between_widths_keep_the_low_bits() {
    let cast = |from, to, x: &[f64]| {
        one(map(Fun::Id, Domain::Int, 1), &[(from, &[x.len()], x)], to, &[x.len()])
    };
    assert_same(&cast(I64, I32, &[4_294_967_297., -1.]), &[1., -1.]);
    assert_same(&cast(I64, U8, &[300., -1.]), &[44., 255.]);
    assert_same(&cast(I64, Bool, &[256., 0.]), &[1., 0.]);
    assert_same(&cast(Bool, I64, &[1., 0.]), &[1., 0.]);
    assert_same(&cast(I64, F16, &[70000., 2049.]), &[INF, 2048.]);
    // Floats that enter whole arithmetic are truncated.
    assert_same(&cast(F32, I64, &[-1.9, 2.9]), &[-1., 2.]);
}

#[test]
fn whole_numbers_become_f32_in_float_arithmetic() {
    let x = [(I64, &[1][..], &[16_777_217.][..])];
    let sum = Op::Map {
        fun: Fun::Sub,
        domain: Domain::Float,
        args: vec![Operand::Read(0), Operand::Number(Number::Int(16_777_216))],
    };
    assert_same(&one(sum, &x, F32, &[1]), &[0.]);
}

#[test]
fn sizes_are_numbers() {
    let mut program = program(
        Op::Map {
            fun: Fun::Mul,
            domain: Domain::Int,
            args: vec![Operand::Read(0), Operand::Number(Number::Size(Size::symbol(0)))],
        },
        &[(I64, &[2], &[])],
        I64,
        &[2],
    );
    program.symbols = vec![Range { min: 0, max: 9 }];
    for value in &mut program.values {
        value.shape = vec![Size::symbol(0)];
    }
    let outputs = run(&program, &[tensor((I64, &[3], &[1., 2., 3.]))], &Settings::default());
    assert_same(&outputs.unwrap()[0].to_f64().unwrap(), &[3., 6., 9.]);
}

#[test]
fn functions_without_a_meaning_are_refused() {
    let x = [(I64, &[1][..], &[1.][..])];
    assert!(refused(map(Fun::Sqrt, Domain::Int, 1), &x, I64, &[1]).contains("no Sqrt"));
    let x = [(F32, &[1][..], &[1.][..]), (F32, &[1], &[1.])];
    assert!(refused(map(Fun::Xor, Domain::Float, 2), &x, F32, &[1]).contains("no Xor"));
    assert!(refused(map(Fun::Add, Domain::Float, 1), &x, F32, &[1]).contains("of 1 operands"));
}
