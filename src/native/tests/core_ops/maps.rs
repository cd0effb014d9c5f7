//! Element by element.

use super::*;
use DType::{BF16, Bool, F8E4M3, F8E5M2, F16, F32, F64, I32, I64, U8};

const EDGES: [f64; 20] = [
    0.0,
    -0.0,
    0.3,
    -0.3,
    0.5,
    -0.5,
    1.0,
    -1.0,
    1.5,
    -1.5,
    2.5,
    -2.5,
    3.7,
    20.0,
    -20.0,
    1e-5,
    60000.0,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
];
const UNARY: [Fun; 36] = [
    Fun::Id,
    Fun::Neg,
    Fun::Abs,
    Fun::Sign,
    Fun::Floor,
    Fun::Ceil,
    Fun::Trunc,
    Fun::Round,
    Fun::Sqrt,
    Fun::Rsqrt,
    Fun::Reciprocal,
    Fun::Exp,
    Fun::Exp2,
    Fun::Expm1,
    Fun::Log,
    Fun::Log2,
    Fun::Log10,
    Fun::Log1p,
    Fun::Sin,
    Fun::Cos,
    Fun::Tan,
    Fun::Asin,
    Fun::Acos,
    Fun::Atan,
    Fun::Sinh,
    Fun::Cosh,
    Fun::Tanh,
    Fun::Asinh,
    Fun::Acosh,
    Fun::Atanh,
    Fun::Erf,
    Fun::Sigmoid,
    Fun::Not,
    Fun::IsNan,
    Fun::IsInf,
    Fun::Id,
];
const COMPARE: [Fun; 6] = [Fun::Eq, Fun::Ne, Fun::Lt, Fun::Le, Fun::Gt, Fun::Ge];

fn result(fun: Fun, dtype: DType) -> DType {
    let test = COMPARE.contains(&fun) || matches!(fun, Fun::Not | Fun::IsNan | Fun::IsInf);
    if test { Bool } else { dtype }
}

#[test]
fn functions_of_one_float() {
    check(|bench| {
        for dtype in [F32, F16, BF16, F64] {
            let x = bench.input(dtype, &[S0, 4], &EDGES);
            for fun in UNARY {
                bench.output(map(fun, Domain::Float, 1), &[x], result(fun, dtype), &[S0, 4]);
            }
        }
    });
}

/// All pairs of edges.
fn pairs(edges: &[f64]) -> (Vec<f64>, Vec<f64>) {
    edges.iter().flat_map(|a| edges.iter().map(move |b| (*a, *b))).unzip()
}

#[test]
fn functions_of_two_floats() {
    let edges =
        [0.0, -0.0, 0.7, -1.0, 1.0, 2.0, -2.5, 3.0, 1e4, f64::INFINITY, -f64::INFINITY, f64::NAN];
    let (a, b) = pairs(&edges);
    check(|bench| {
        for dtype in [F32, BF16, F64] {
            let (x, y) = (bench.input(dtype, &[12, 12], &a), bench.input(dtype, &[12, 12], &b));
            let arithmetic = [
                Fun::Add,
                Fun::Sub,
                Fun::Mul,
                Fun::Div,
                Fun::FloorDiv,
                Fun::TruncDiv,
                Fun::Remainder,
                Fun::Fmod,
                Fun::Pow,
                Fun::Atan2,
                Fun::Min,
                Fun::Max,
            ];
            for fun in arithmetic.into_iter().chain(COMPARE) {
                let dtype = result(fun, dtype);
                bench.output(map(fun, Domain::Float, 2), &[x, y], dtype, &[12, 12]);
            }
        }
    });
}

