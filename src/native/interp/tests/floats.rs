//! Maps of floats: PyTorch's values for the corners of each function.

use super::*;
use DType::{BF16, Bool, F16, F32, F64, I32, I64};

/// `fun` in `f64`: nothing is rounded.
fn exact(fun: Fun, operands: &[&[f64]]) -> Vec<f64> {
    let shape = [operands[0].len()];
    let reads: Vec<Given<'_>> = operands.iter().map(|all| (F64, &shape[..], *all)).collect();
    one(map(fun, Domain::Float, reads.len()), &reads, F64, &shape)
}

#[test]
fn rounding_functions() {
    let x = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -0.0, NAN, -INF];
    assert_same(&exact(Fun::Round, &[&x]), &[-2., -2., -0., 0., 2., 2., -0., NAN, -INF]);
    assert_same(&exact(Fun::Floor, &[&x]), &[-3., -2., -1., 0., 1., 2., -0., NAN, -INF]);
    assert_same(&exact(Fun::Ceil, &[&x]), &[-2., -1., -0., 1., 2., 3., -0., NAN, -INF]);
    assert_same(&exact(Fun::Trunc, &[&x]), &[-2., -1., -0., 0., 1., 2., -0., NAN, -INF]);
    assert_same(&exact(Fun::Neg, &[&[1., -0., NAN]]), &[-1., 0., NAN]);
    assert_same(&exact(Fun::Abs, &[&[-1., -0., -INF, NAN]]), &[1., 0., INF, NAN]);
    assert_same(&exact(Fun::Sign, &[&[-3., -0., 0., INF, NAN]]), &[-1., 0., 0., 1., 0.]);
}

#[test]
fn roots_and_logarithms_at_their_edges() {
    let x = [4., 0., -0., -1., INF, NAN];
    assert_same(&exact(Fun::Sqrt, &[&x]), &[2., 0., -0., NAN, INF, NAN]);
    assert_same(&exact(Fun::Rsqrt, &[&x]), &[0.5, INF, -INF, NAN, 0., NAN]);
    assert_same(&exact(Fun::Reciprocal, &[&x]), &[0.25, INF, -INF, -1., 0., NAN]);
    assert_same(&exact(Fun::Log, &[&[1., 0., -1., INF]]), &[0., -INF, NAN, INF]);
    assert_same(&exact(Fun::Log2, &[&[8., 0.]]), &[3., -INF]);
    assert_close(&exact(Fun::Log10, &[&[1000., 0.]]), &[3., -INF]);
    assert_close(&exact(Fun::Log1p, &[&[1e-20, -1.]]), &[1e-20, -INF]);
    assert_same(&exact(Fun::Exp, &[&[0., -INF, INF, NAN]]), &[1., 0., INF, NAN]);
    assert_same(&exact(Fun::Exp2, &[&[3., -1.]]), &[8., 0.5]);
    assert_close(&exact(Fun::Expm1, &[&[1e-20, -INF]]), &[1e-20, -1.]);
}

#[test]
fn trigonometry() {
    use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, PI};
    assert_close(&exact(Fun::Sin, &[&[FRAC_PI_2, INF]]), &[1., NAN]);
    assert_close(&exact(Fun::Cos, &[&[PI, 0.]]), &[-1., 1.]);
    assert_close(&exact(Fun::Tan, &[&[FRAC_PI_4]]), &[1.]);
    assert_close(&exact(Fun::Asin, &[&[1., 2.]]), &[FRAC_PI_2, NAN]);
    assert_close(&exact(Fun::Acos, &[&[-1., 0.]]), &[PI, FRAC_PI_2]);
    assert_close(&exact(Fun::Atan, &[&[1., -INF]]), &[FRAC_PI_4, -FRAC_PI_2]);
    assert_close(&exact(Fun::Sinh, &[&[LN_2]]), &[0.75]);
    assert_close(&exact(Fun::Cosh, &[&[LN_2]]), &[1.25]);
    assert_close(&exact(Fun::Tanh, &[&[LN_2, 1000.]]), &[0.6, 1.]);
    assert_close(&exact(Fun::Asinh, &[&[0.75, 1e-20]]), &[LN_2, 1e-20]);
    assert_close(&exact(Fun::Acosh, &[&[1.25, 0.5]]), &[LN_2, NAN]);
    assert_close(&exact(Fun::Atanh, &[&[0.6, 1., 1e-20]]), &[LN_2, INF, 1e-20]);
    assert_close(
        &exact(Fun::Atan2, &[&[1., -0., -1.], &[-0., -1., 1.]]),
        &[FRAC_PI_2, -PI, -FRAC_PI_4],
    );
}

