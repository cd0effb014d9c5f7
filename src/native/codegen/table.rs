//! The table from functions to source text.
//!
//! Invariant: an expression has the type of its domain (`float`, `double`,
//! `kiln_int`, `bool`); rounding to shorter types happens by name only.

use kiln_proto::graph::DType;

use crate::{
    core::{Fun, Reduction},
    loops::Domain,
};

/// What `fun` computes in `domain` from the expressions in `x`.
pub(super) fn apply(fun: Fun, domain: Domain, x: &[String]) -> String {
    let [a, b, c] = [0, 1, 2].map(|i| x.get(i).map_or("", String::as_str));
    let call = |name: &str| format!("{name}({})", x.join(", "));
    let float = domain.is_float();
    // C has each of these for `double`, and with an f behind its name for `float`.
    let math = |name: &str| match domain {
        Domain::Double => call(name),
        _ => call(&format!("{name}f")),
    };
    match fun {
        Fun::Id => a.to_owned(),
        Fun::Neg => format!("-{a}"),
        Fun::Abs if float => math("fabs"),
        Fun::Abs => call("kiln_abs"),
        Fun::Sign => call("kiln_sign"),
        Fun::Floor | Fun::Ceil | Fun::Trunc | Fun::Round if !float => a.to_owned(),
        Fun::Floor => math("floor"),
        Fun::Ceil => math("ceil"),
        Fun::Trunc => math("trunc"),
        Fun::Round => math("rint"),
        Fun::Sqrt => math("sqrt"),
        Fun::Rsqrt => math("rsqrt"),
        Fun::Reciprocal => format!("{} / {a}", literal(domain, 1.0)),
        Fun::Exp => math("exp"),
        Fun::Exp2 => math("exp2"),
        Fun::Expm1 => math("expm1"),
        Fun::Log => math("log"),
        Fun::Log2 => math("log2"),
        Fun::Log10 => math("log10"),
        Fun::Log1p => math("log1p"),
        Fun::Sin => math("sin"),
        Fun::Cos => math("cos"),
        Fun::Tan => math("tan"),
        Fun::Asin => math("asin"),
        Fun::Acos => math("acos"),
        Fun::Atan => math("atan"),
        Fun::Sinh => math("sinh"),
        Fun::Cosh => math("cosh"),
        Fun::Tanh => math("tanh"),
        Fun::Asinh => math("asinh"),
        Fun::Acosh => math("acosh"),
        Fun::Atanh => math("atanh"),
        Fun::Erf => math("erf"),
        Fun::Sigmoid => call("kiln_sigmoid"),
        Fun::Not if domain == Domain::Bool => format!("!{a}"),
        Fun::Not => format!("{a} == 0"),
        Fun::BitNot if domain == Domain::Bool => format!("!{a}"),
        Fun::BitNot => format!("~{a}"),
        Fun::IsNan => format!("{a} != {a}"),
        Fun::IsInf if float => format!("{} == {}", math("fabs"), literal(domain, f64::INFINITY)),
        Fun::IsInf => "false".to_owned(),
        Fun::Add if domain == Domain::Bool => format!("{a} || {b}"),
        Fun::Mul if domain == Domain::Bool => format!("{a} && {b}"),
        Fun::Add => format!("{a} + {b}"),
        Fun::Sub => format!("{a} - {b}"),
        Fun::Mul => format!("{a} * {b}"),
        Fun::Div => format!("{a} / {b}"),
        Fun::FloorDiv => call("kiln_floor_div"),
        Fun::TruncDiv => call("kiln_trunc_div"),
        Fun::Remainder => call("kiln_remainder"),
        Fun::Fmod => call("kiln_fmod"),
        Fun::Pow if float => math("pow"),
        Fun::Pow => call("kiln_pow"),
        Fun::Atan2 => math("atan2"),
        Fun::Min => call("kiln_min"),
        Fun::Max => call("kiln_max"),
        Fun::And if domain == Domain::Bool => format!("{a} && {b}"),
        Fun::Or if domain == Domain::Bool => format!("{a} || {b}"),
        Fun::Xor if domain == Domain::Bool => format!("{a} != {b}"),
        Fun::And => format!("{a} & {b}"),
        Fun::Or => format!("{a} | {b}"),
        Fun::Xor => format!("{a} ^ {b}"),
        Fun::Shl => call("kiln_shl"),
        Fun::Shr => call("kiln_shr"),
        Fun::Eq => format!("{a} == {b}"),
        Fun::Ne => format!("{a} != {b}"),
        Fun::Lt => format!("{a} < {b}"),
        Fun::Le => format!("{a} <= {b}"),
        Fun::Gt => format!("{a} > {b}"),
        Fun::Ge => format!("{a} >= {b}"),
        Fun::Where => format!("{a} ? {b} : {c}"),
    }
}