#[test]
fn functions_of_whole_numbers() {
    // Division by zero and of the least by -1 stop a CPU: not here.
    let all = [0.0, 1.0, -1.0, 2.0, -3.0, 7.0, -8.0, 1e9, -1e9, 2147483647.0, -2147483648.0];
    let divisors = [1.0, 2.0, -2.0, 3.0, -7.0, 1e9];
    let (a, b) = pairs(&all);
    let (c, d): (Vec<f64>, Vec<f64>) =
        all.iter().flat_map(|a| divisors.iter().map(move |b| (*a, *b))).unzip();
    let (e, f): (Vec<f64>, Vec<f64>) = (all.iter())
        .flat_map(|a| [-1.0, 0.0, 1.0, 5.0, 31.0, 63.0, 64.0].iter().map(move |b| (*a, *b)))
        .unzip();
    check(|bench| {
        for dtype in [I64, I32] {
            let (x, y) = (bench.input(dtype, &[121], &a), bench.input(dtype, &[121], &b));
            for fun in [Fun::Neg, Fun::Abs, Fun::Sign, Fun::Not, Fun::BitNot, Fun::Id] {
                bench.output(map(fun, Domain::Int, 1), &[x], result(fun, dtype), &[121]);
            }
            let two =
                [Fun::Add, Fun::Sub, Fun::Mul, Fun::Min, Fun::Max, Fun::And, Fun::Or, Fun::Xor];
            for fun in two.into_iter().chain(COMPARE) {
                bench.output(map(fun, Domain::Int, 2), &[x, y], result(fun, dtype), &[121]);
            }
            let (x, y) = (bench.input(dtype, &[66], &c), bench.input(dtype, &[66], &d));
            for fun in [Fun::FloorDiv, Fun::TruncDiv, Fun::Remainder, Fun::Fmod] {
                bench.output(map(fun, Domain::Int, 2), &[x, y], dtype, &[66]);
            }
            let (x, y) = (bench.input(dtype, &[77], &e), bench.input(dtype, &[77], &f));
            for fun in [Fun::Shl, Fun::Shr, Fun::Pow] {
                bench.output(map(fun, Domain::Int, 2), &[x, y], dtype, &[77]);
            }
        }
    });
}

#[test]
fn functions_of_truth_values() {
    check(|bench| {
        let x = bench.input(Bool, &[4], &[0.0, 0.0, 1.0, 1.0]);
        let y = bench.input(Bool, &[4], &[0.0, 1.0]);
        for fun in
            [Fun::And, Fun::Or, Fun::Xor, Fun::Add, Fun::Mul, Fun::Max, Fun::Min, Fun::Eq, Fun::Ne]
        {
            bench.output(map(fun, Domain::Bool, 2), &[x, y], Bool, &[4]);
        }
        for fun in [Fun::Not, Fun::BitNot, Fun::Id] {
            bench.output(map(fun, Domain::Bool, 1), &[x], Bool, &[4]);
        }
    });
}

#[test]
fn casts() {
    let within = [0.0, 1.0, -1.9, 2.5, 100.7, -100.2];
    check(|bench| {
        let floats: Vec<ValueId> =
            [F32, F16, BF16, F64].map(|dtype| bench.input(dtype, &[6], &within)).into();
        let wholes: Vec<ValueId> =
            [I64, I32, Bool].map(|dtype| bench.input(dtype, &[6], &within)).into();
        for x in floats.iter().chain(&wholes) {
            for dtype in [F32, F16, BF16, F64, I64, I32, Bool] {
                bench.output(map(Fun::Id, Domain::Float, 1), &[*x], dtype, &[6]);
            }
        }
        let small = bench.input(U8, &[6], &[0.0, 1.0, 200.0]);
        for x in wholes.iter().chain([&small]) {
            for dtype in [I64, I32, U8, Bool, F32] {
                bench.output(map(Fun::Id, Domain::Int, 1), &[*x], dtype, &[6]);
            }
        }
        let x = bench.input(F32, &[4], &[f64::NAN, -0.0, 0.25, f64::INFINITY]);
        bench.output(map(Fun::Id, Domain::Float, 1), &[x], Bool, &[4]);
        bench.output(map(Fun::Id, Domain::Bool, 1), &[x], Bool, &[4]);
        let wide = bench.input(F32, &[4], &[70000.0, 1e-8, 65519.0, 3.3e38]);
        for dtype in [F16, BF16] {
            bench.output(map(Fun::Id, Domain::Float, 1), &[wide], dtype, &[4]);
        }
        let far = bench.input(I64, &[3], &[4294967297.0, -1.0, 2147483648.0]);
        bench.output(map(Fun::Id, Domain::Int, 1), &[far], I32, &[3]);
    });
}

