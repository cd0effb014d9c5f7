//! The table from operations to source text.
//!
//! Invariant: an expression has one value per element, a `float`; only a cast
//! rounds to a shorter type, besides stores.

use kiln_proto::graph::DType;

use crate::prim::Scalar;

/// What `scalar` computes from the expressions in `x`.
pub(super) fn expression(scalar: Scalar, x: &[String], dtype: DType) -> String {
    let [a, b] = [0, 1].map(|i| x.get(i).map_or("", String::as_str));
    match scalar {
        Scalar::Add => format!("{a} + {b}"),
        Scalar::Sub => format!("{a} - {b}"),
        Scalar::Mul => format!("{a} * {b}"),
        Scalar::Div => format!("{a} / {b}"),
        Scalar::Pow => format!("powf({a}, {b})"),
        Scalar::Neg => format!("-{a}"),
        Scalar::Exp => format!("expf({a})"),
        Scalar::Sqrt => format!("sqrtf({a})"),
        Scalar::Rsqrt => format!("rsqrtf({a})"),
        Scalar::Sigmoid => format!("kiln_sigmoid({a})"),
        Scalar::Silu => format!("kiln_silu({a})"),
        Scalar::Reciprocal => format!("1.0f / {a}"),
        Scalar::Cast if dtype == DType::F32 => a.to_owned(),
        Scalar::Cast => format!("kiln_round<{}>({a})", element(dtype)),
        Scalar::Copy => a.to_owned(),
    }
}

/// The type of an element in memory.
pub(super) fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "kiln_f16",
        DType::BF16 => "kiln_bf16",
        // `infer` lets nothing else through.
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