#[test]
fn erf_and_sigmoid() {
    // Of mpmath, to 17 digits.
    let x = [0.0, 0.5, -1.0, 3.0, 6.0, 1e-20, INF, NAN];
    let expected = [
        0.0,
        0.520_499_877_813_046_5,
        -0.842_700_792_949_714_9,
        0.999_977_909_503_001_4,
        1.0,
        1.128_379_167_095_512_6e-20,
        1.0,
        NAN,
    ];
    assert_close(&exact(Fun::Erf, &[&x]), &expected);
    assert_close(&exact(Fun::Sigmoid, &[&[0., -1000., 1000., NAN]]), &[0.5, 0., 1., NAN]);
}

#[test]
fn arithmetic_at_its_edges() {
    assert_same(&exact(Fun::Add, &[&[1., INF, 1.], &[2., -INF, NAN]]), &[3., NAN, NAN]);
    assert_same(&exact(Fun::Sub, &[&[1., INF], &[2., INF]]), &[-1., NAN]);
    assert_same(&exact(Fun::Mul, &[&[3., 0.], &[-2., INF]]), &[-6., NAN]);
    assert_same(&exact(Fun::Div, &[&[1., -1., 0., 7.], &[0., 0., 0., 2.]]), &[INF, -INF, NAN, 3.5]);
    assert_same(
        &exact(Fun::Pow, &[&[1., NAN, -8., 0., 2., -2.], &[NAN, 0., 0.5, -1., 10., 3.]]),
        &[1., 1., NAN, INF, 1024., -8.],
    );
    let (a, b) = ([1., NAN, -0., INF], [NAN, 1., 3., 2.]);
    assert_same(&exact(Fun::Max, &[&a, &b]), &[NAN, NAN, 3., INF]);
    assert_same(&exact(Fun::Min, &[&a, &b]), &[NAN, NAN, -0., 2.]);
}

#[test]
fn divisions_with_remainder_are_pytorchs() {
    let (a, b) = ([1., -1., 0., 5., INF, 7., -7., 6.], [0., 0., 0., INF, 2., -2., 2., 3.]);
    assert_same(&exact(Fun::FloorDiv, &[&a, &b]), &[INF, -INF, NAN, 0., NAN, -4., -4., 2.]);
    assert_same(&exact(Fun::TruncDiv, &[&a, &b]), &[INF, -INF, NAN, 0., INF, -3., -3., 2.]);
    let (a, b) = ([1., -1., 5., -5., 5., INF, 1.], [0., INF, -INF, 3., -3., 2., INF]);
    assert_same(&exact(Fun::Remainder, &[&a, &b]), &[NAN, INF, -INF, 1., -1., NAN, 1.]);
    assert_same(&exact(Fun::Fmod, &[&a, &b]), &[NAN, -1., 5., -2., 2., NAN, 1.]);
}

#[test]
fn quotients_round_to_f32_before_they_are_truncated() {
    // 1 / f32(0.1) is 9.99999985: as an f32 it is 10.
    let reads = [(F32, &[1][..], &[1.0][..]), (F32, &[1], &[0.1])];
    assert_same(&one(map(Fun::TruncDiv, Domain::Float, 2), &reads, F32, &[1]), &[10.]);
    assert_same(&one(map(Fun::FloorDiv, Domain::Float, 2), &reads, F32, &[1]), &[9.]);
}

#[test]
fn comparisons_give_truth_values() {
    let reads = [(F32, &[3][..], &[1., NAN, 2.][..]), (F32, &[3], &[2., NAN, 2.])];
    for (fun, expected) in [
        (Fun::Eq, [0., 0., 1.]),
        (Fun::Ne, [1., 1., 0.]),
        (Fun::Lt, [1., 0., 0.]),
        (Fun::Le, [1., 0., 1.]),
        (Fun::Gt, [0., 0., 0.]),
        (Fun::Ge, [0., 0., 1.]),
    ] {
        assert_same(&one(map(fun, Domain::Float, 2), &reads, Bool, &[3]), &expected);
    }
    let x = [(F32, &[4][..], &[0., NAN, -INF, 3.][..])];
    for (fun, expected) in [
        (Fun::Not, [1., 0., 0., 0.]),
        (Fun::IsNan, [0., 1., 0., 0.]),
        (Fun::IsInf, [0., 0., 1., 0.]),
        (Fun::Id, [0., 1., 1., 1.]),
    ] {
        assert_same(&one(map(fun, Domain::Float, 1), &x, Bool, &[4]), &expected);
    }
}

