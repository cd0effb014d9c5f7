//! Scalar arithmetic of the core operations, on `f64` and `i64`.
//!
//! Invariant: each function gives what PyTorch gives. Where PyTorch leaves the
//! result open, this is the choice: a whole number divided by zero is -1 and
//! leaves the dividend; floats beyond a whole number's range become its nearest
//! end, NaN zero; a shift out of range moves every bit out.

use crate::core::{Domain, Fun};

/// How many operands `fun` takes.
pub(super) const fn arity(fun: Fun) -> usize {
    match fun {
        Fun::Where => 3,
        Fun::Add
        | Fun::Sub
        | Fun::Mul
        | Fun::Div
        | Fun::FloorDiv
        | Fun::TruncDiv
        | Fun::Remainder
        | Fun::Fmod
        | Fun::Pow
        | Fun::Atan2
        | Fun::Min
        | Fun::Max
        | Fun::And
        | Fun::Or
        | Fun::Xor
        | Fun::Shl
        | Fun::Shr
        | Fun::Eq
        | Fun::Ne
        | Fun::Lt
        | Fun::Le
        | Fun::Gt
        | Fun::Ge => 2,
        _ => 1,
    }
}

/// Whether `fun` has a meaning in `domain`.
pub(super) fn has_meaning(fun: Fun, domain: Domain) -> bool {
    match domain {
        Domain::Float => float(fun, [1.0; 3], false).is_some(),
        Domain::Int | Domain::Bool => int(fun, [1; 3]).is_some(),
    }
}

/// `fun` of floats. `narrow`: quotients that are then truncated are rounded to
/// `f32` first, as every other implementation computes them.
pub(super) fn float(fun: Fun, [a, b, c]: [f64; 3], narrow: bool) -> Option<f64> {
    let truth = |truth: bool| f64::from(u8::from(truth));
    Some(match fun {
        Fun::Id => a,
        Fun::Neg => -a,
        Fun::Abs => a.abs(),
        Fun::Sign => truth(a > 0.0) - truth(a < 0.0),
        Fun::Floor => a.floor(),
        Fun::Ceil => a.ceil(),
        Fun::Trunc => a.trunc(),
        Fun::Round => a.round_ties_even(),
        Fun::Sqrt => a.sqrt(),
        Fun::Rsqrt => 1.0 / a.sqrt(),
        Fun::Reciprocal => 1.0 / a,
        Fun::Exp => a.exp(),
        Fun::Exp2 => a.exp2(),
        Fun::Expm1 => a.exp_m1(),
        Fun::Log => a.ln(),
        Fun::Log2 => a.log2(),
        Fun::Log10 => a.log10(),
        Fun::Log1p => a.ln_1p(),
        Fun::Sin => a.sin(),
        Fun::Cos => a.cos(),
        Fun::Tan => a.tan(),
        Fun::Asin => a.asin(),
        Fun::Acos => a.acos(),
        Fun::Atan => a.atan(),
        Fun::Sinh => a.sinh(),
        Fun::Cosh => a.cosh(),
        Fun::Tanh => a.tanh(),
        // The standard library's lose small arguments.
        Fun::Asinh => libm::asinh(a),
        Fun::Acosh => libm::acosh(a),
        Fun::Atanh => libm::atanh(a),
        Fun::Erf => libm::erf(a),
        Fun::Sigmoid => 1.0 / (1.0 + (-a).exp()),
        Fun::Not => truth(a == 0.0),
        Fun::IsNan => truth(a.is_nan()),
        Fun::IsInf => truth(a.is_infinite()),
        Fun::Add => a + b,
        Fun::Sub => a - b,
        Fun::Mul => a * b,
        Fun::Div => a / b,
        Fun::FloorDiv => floor_div(a, b),
        Fun::TruncDiv if narrow => f64::from((a / b) as f32).trunc(),
        Fun::TruncDiv => (a / b).trunc(),
        Fun::Remainder => {
            let left = a % b;
            if left != 0.0 && (b < 0.0) != (left < 0.0) { left + b } else { left }
        }
        Fun::Fmod => a % b,
        Fun::Pow => a.powf(b),
        Fun::Atan2 => a.atan2(b),
        Fun::Min if a.is_nan() || b.is_nan() => f64::NAN,
        Fun::Min => a.min(b),
        Fun::Max if a.is_nan() || b.is_nan() => f64::NAN,
        Fun::Max => a.max(b),
        Fun::Eq => truth(a == b),
        Fun::Ne => truth(a != b),
        Fun::Lt => truth(a < b),
        Fun::Le => truth(a <= b),
        Fun::Gt => truth(a > b),
        Fun::Ge => truth(a >= b),
        Fun::Where if a != 0.0 => b,
        Fun::Where => c,
        Fun::BitNot | Fun::And | Fun::Or | Fun::Xor | Fun::Shl | Fun::Shr => return None,
    })
}

