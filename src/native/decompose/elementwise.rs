//! Functions of each element: arithmetic, comparison, logic.
//!
//! Invariant: operands are brought to the promoted type before they are
//! combined, and a comparison sees numbers as that type holds them.

use half::{bf16, f16};
use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number},
        float8::Float8,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, domain},
    one,
    promote::{Category, category, float_of, is_float, promote},
    unsupported,
};

/// What becomes of the element type.
#[derive(Clone, Copy, PartialEq)]
enum Gives {
    /// The operand's type; whole numbers become `f32`.
    Float,
    /// The operand's type.
    Same,
    /// Truth values.
    Bool,
}

/// Functions of one tensor.
const UNARY: &[(&str, Fun, Gives)] = &[
    ("neg", Fun::Neg, Gives::Same),
    ("abs", Fun::Abs, Gives::Same),
    ("sign", Fun::Sign, Gives::Same),
    ("sgn", Fun::Sign, Gives::Same),
    ("floor", Fun::Floor, Gives::Same),
    ("ceil", Fun::Ceil, Gives::Same),
    ("trunc", Fun::Trunc, Gives::Same),
    ("fix", Fun::Trunc, Gives::Same),
    ("round", Fun::Round, Gives::Same),
    ("positive", Fun::Id, Gives::Same),
    ("sqrt", Fun::Sqrt, Gives::Float),
    ("rsqrt", Fun::Rsqrt, Gives::Float),
    ("reciprocal", Fun::Reciprocal, Gives::Float),
    ("exp", Fun::Exp, Gives::Float),
    ("exp2", Fun::Exp2, Gives::Float),
    ("special_exp2", Fun::Exp2, Gives::Float),
    ("expm1", Fun::Expm1, Gives::Float),
    ("log", Fun::Log, Gives::Float),
    ("log2", Fun::Log2, Gives::Float),
    ("log10", Fun::Log10, Gives::Float),
    ("log1p", Fun::Log1p, Gives::Float),
    ("sin", Fun::Sin, Gives::Float),
    ("cos", Fun::Cos, Gives::Float),
    ("tan", Fun::Tan, Gives::Float),
    ("asin", Fun::Asin, Gives::Float),
    ("acos", Fun::Acos, Gives::Float),
    ("atan", Fun::Atan, Gives::Float),
    ("sinh", Fun::Sinh, Gives::Float),
    ("cosh", Fun::Cosh, Gives::Float),
    ("tanh", Fun::Tanh, Gives::Float),
    ("asinh", Fun::Asinh, Gives::Float),
    ("acosh", Fun::Acosh, Gives::Float),
    ("atanh", Fun::Atanh, Gives::Float),
    ("erf", Fun::Erf, Gives::Float),
    ("special_erf", Fun::Erf, Gives::Float),
    ("sigmoid", Fun::Sigmoid, Gives::Float),
    ("special_expit", Fun::Sigmoid, Gives::Float),
    ("logical_not", Fun::Not, Gives::Bool),
    ("isnan", Fun::IsNan, Gives::Bool),
    ("isinf", Fun::IsInf, Gives::Bool),
    ("bitwise_not", Fun::BitNot, Gives::Same),
];

/// Functions of two operands in the type that both promote to.
const BINARY: &[(&str, Fun, Gives)] = &[
    ("mul", Fun::Mul, Gives::Same),
    ("multiply", Fun::Mul, Gives::Same),
    ("true_divide", Fun::Div, Gives::Float),
    ("floor_divide", Fun::FloorDiv, Gives::Same),
    ("remainder", Fun::Remainder, Gives::Same),
    ("fmod", Fun::Fmod, Gives::Same),
    ("maximum", Fun::Max, Gives::Same),
    ("minimum", Fun::Min, Gives::Same),
    ("max.other", Fun::Max, Gives::Same),
    ("min.other", Fun::Min, Gives::Same),
    ("atan2", Fun::Atan2, Gives::Float),
    ("arctan2", Fun::Atan2, Gives::Float),
    ("bitwise_and", Fun::And, Gives::Same),
    ("bitwise_or", Fun::Or, Gives::Same),
    ("bitwise_xor", Fun::Xor, Gives::Same),
    ("__and__", Fun::And, Gives::Same),
    ("__or__", Fun::Or, Gives::Same),
    ("__xor__", Fun::Xor, Gives::Same),
    ("bitwise_left_shift", Fun::Shl, Gives::Same),
    ("bitwise_right_shift", Fun::Shr, Gives::Same),
    ("__lshift__", Fun::Shl, Gives::Same),
    ("__rshift__", Fun::Shr, Gives::Same),
    ("eq", Fun::Eq, Gives::Bool),
    ("ne", Fun::Ne, Gives::Bool),
    ("not_equal", Fun::Ne, Gives::Bool),
    ("lt", Fun::Lt, Gives::Bool),
    ("less", Fun::Lt, Gives::Bool),
    ("le", Fun::Le, Gives::Bool),
    ("less_equal", Fun::Le, Gives::Bool),
    ("gt", Fun::Gt, Gives::Bool),
    ("greater", Fun::Gt, Gives::Bool),
    ("ge", Fun::Ge, Gives::Bool),
    ("greater_equal", Fun::Ge, Gives::Bool),
];

