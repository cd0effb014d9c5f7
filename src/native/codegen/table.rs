//! The table from functions to source text.
//!
//! Invariant: an expression has the type of its domain (`float`, `kiln_int`,
//! `bool`); rounding to shorter types happens by name only.

use kiln_proto::graph::DType;

use crate::core::{Domain, Fun, Reduction};

/// What `fun` computes in `domain` from the expressions in `x`.
pub(super) fn apply(fun: Fun, domain: Domain, x: &[String]) -> String {
    let [a, b, c] = [0, 1, 2].map(|i| x.get(i).map_or("", String::as_str));
    let call = |name: &str| format!("{name}({})", x.join(", "));
    let float = domain == Domain::Float;
    match fun {
        Fun::Id => a.to_owned(),
        Fun::Neg => format!("-{a}"),
        Fun::Abs if float => call("fabsf"),
        Fun::Abs => call("kiln_abs"),
        Fun::Sign => call("kiln_sign"),
        Fun::Floor | Fun::Ceil | Fun::Trunc | Fun::Round if !float => a.to_owned(),
        Fun::Floor => call("floorf"),
        Fun::Ceil => call("ceilf"),
        Fun::Trunc => call("truncf"),
        Fun::Round => call("rintf"),
        Fun::Sqrt => call("sqrtf"),
        Fun::Rsqrt => call("rsqrtf"),
        Fun::Reciprocal => format!("1.0f / {a}"),
        Fun::Exp => call("expf"),
        Fun::Exp2 => call("exp2f"),
        Fun::Expm1 => call("expm1f"),
        Fun::Log => call("logf"),
        Fun::Log2 => call("log2f"),
        Fun::Log10 => call("log10f"),
        Fun::Log1p => call("log1pf"),
        Fun::Sin => call("sinf"),
        Fun::Cos => call("cosf"),
        Fun::Tan => call("tanf"),
        Fun::Asin => call("asinf"),
        Fun::Acos => call("acosf"),
        Fun::Atan => call("atanf"),
        Fun::Sinh => call("sinhf"),
        Fun::Cosh => call("coshf"),
        Fun::Tanh => call("tanhf"),
        Fun::Asinh => call("asinhf"),
        Fun::Acosh => call("acoshf"),
        Fun::Atanh => call("atanhf"),
        Fun::Erf => call("erff"),
        Fun::Sigmoid => call("kiln_sigmoid"),
        Fun::Not if domain == Domain::Bool => format!("!{a}"),
        Fun::Not => format!("{a} == 0"),
        Fun::BitNot if domain == Domain::Bool => format!("!{a}"),
        Fun::BitNot => format!("~{a}"),
        Fun::IsNan => format!("{a} != {a}"),
        Fun::IsInf if float => format!("fabsf({a}) == {}", literal(f64::INFINITY)),
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
        Fun::Pow if float => call("powf"),
        Fun::Pow => call("kiln_pow"),
        Fun::Atan2 => call("atan2f"),
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
        (Domain::Float, Domain::Int) => format!("kiln_to_int({x})"),
        (Domain::Int, Domain::Float) => format!("(float){x}"),
        (Domain::Bool, Domain::Float) => format!("({x} ? 1.0f : 0.0f)"),
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
        Domain::Float => literal(float),
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
        Domain::Int => "kiln_int",
        Domain::Bool => "bool",
    }
}

/// The type of an element in memory.
pub(super) fn element(dtype: DType) -> &'static str {
    match dtype {
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

/// A number as a literal of the same `float`.
pub(super) fn literal(number: f64) -> String {
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
        assert_eq!(literal(1e-6), "(1e-6f)");
        assert_eq!(literal(2.0), "(2.0f)");
        assert_eq!(literal(-0.1), "(-0.1f)");
        assert_eq!(literal(f64::NEG_INFINITY), "__uint_as_float(0xff800000u)");
        assert_eq!(literal(1e300), "__uint_as_float(0x7f800000u)");
    }
}