/// `fun` of whole numbers, wrapping. Truth values are 0 and 1.
pub(super) fn int(fun: Fun, [a, b, c]: [i64; 3]) -> Option<i64> {
    Some(match fun {
        Fun::Id | Fun::Floor | Fun::Ceil | Fun::Trunc | Fun::Round => a,
        Fun::Neg => a.wrapping_neg(),
        Fun::Abs => a.wrapping_abs(),
        Fun::Sign => a.signum(),
        Fun::Not => i64::from(a == 0),
        Fun::BitNot => !a,
        Fun::IsNan | Fun::IsInf => 0,
        Fun::Add => a.wrapping_add(b),
        Fun::Sub => a.wrapping_sub(b),
        Fun::Mul => a.wrapping_mul(b),
        Fun::FloorDiv | Fun::TruncDiv if b == 0 => -1,
        Fun::Remainder | Fun::Fmod if b == 0 => a,
        Fun::TruncDiv => a.wrapping_div(b),
        Fun::Fmod => a.wrapping_rem(b),
        Fun::FloorDiv => {
            let left = a.wrapping_rem(b);
            a.wrapping_div(b) - i64::from(left != 0 && (left < 0) != (b < 0))
        }
        Fun::Remainder => {
            let left = a.wrapping_rem(b);
            if left != 0 && (left < 0) != (b < 0) { left + b } else { left }
        }
        Fun::Pow => pow(a, b),
        Fun::Min => a.min(b),
        Fun::Max => a.max(b),
        Fun::And => a & b,
        Fun::Or => a | b,
        Fun::Xor => a ^ b,
        Fun::Shl => in_range(b).map_or(0, |by| a << by),
        Fun::Shr => a >> in_range(b).unwrap_or(63),
        Fun::Eq => i64::from(a == b),
        Fun::Ne => i64::from(a != b),
        Fun::Lt => i64::from(a < b),
        Fun::Le => i64::from(a <= b),
        Fun::Gt => i64::from(a > b),
        Fun::Ge => i64::from(a >= b),
        Fun::Where if a != 0 => b,
        Fun::Where => c,
        _ => return None,
    })
}

/// `fun` of truth values, given as 0 and 1.
pub(super) fn truth(fun: Fun, args: [i64; 3]) -> Option<i64> {
    match fun {
        Fun::BitNot => Some(i64::from(args[0] == 0)),
        _ => int(fun, args).map(|result| i64::from(result != 0)),
    }
}

/// The whole number nearest to `a` towards zero.
pub(super) const fn truncated(a: f64) -> i64 {
    a as i64
}

/// PyTorch's `floor_divide`: exact where the quotient's rounding would cross a
/// whole number.
fn floor_div(a: f64, b: f64) -> f64 {
    if b == 0.0 {
        return a / b;
    }
    let left = a % b;
    let mut quotient = (a - left) / b;
    if left != 0.0 && (b < 0.0) != (left < 0.0) {
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return 0f64.copysign(a / b);
    }
    let down = quotient.floor();
    if quotient - down > 0.5 { down + 1.0 } else { down }
}

/// Wrapping; a negative power is zero but for 1 and -1.
fn pow(base: i64, power: i64) -> i64 {
    if power < 0 {
        return match base {
            1 => 1,
            -1 if power % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut square, mut left) = (1i64, base, power);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    result
}

fn in_range(by: i64) -> Option<u32> {
    u32::try_from(by).ok().filter(|by| *by < 64)
}