/// Logic on whether operands are zero.
const LOGICAL: &[(&str, Fun)] =
    &[("logical_and", Fun::And), ("logical_or", Fun::Or), ("logical_xor", Fun::Xor)];

pub(super) fn rule(name: &str) -> Option<Rule> {
    let (base, overload) = name.split_once('.')?;
    let plain = overload == "default";
    if plain && UNARY.iter().any(|(known, ..)| *known == base) {
        return Some(unary);
    }
    if plain && LOGICAL.iter().any(|(known, _)| *known == base) {
        return Some(logical);
    }
    let is_operands =
        matches!(overload, "default" | "Tensor" | "Scalar" | "Scalar_Tensor" | "Tensor_Scalar");
    let is_binary =
        |(known, ..): &(&str, Fun, Gives)| *known == base && is_operands || *known == name;
    if BINARY.iter().any(is_binary) {
        return Some(binary);
    }
    Some(match name {
        "add.Tensor" | "add.Scalar" => |args| sum(args, Fun::Add),
        "sub.Tensor" | "sub.Scalar" | "subtract.Tensor" => |args| sum(args, Fun::Sub),
        "rsub.Tensor" | "rsub.Scalar" => reverse_sub,
        "div.Tensor" | "div.Scalar" | "div.Tensor_mode" | "div.Scalar_mode" | "divide.Tensor" => {
            divide
        }
        "pow.Tensor_Scalar" | "pow.Tensor_Tensor" | "pow.Scalar" | "float_power.Tensor_Scalar" => {
            power
        }
        "square.default" => square,
        _ => return None,
    })
}

fn base<'a>(args: &Args<'a>) -> &'a str {
    let name = args.node.op.strip_prefix("aten.").unwrap_or(&args.node.op);
    name.split_once('.').map_or(name, |(base, _)| base)
}

fn unary(args: &mut Args<'_>) -> Outputs {
    let name = base(args);
    let (_, fun, gives) = UNARY.iter().find(|(known, ..)| *known == name).ok_or("unknown")?;
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    if *fun == Fun::Round && args.int("decimals", 0)? != 0 {
        return unsupported("rounding to decimals");
    }
    one(match gives {
        Gives::Float => args.b.map(*fun, Domain::Float, &[x.into()], float_of(dtype))?,
        Gives::Bool if *fun == Fun::Not => {
            args.b.map(*fun, Domain::Bool, &[x.into()], DType::Bool)?
        }
        Gives::Bool => args.b.map(*fun, domain(dtype), &[x.into()], DType::Bool)?,
        Gives::Same if *fun == Fun::Id => x,
        Gives::Same => {
            let whole = matches!(fun, Fun::Floor | Fun::Ceil | Fun::Trunc | Fun::Round);
            if whole && !is_float(dtype) {
                return one(x);
            }
            let domain = if dtype == DType::Bool { Domain::Bool } else { domain(dtype) };
            args.b.map(*fun, domain, &[x.into()], dtype)?
        }
    })
}

/// Both operands in the type that they promote to, and that type.
pub(super) fn promoted(args: &mut Args<'_>, operands: Vec<Arg>) -> Result<(Vec<Arg>, DType), Why> {
    let kinds: Vec<_> = operands.iter().map(|arg| args.kind(arg)).collect();
    let dtype = promote(&kinds).ok_or("nothing to promote")?;
    Ok((operands.into_iter().map(|arg| args.in_type(arg, dtype)).collect(), dtype))
}

pub(super) fn pair(args: &mut Args<'_>, right: &str) -> Result<(Vec<Arg>, DType), Why> {
    let operands = vec![args.operand("self")?, args.operand(right)?];
    promoted(args, operands)
}

fn binary(args: &mut Args<'_>) -> Outputs {
    let name = base(args);
    let full = args.node.op.strip_prefix("aten.").unwrap_or_default();
    let found = BINARY.iter().find(|(known, ..)| *known == name || *known == full);
    let (_, fun, gives) = *found.ok_or("unknown")?;
    let (operands, dtype) = pair(args, "other")?;
    one(match gives {
        Gives::Float => args.b.map(fun, Domain::Float, &operands, float_of(dtype))?,
        Gives::Bool => {
            let operands: Vec<Arg> = operands.into_iter().map(|arg| held(arg, dtype)).collect();
            args.b.map(fun, domain(dtype), &operands, DType::Bool)?
        }
        Gives::Same => {
            let bits = matches!(fun, Fun::And | Fun::Or | Fun::Xor);
            let bits = if bits && dtype == DType::Bool { Domain::Bool } else { domain(dtype) };
            args.b.map(fun, bits, &operands, dtype)?
        }
    })
}