/// `x`, of domain `from`, in `to`: as a cast does.
pub(super) fn convert(from: Domain, to: Domain, x: &str) -> String {
    match (from, to) {
        (Domain::Float | Domain::Double, Domain::Int) => format!("kiln_to_int({x})"),
        (Domain::Int | Domain::Double, Domain::Float) => format!("(float){x}"),
        (Domain::Int | Domain::Float, Domain::Double) => format!("(double){x}"),
        (Domain::Bool, Domain::Float) => format!("({x} ? 1.0f : 0.0f)"),
        (Domain::Bool, Domain::Double) => format!("({x} ? 1.0 : 0.0)"),
        (Domain::Bool, Domain::Int) => format!("(kiln_int){x}"),
        (_, Domain::Bool) => format!("({x} != 0)"),
        _ => x.to_owned(),
    }
}

/// `x` as an element of `dtype` holds it.
pub(super) fn round(dtype: DType, x: &str) -> String {
    format!("kiln_round<{}>({x})", element(dtype))
}

/// The function object that combines two numbers.
pub(super) fn combiner(how: Reduction) -> &'static str {
    match how {
        Reduction::Sum => "kiln_add",
        Reduction::Prod => "kiln_mul",
        Reduction::Max => "kiln_greatest",
        Reduction::Min => "kiln_least",
        Reduction::Any => "kiln_any",
        Reduction::All => "kiln_all",
        Reduction::ArgMax => "kiln_first_greatest",
        Reduction::ArgMin => "kiln_first_least",
    }
}

/// What a reduction starts with.
pub(super) fn start(how: Reduction, domain: Domain) -> String {
    let of = |float: f64, int: &str| match domain {
        Domain::Float | Domain::Double => literal(domain, float),
        Domain::Int => int.to_owned(),
        Domain::Bool => (float > 0.0).to_string(),
    };
    match how {
        Reduction::Sum => of(0.0, "0"),
        Reduction::Prod => of(1.0, "1"),
        Reduction::Max | Reduction::ArgMax => match domain {
            Domain::Bool => "false".to_owned(),
            _ => of(f64::NEG_INFINITY, "KILN_INT_MIN"),
        },
        Reduction::Min | Reduction::ArgMin => match domain {
            Domain::Bool => "true".to_owned(),
            _ => of(f64::INFINITY, "KILN_INT_MAX"),
        },
        Reduction::Any => "false".to_owned(),
        Reduction::All => "true".to_owned(),
    }
}

/// The type of a number in a register.
pub(super) fn register(domain: Domain) -> &'static str {
    match domain {
        Domain::Float => "float",
        Domain::Double => "double",
        Domain::Int => "kiln_int",
        Domain::Bool => "bool",
    }
}

/// The type of an element in memory.
pub(super) fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "kiln_f64",
        DType::F8E4M3 => "kiln_f8e4m3",
        DType::F8E5M2 => "kiln_f8e5m2",
        DType::F16 => "kiln_f16",
        DType::BF16 => "kiln_bf16",
        DType::I8 => "kiln_i8",
        DType::U8 => "kiln_u8",
        DType::I16 => "kiln_i16",
        DType::U16 => "kiln_u16",
        DType::I32 => "kiln_i32",
        DType::I64 => "kiln_i64",
        DType::Bool => "kiln_bool",
        // `decompose` lets nothing else through.
        _ => "kiln_f32",
    }
}

/// A number as a literal of the same `float`, or `double`.
pub(super) fn literal(domain: Domain, number: f64) -> String {
    if domain == Domain::Double {
        return match number.is_finite() {
            true => format!("({number:?})"),
            false => format!("__longlong_as_double(0x{:016x}ll)", number.to_bits()),
        };
    }
    let number = number as f32;
    if number.is_finite() {
        format!("({number:?}f)")
    } else {
        format!("__uint_as_float(0x{:08x}u)", number.to_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_floats_that_read_back() {
        assert_eq!(literal(Domain::Float, 1e-6), "(1e-6f)");
        assert_eq!(literal(Domain::Float, 2.0), "(2.0f)");
        assert_eq!(literal(Domain::Float, -0.1), "(-0.1f)");
        assert_eq!(literal(Domain::Float, f64::NEG_INFINITY), "__uint_as_float(0xff800000u)");
        assert_eq!(literal(Domain::Float, 1e300), "__uint_as_float(0x7f800000u)");
        let double = |number| literal(Domain::Double, number);
        assert_eq!(double(0.1), "(0.1)");
        assert_eq!(double(1e300), "(1e300)");
        assert_eq!(double(f64::NEG_INFINITY), "__longlong_as_double(0xfff0000000000000ll)");
    }
}