#[test]
fn where_takes_what_the_condition_says() {
    let reads = [
        (Bool, &[2, 1][..], &[1., 0.][..]),
        (F32, &[2][..], &[1., NAN][..]),
        (F32, &[][..], &[7.][..]),
    ];
    let op = map(Fun::Where, Domain::Float, 3);
    assert_same(&one(op, &reads, F32, &[2, 2]), &[1., NAN, 7., 7.]);
}

#[test]
fn literals_are_rounded_as_tensors_are() {
    let number = Operand::Number(Number::Float(0.1));
    let op =
        |fun| Op::Map { fun, domain: Domain::Float, args: vec![Operand::Read(0), number.clone()] };
    assert_same(&one(op(Fun::Gt), &[(F32, &[1], &[0.1])], Bool, &[1]), &[0.]);
    assert_same(&one(op(Fun::Eq), &[(F64, &[1], &[0.1])], Bool, &[1]), &[1.]);
    let flipped =
        Op::Map { fun: Fun::Sub, domain: Domain::Float, args: vec![number, Operand::Read(0)] };
    assert_same(&one(flipped, &[(F64, &[1], &[0.1])], F64, &[1]), &[0.]);
}

#[test]
fn results_are_rounded_once_to_their_type() {
    let id = || map(Fun::Id, Domain::Float, 1);
    let cast = |x: f64, dtype| one(id(), &[(F64, &[1], &[x])], dtype, &[1])[0];
    // Halfway between two numbers of the type, then a little more than that.
    assert_eq!(cast(1.0 + 2f64.powi(-11), F16), 1.0);
    assert_eq!(cast(1.0 + 2f64.powi(-11) + 2f64.powi(-50), F16), 1.0 + 2f64.powi(-10));
    assert_eq!(cast(1.0 + 2f64.powi(-8), BF16), 1.0);
    assert_eq!(cast(1.0 + 2f64.powi(-8) + 2f64.powi(-50), BF16), 1.0 + 2f64.powi(-7));
    assert_eq!(cast(-1.0 - 2f64.powi(-8) - 2f64.powi(-50), BF16), -1.0 - 2f64.powi(-7));
    assert_eq!(cast(1.0 + 3.0 * 2f64.powi(-8) - 2f64.powi(-50), BF16), 1.0 + 2f64.powi(-7));
    assert_eq!(cast(1.0 + 2f64.powi(-24), F32), 1.0);
    assert_eq!(cast(65519.999, F16), 65504.0);
    assert_eq!(cast(65520.0, F16), INF);
    assert_eq!(cast(3.4e38, BF16), INF);
    assert_eq!(cast(1e300, F32), INF);
    assert_eq!(cast(2f64.powi(-25), F16), 0.0);
    assert_eq!(cast(2f64.powi(-25) * 1.0001, F16), 2f64.powi(-24));
    assert_eq!(cast(1e-50, BF16), 0.0);
    assert!(cast(NAN, F16).is_nan() && cast(NAN, BF16).is_nan());
}

#[test]
fn floats_become_whole_numbers_towards_zero_and_within_range() {
    let cast = |dtype| {
        let x = [1.9, -1.9, NAN, INF, -INF, 3e9];
        one(map(Fun::Id, Domain::Float, 1), &[(F32, &[6], &x)], dtype, &[6])
    };
    let (least, most) = (f64::from(i32::MIN), f64::from(i32::MAX));
    assert_same(&cast(I32), &[1., -1., 0., most, least, most]);
    assert_same(&cast(I64), &[1., -1., 0., i64::MAX as f64, i64::MIN as f64, 3e9]);
}

#[test]
fn exact_runs_round_nothing() {
    let reads = [(F16, &[1][..], &[1.0][..]), (F16, &[1], &[3.0])];
    let program = program(map(Fun::Div, Domain::Float, 2), &reads, F16, &[1]);
    let inputs = reads.map(tensor);
    let settings = Settings { precision: Precision::Exact, ..Settings::default() };
    let exact = run(&program, &inputs, &settings).unwrap();
    assert_eq!(exact[0].dtype, F64);
    assert_same(&exact[0].to_f64().unwrap(), &[1.0 / 3.0]);
    let rounded = run(&program, &inputs, &Settings::default()).unwrap();
    assert_same(&rounded[0].to_f64().unwrap(), &[f64::from(half::f16::from_f64(1.0 / 3.0))]);
}