/// A number as a tensor of `dtype` would hold it.
pub(super) fn held(arg: Arg, dtype: DType) -> Arg {
    match arg {
        Arg::Number(number) => Arg::Number(stored(number, dtype)),
        tensor @ Arg::Tensor(_) => tensor,
    }
}

/// A number as a tensor of `dtype` would hold it.
pub(crate) fn stored(number: Number, dtype: DType) -> Number {
    match (number, category(dtype)) {
        (Number::Float(x), Category::Float) => Number::Float(match dtype {
            DType::F16 => f16::from_f64(x).to_f64(),
            DType::BF16 => bf16::from_f64(x).to_f64(),
            DType::F32 => f64::from(x as f32),
            _ => Float8::of(dtype).map_or(x, |short| short.round(x)),
        }),
        (Number::Float(x), Category::Int) => Number::Int(x as i64),
        (Number::Float(x), Category::Bool) => Number::Bool(x != 0.0),
        (Number::Bool(switch), Category::Int) => Number::Int(i64::from(switch)),
        (Number::Int(x), Category::Bool) => Number::Bool(x != 0),
        (number, _) => number,
    }
}

fn logical(args: &mut Args<'_>) -> Outputs {
    let name = base(args);
    let (_, fun) = LOGICAL.iter().find(|(known, _)| *known == name).ok_or("unknown")?;
    let operands = [args.operand("self")?, args.operand("other")?];
    one(args.b.map(*fun, Domain::Bool, &operands, DType::Bool)?)
}

/// `self ± alpha * other`
fn sum(args: &mut Args<'_>, fun: Fun) -> Outputs {
    let operands = vec![args.operand("self")?, args.operand("other")?];
    scaled_sum(args, fun, operands)
}

fn reverse_sub(args: &mut Args<'_>) -> Outputs {
    let operands = vec![args.operand("other")?, args.operand("self")?];
    let alpha = args.maybe_number("alpha")?;
    if alpha.is_some_and(|alpha| alpha != Number::Int(1)) {
        return unsupported("a factor of the subtracted");
    }
    scaled_sum(args, Fun::Sub, operands)
}

fn scaled_sum(args: &mut Args<'_>, fun: Fun, operands: Vec<Arg>) -> Outputs {
    let (mut operands, dtype) = promoted(args, operands)?;
    let alpha = args.maybe_number("alpha")?.unwrap_or(Number::Int(1));
    if !matches!(alpha, Number::Int(1)) && alpha != Number::Float(1.0) {
        // Within one operation floats are kept in f32.
        let inner = if is_float(dtype) { args.b.inner } else { dtype };
        let other = operands.remove(1);
        operands.push(args.b.map(Fun::Mul, domain(dtype), &[other, alpha.into()], inner)?.into());
    }
    one(args.b.map(fun, domain(dtype), &operands, dtype)?)
}

fn divide(args: &mut Args<'_>) -> Outputs {
    let (operands, dtype) = pair(args, "other")?;
    let fun = match args.text("rounding_mode", "")? {
        "floor" => Fun::FloorDiv,
        "trunc" => Fun::TruncDiv,
        _ => return one(args.b.map(Fun::Div, Domain::Float, &operands, float_of(dtype))?),
    };
    one(args.b.map(fun, domain(dtype), &operands, dtype)?)
}

/// Small powers as PyTorch has them: by multiplication and roots.
fn power(args: &mut Args<'_>) -> Outputs {
    let (operands, dtype) = pair(args, "exponent")?;
    let floats = is_float(dtype);
    let domain = domain(dtype);
    let exponent = match &operands[1] {
        Arg::Number(Number::Float(exponent)) => Some(*exponent),
        Arg::Number(Number::Int(exponent)) => Some(*exponent as f64),
        _ => None,
    };
    let base = operands[0].clone();
    let square = [base.clone(), base.clone()];
    let inner = if floats { args.b.inner } else { dtype };
    one(match exponent {
        Some(2.0) => args.b.map(Fun::Mul, domain, &square, dtype)?,
        Some(3.0) => {
            let squared = args.b.map(Fun::Mul, domain, &square, inner)?;
            args.b.map(Fun::Mul, domain, &[squared.into(), base], dtype)?
        }
        Some(1.0) => args.b.map(Fun::Id, domain, &[base], dtype)?,
        Some(0.5) if floats => args.b.map(Fun::Sqrt, domain, &[base], dtype)?,
        Some(-0.5) if floats => args.b.map(Fun::Rsqrt, domain, &[base], dtype)?,
        Some(-1.0) if floats => args.b.map(Fun::Reciprocal, domain, &[base], dtype)?,
        Some(-2.0) if floats => {
            let squared = args.b.f(Fun::Mul, &square)?;
            args.b.map(Fun::Reciprocal, domain, &[squared.into()], dtype)?
        }
        _ => args.b.map(Fun::Pow, domain, &operands, dtype)?,
    })
}

fn square(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    let dtype = if dtype == DType::Bool { DType::I64 } else { dtype };
    one(args.b.map(Fun::Mul, domain(dtype), &[x.into(), x.into()], dtype)?)
}