#[test]
fn broadcasts_numbers_and_where() {
    check(|bench| {
        let column = bench.input(F32, &[S0, 1], &[1.0, 2.0, 3.0, f64::NAN, 5.0]);
        let row = bench.input(F32, &[S1], &[10.0, 20.0, 30.0]);
        let one = bench.input(BF16, &[1, 1, 1], &[7.0]);
        let none = bench.input(F32, &[], &[0.5]);
        let empty = bench.input(F32, &[0, S1], &[]);
        let add = |b: &mut Bench, reads: [ValueId; 2], shape: &[usize]| {
            b.output(map(Fun::Add, Domain::Float, 2), &reads, F32, shape)
        };
        let sum = add(bench, [column, row], &[S0, S1]);
        add(bench, [one, sum], &[1, S0, S1]);
        add(bench, [none, none], &[]);
        add(bench, [none, row], &[S1]);
        add(bench, [empty, row], &[0, S1]);
        let which = bench.node(map(Fun::Gt, Domain::Float, 2), &[column, none], Bool, &[S0, 1]);
        bench.output(map(Fun::Where, Domain::Float, 3), &[which, sum, none], F32, &[S0, S1]);
        bench.output(map(Fun::Where, Domain::Float, 3), &[which, row, column], BF16, &[S0, S1]);
        let numbers = [
            Number::Float(0.1),
            Number::Int(-3),
            Number::Bool(true),
            Number::Float(f64::NEG_INFINITY),
            Number::Size(bench.size(S1)),
        ];
        for number in numbers {
            let args = vec![Operand::Number(number), Operand::Read(0)];
            let op = |fun| Op::Map { fun, domain: Domain::Float, args: args.clone() };
            bench.output(op(Fun::Mul), &[row], F32, &[S1]);
            bench.output(op(Fun::Lt), &[row], Bool, &[S1]);
        }
    });
}

#[test]
fn floats_of_64_bits_keep_them() {
    // Each of these is another number, or none, in 32 bits.
    let fine = [1.0 + f64::EPSILON, -0.1, 1e300, -1e-300, 5e-324, 16_777_217.0, 0.1 + 0.2, 3e9];
    check(|bench| {
        let (x, y) = (bench.input(F64, &[S0, 8], &fine), bench.input(F32, &[8], &[0.1, 3.0]));
        let one = bench.input(F64, &[], &[1e-17]);
        for fun in [Fun::Add, Fun::Mul, Fun::Max, Fun::Pow, Fun::Eq, Fun::Lt] {
            for other in [y, one] {
                bench.output(map(fun, Domain::Float, 2), &[x, other], result(fun, F64), &[S0, 8]);
            }
        }
        for number in [Number::Float(0.1), Number::Int(3), Number::Bool(true)] {
            let args = vec![Operand::Read(0), Operand::Number(number)];
            for fun in [Fun::Sub, Fun::Ge] {
                let op = Op::Map { fun, domain: Domain::Float, args: args.clone() };
                bench.output(op, &[x], result(fun, F64), &[S0, 8]);
            }
        }
        for dtype in [I64, Bool, F32] {
            bench.output(map(Fun::Id, Domain::Float, 1), &[x], dtype, &[S0, 8]);
        }
        let (start, step) = (Number::Float(0.1), Number::Float(1e-9));
        bench.output(Op::Iota { start, step }, &[], F64, &[S1]);
        bench.output(Op::Full(Number::Float(0.1)), &[], F64, &[S1]);
        let op = Op::Pad { before: vec![1.into()], value: Number::Float(0.1) };
        let row = bench.node(Op::Full(Number::Float(1e300)), &[], F64, &[S1]);
        bench.output(op, &[row], F64, &[12]);
    });
}

#[test]
fn floats_of_8_bits_are_rounded_to_even_up_to_the_last() {
    let mut wide = vec![464.0, 465.0, 479.9, 480.0, 61439.0, 61440.0, 1e30, f64::INFINITY];
    wide.extend([f64::NAN, 0.0, 1e-30, 2f64.powi(-10), 3.0 * 2f64.powi(-17), 1.0625, 1.1875]);
    wide.extend((0..400).map(|i| f64::from(i * i) / 4096.0 + f64::from(i) / 3.0));
    wide.extend(wide.clone().iter().map(|x| -x));
    let count = wide.len();
    check(|bench| {
        for dtype in [F8E4M3, F8E5M2] {
            for from in [F32, BF16] {
                let x = bench.input(from, &[count], &wide);
                bench.output(map(Fun::Id, Domain::Float, 1), &[x], dtype, &[count]);
            }
            let x = bench.input(dtype, &[count], &wide);
            for to in [F32, F16, BF16, F64, F8E5M2, Bool] {
                bench.output(map(Fun::Id, Domain::Float, 1), &[x], to, &[count]);
            }
            bench.output(Op::Flip(vec![0]), &[x], dtype, &[count]);
            // Between two operations as well, whether or not a buffer holds it.
            let y = bench.input(F32, &[S0, 8], &wide);
            let short = bench.node(map(Fun::Id, Domain::Float, 1), &[y], dtype, &[S0, 8]);
            bench.output(map(Fun::Neg, Domain::Float, 1), &[short], F32, &[S0, 8]);
        }
        let ints = bench.input(I64, &[4], &[300.0, -17.0, 70000.0, 0.0]);
        for dtype in [F8E4M3, F8E5M2] {
            bench.output(map(Fun::Id, Domain::Int, 1), &[ints], dtype, &[4]);
        }
    });
}
