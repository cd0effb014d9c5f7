//! Floats of 8 bits: what moves them, and their products with scales.
//!
//! Invariant: a sum of products is kept in `f32`, scaled, added to, and rounded once.

use kiln_proto::graph::DType;

use super::{
    super::core::{Domain, Fun, ValueId},
    Args, Outputs, Rule, Why, casts, creation, index, joins, one, parts,
    products::matmul,
    promote::is_short,
    shapes::{product, show},
    unsupported, views,
};

/// Elements that are moved by a choice.
const CHOICES: [&str; 8] = [
    "where.self",
    "masked_fill.Scalar",
    "index_put.default",
    "index_copy.default",
    "scatter.src",
    "scatter.value",
    "slice_scatter.default",
    "select_scatter.default",
];

pub(super) fn rule(name: &str) -> Option<Rule> {
    (name == "_scaled_mm.default").then_some(scaled_product as Rule)
}

/// Whether the operation of that name may have 8-bit floats: it casts them, moves them, or is a
/// product with scales.
pub(super) fn moves(name: &str) -> bool {
    let families =
        [casts::rule, views::rule, parts::rule, joins::rule, index::rule, creation::rule];
    rule(name).is_some()
        || CHOICES.contains(&name)
        || families.iter().any(|family| family(name).is_some())
}

/// `(scale_a * self) @ (scale_b * mat2) + bias`, one scale for all or one for each row of
/// `self` and each column of `mat2`.
fn scaled_product(args: &mut Args<'_>) -> Outputs {
    let (mut a, mut b) = (args.tensor("self")?, args.tensor("mat2")?);
    let (dtype, _) = args.declared(0)?;
    let (left, right) = (args.b.shape(a), args.b.shape(b));
    if ![a, b].iter().all(|x| is_short(args.b.dtype(*x))) || left.len() != 2 || right.len() != 2 {
        return Err(Why::Wrong(format!(
            "a scaled product of {} and {}",
            show(&left),
            show(&right)
        )));
    }
    if is_short(dtype) {
        // How it is scaled again differs between devices and versions.
        return unsupported(format!(
            "a scaled product that gives {dtype}: what it is depends on the device"
        ));
    }
    if args.b.dtype(a) != args.b.dtype(b) {
        // Halves have all numbers of both.
        (a, b) = (args.b.cast(a, DType::F16), args.b.cast(b, DType::F16));
    }
    let mut value = matmul(args.b, a, b, DType::F32)?;
    for (name, dim) in [("scale_a", 0), ("scale_b", 1)] {
        let scale = scale(args, name, value, dim)?;
        value = args.b.f(Fun::Mul, &[value.into(), scale.into()])?;
    }
    let bias = args.maybe_tensor("bias")?;
    one(match bias {
        None => args.b.cast(value, dtype),
        Some(bias) => args.b.map(Fun::Add, Domain::Float, &[value.into(), bias.into()], dtype)?,
    })
}

/// The scales `name`: a number, or one for each position along `dim` of `value`.
fn scale(args: &mut Args<'_>, name: &str, value: ValueId, dim: usize) -> Result<ValueId, Why> {
    let scale = args.tensor(name)?;
    let (shape, all) = (args.b.shape(scale), args.b.shape(value));
    if args.b.dtype(scale) != DType::F32 {
        return unsupported(format!("scales of {}", args.b.dtype(scale)));
    }
    if product(&shape).is(1) {
        return Ok(args.b.reshape(scale, Vec::new()));
    }
    let mut each = vec![1.into(); 2];
    each[dim] = all[dim].clone();
    match args.b.same_shape(&shape, &each) {
        true => Ok(scale),
        false => unsupported(format!("scales {} of a product {}", show(&shape), show(&all))),
    }
}
