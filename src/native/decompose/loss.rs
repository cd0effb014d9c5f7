//! Losses of a classifier: cross-entropy and negative log-likelihood, forward.
//!
//! Invariant: targets that are to be ignored are never looked up.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    index::gathered,
    one,
    promote::is_float,
    reductions::divisor,
    shapes::product,
    softmax::softmax_of,
    unsupported,
};

/// Numbers of the exporter for what becomes of the losses.
const NONE: i64 = 0;
const MEAN: i64 = 1;

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "cross_entropy_loss.default" => cross_entropy,
        "nll_loss_nd.default"
        | "nll_loss.default"
        | "nll_loss2d.default"
        | "nll_loss_forward.default"
        | "nll_loss2d_forward.default" => nll,
        "mse_loss.default" => |args| distance(args, true),
        "l1_loss.default" => |args| distance(args, false),
        _ => return None,
    })
}

fn cross_entropy(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let (dtype, rank) = (args.b.dtype(x), args.b.rank(x));
    if args.float("label_smoothing", 0.0)? != 0.0 {
        return unsupported("label smoothing");
    }
    let dim = if rank == 1 { 0 } else { 1 };
    let target = args.tensor("target")?;
    let log = softmax_of(args, x, dim, dtype, true)?;
    if is_float(args.b.dtype(target)) {
        return probabilities(args, log, target, dim);
    }
    Ok(likelihood(args, log, dim, dtype)?[..1].to_vec())
}

fn nll(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = if args.b.rank(x) == 1 { 0 } else { 1 };
    let dtype = args.b.dtype(x);
    likelihood(args, x, dim, dtype)
}

/// Loss and the sum of the weights, from log-probabilities and classes.
fn likelihood(args: &mut Args<'_>, log: ValueId, dim: usize, dtype: DType) -> Outputs {
    let target = args.tensor("target")?;
    let ignored = args.int("ignore_index", -100)?;
    let counts = args.b.map(Fun::Ne, Domain::Int, &[target.into(), ignored.into()], DType::Bool)?;
    let safe = args.b.map(
        Fun::Where,
        Domain::Int,
        &[counts.into(), target.into(), 0i64.into()],
        DType::I64,
    )?;
    let places = args.b.unsqueeze(safe, dim);
    let picked = gathered(args, log, dim, places)?;
    let picked = args.b.squeeze(picked, dim);
    let mut loss = args.b.f(Fun::Neg, &[picked.into()])?;
    let weight = match args.maybe_tensor("weight")? {
        None => args.b.cast(counts, args.b.inner),
        Some(weight) => {
            let each = classes(args, weight, safe)?;
            loss = args.b.f(Fun::Mul, &[loss.into(), each.into()])?;
            args.b.f(Fun::Where, &[counts.into(), each.into(), 0.0.into()])?
        }
    };
    let reduction = args.int("reduction", MEAN)?;
    let last = if reduction == NONE { dtype } else { args.b.inner };
    let operands = [counts.into(), loss.into(), 0.0.into()];
    let loss = args.b.map(Fun::Where, Domain::Float, &operands, last)?;
    let all: Vec<usize> = (0..args.b.rank(loss)).collect();
    let total = args.b.reduce(Reduction::Sum, weight, &all, args.b.inner)?;
    let value = match reduction {
        NONE => loss,
        MEAN => {
            let sum = args.b.reduce(Reduction::Sum, loss, &all, args.b.inner)?;
            args.b.map(Fun::Div, Domain::Float, &[sum.into(), total.into()], dtype)?
        }
        _ => args.b.reduce(Reduction::Sum, loss, &all, dtype)?,
    };
    // Where nothing is reduced PyTorch leaves the weights at zero.
    let total = (reduction != NONE).then(|| args.b.cast(total, dtype));
    Ok(vec![Some(value), total])
}

/// The weight of each element's class.
fn classes(args: &mut Args<'_>, weight: ValueId, target: ValueId) -> Result<ValueId, Why> {
    let shape = args.b.shape(target);
    let flat = args.b.reshape(target, vec![product(&shape)]);
    let each = gathered(args, weight, 0, flat)?;
    Ok(args.b.reshape(each, shape))
}

/// Cross-entropy against probabilities.
fn probabilities(args: &mut Args<'_>, log: ValueId, target: ValueId, dim: usize) -> Outputs {
    if args.maybe_tensor("weight")?.is_some() {
        return unsupported("weights with probabilities as targets");
    }
    let dtype = args.b.dtype(log);
    let product = args.b.f(Fun::Mul, &[log.into(), target.into()])?;
    let shape = args.b.shape(product);
    let reduction = args.int("reduction", MEAN)?;
    if reduction == NONE {
        let sum = args.b.reduce(Reduction::Sum, product, &[dim], args.b.inner)?;
        return one(args.b.map(Fun::Neg, Domain::Float, &[sum.into()], dtype)?);
    }
    let all: Vec<usize> = (0..shape.len()).collect();
    let sum = args.b.reduce(Reduction::Sum, product, &all, args.b.inner)?;
    let sum = args.b.f(Fun::Neg, &[sum.into()])?;
    let others = shape.iter().enumerate().filter(|(d, _)| *d != dim).map(|(_, size)| size);
    let count = match reduction {
        MEAN => divisor(&super::shapes::product(others)),
        _ => Number::Float(1.0),
    };
    one(args.b.map(Fun::Div, Domain::Float, &[sum.into(), count.into()], dtype)?)
}

/// Squares or sizes of differences.
fn distance(args: &mut Args<'_>, squared: bool) -> Outputs {
    let (x, y) = (args.tensor("self")?, args.tensor("target")?);
    let dtype = args.b.dtype(x);
    let reduction = args.int("reduction", MEAN)?;
    let last = if reduction == NONE { dtype } else { args.b.inner };
    let apart = args.b.f(Fun::Sub, &[x.into(), y.into()])?;
    let each = match squared {
        true => args.b.map(Fun::Mul, Domain::Float, &[apart.into(), apart.into()], last)?,
        false => args.b.map(Fun::Abs, Domain::Float, &[apart.into()], last)?,
    };
    if reduction == NONE {
        return one(each);
    }
    let shape: Vec<Size> = args.b.shape(each);
    let all: Vec<usize> = (0..shape.len()).collect();
    let sum = args.b.reduce(Reduction::Sum, each, &all, args.b.inner)?;
    let count = if reduction == MEAN { divisor(&product(&shape)) } else { Number::Float(1.0) };
    one(args.b.map(Fun::Div, Domain::Float, &[sum.into(), count.into()], dtype)?)
}
