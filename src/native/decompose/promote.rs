//! PyTorch's element types: categories and promotion.
//!
//! Invariant: the same result as `torch.result_type` for the types handled here.

use kiln_proto::graph::{Argument, DType, Graph};

use super::super::core::Number;

/// What kind of numbers a type has, from the narrowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Category {
    Bool,
    Int,
    Float,
}

/// Whether kernels can be generated for tensors of `dtype`.
pub(super) const fn is_supported(dtype: DType) -> bool {
    let whole = matches!(dtype, DType::U8 | DType::I8 | DType::I16 | DType::I32 | DType::I64);
    let float = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    whole || float || is_short(dtype) || matches!(dtype, DType::Bool)
}

/// Floats in which PyTorch stores and computes nothing.
pub(super) const fn is_short(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

pub(super) const fn category(dtype: DType) -> Category {
    match dtype {
        DType::Bool => Category::Bool,
        DType::U8 | DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U16 => Category::Int,
        _ => Category::Float,
    }
}

pub(super) const fn is_float(dtype: DType) -> bool {
    matches!(category(dtype), Category::Float)
}

/// The least and the greatest number of `dtype`; of floats the infinities.
pub(super) fn ends(dtype: DType) -> (Number, Number) {
    let (least, greatest) = match dtype {
        dtype if is_float(dtype) => {
            return (Number::Float(f64::NEG_INFINITY), Number::Float(f64::INFINITY));
        }
        DType::Bool => (0, 1),
        DType::U8 => (0, u8::MAX.into()),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    };
    (Number::Int(least), Number::Int(greatest))
}

/// The type in which PyTorch computes with floats of `dtype`, and of what it
/// makes of whole numbers where it needs floats.
pub(super) const fn float_of(dtype: DType) -> DType {
    if is_float(dtype) { dtype } else { DType::F32 }
}

/// An operand, as promotion sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// A tensor with dimensions.
    Tensor(DType),
    /// A tensor with none.
    Scalar(DType),
    /// A number in the program.
    Number(Category),
}

/// The type of an element-wise result: the highest category decides, tensors
/// with dimensions before those without, and those before numbers.
pub(super) fn promote(operands: &[Kind]) -> Option<DType> {
    let of = |wanted: fn(&Kind) -> Option<DType>| operands.iter().filter_map(wanted).reduce(two);
    let dims = of(|kind| match kind {
        Kind::Tensor(dtype) => Some(*dtype),
        _ => None,
    });
    let zero = of(|kind| match kind {
        Kind::Scalar(dtype) => Some(*dtype),
        _ => None,
    });
    let numbers = of(|kind| match kind {
        Kind::Number(Category::Float) => Some(DType::F32),
        Kind::Number(Category::Int) => Some(DType::I64),
        Kind::Number(Category::Bool) => Some(DType::Bool),
        _ => None,
    });
    combined(dims, combined(zero, numbers))
}

/// The lower takes part only if its category is the higher one.
fn combined(higher: Option<DType>, lower: Option<DType>) -> Option<DType> {
    let (Some(high), Some(low)) = (higher, lower) else { return higher.or(lower) };
    Some(if category(low) > category(high) { low } else { high })
}

/// The least type that holds the numbers of both, as PyTorch sees it.
pub(super) fn two(a: DType, b: DType) -> DType {
    match (category(a), category(b)) {
        _ if a == b => a,
        (x, y) if x < y => b,
        (x, y) if x > y => a,
        // f16 and bf16 hold numbers that the other cannot.
        (Category::Float, _) if a == DType::F64 || b == DType::F64 => DType::F64,
        (Category::Float, _) => DType::F32,
        _ if a.bytes() > b.bytes() => a,
        _ if a.bytes() < b.bytes() => b,
        _ => DType::I16,
    }
}

/// Functions whose result has the type to which their operands promote.
const PROMOTING: [&str; 27] = [
    "add",
    "sub",
    "subtract",
    "rsub",
    "mul",
    "multiply",
    "div",
    "divide",
    "true_divide",
    "floor_divide",
    "remainder",
    "fmod",
    "pow",
    "maximum",
    "minimum",
    "clamp",
    "clamp_min",
    "clamp_max",
    "clip",
    "atan2",
    "arctan2",
    "hypot",
    "xlogy",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "where",
];
/// And those whose result is a truth value.
const TESTS: [&str; 17] = [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "isnan",
    "isinf",
];

/// The element type of what the operation `op` gives of `args`, where that is another than
/// its first tensor's may be. In place it then becomes that.
pub(crate) fn in_place_type(op: &str, args: &[(String, Argument)], graph: &Graph) -> Option<DType> {
    let name = op.split('.').nth(1)?;
    if TESTS.contains(&name) {
        return Some(DType::Bool);
    }
    if !PROMOTING.contains(&name) {
        return None;
    }
    let operands =
        args.iter().filter(|(name, _)| name != "alpha").filter_map(|(_, arg)| match arg {
            Argument::Tensor(value) => {
                let ty = &graph.value(*value).ty;
                Some(if ty.shape.is_empty() {
                    Kind::Scalar(ty.dtype)
                } else {
                    Kind::Tensor(ty.dtype)
                })
            }
            Argument::Float(_) => Some(Kind::Number(Category::Float)),
            Argument::Int(_) | Argument::SymInt(_) => Some(Kind::Number(Category::Int)),
            Argument::Bool(_) => Some(Kind::Number(Category::Bool)),
            _ => None,
        });
    promote(&operands.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_is_pytorchs() {
        let (t, s, n) = (Kind::Tensor, Kind::Scalar, Kind::Number);
        let (f16, bf16, f32) = (DType::F16, DType::BF16, DType::F32);
        let f64 = DType::F64;
        let (i32, i64, bool) = (DType::I32, DType::I64, DType::Bool);
        for (operands, expected) in [
            (vec![t(f16), t(bf16)], f32),
            (vec![t(f16), s(f32)], f16),
            (vec![s(f32), n(Category::Float)], f32),
            (vec![t(bf16), n(Category::Float)], bf16),
            (vec![t(i32), s(i64)], i32),
            (vec![t(i32), t(i64)], i64),
            (vec![t(i32), n(Category::Int)], i32),
            (vec![t(i64), n(Category::Float)], f32),
            (vec![t(i64), s(f16)], f16),
            (vec![t(bool), n(Category::Int)], i64),
            (vec![t(bool), t(f16)], f16),
            (vec![s(i64), t(bf16), n(Category::Float)], bf16),
            (vec![s(bool), n(Category::Float)], f32),
            (vec![t(f16), t(f64)], f64),
            (vec![t(f32), s(f64)], f32),
            (vec![t(i64), s(f64)], f64),
            (vec![t(f64), n(Category::Float)], f64),
        ] {
            assert_eq!(promote(&operands), Some(expected), "{operands:?}");
        }
        assert_eq!(promote(&[]), None);
    }
}
