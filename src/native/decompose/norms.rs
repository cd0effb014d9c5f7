//! Normalisation: by the mean and variance of a row, a group or a channel.
//!
//! Invariant: all of it in the inner type, rounded once.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Arg,
    one,
    promote::is_float,
    reductions::{count, divisor},
    shapes::{product, show},
    statistics::moments,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "layer_norm.default" | "native_layer_norm.default" => layer_norm,
        "rms_norm.default" | "_fused_rms_norm.default" => rms_norm,
        "group_norm.default" => group_norm,
        "native_group_norm.default" => group_norm,
        "batch_norm.default"
        | "_native_batch_norm_legit_no_training.default"
        | "native_batch_norm.default"
        | "_native_batch_norm_legit.default" => batch_norm,
        "instance_norm.default" => instance_norm,
        "_native_batch_norm_legit.no_stats" => norm_of_batch,
        "_native_batch_norm_legit_functional.default" => |args| trained(args, 3),
        "_batch_norm_with_update.default" | "_batch_norm_with_update_functional.default" => {
            |args| trained(args, 4)
        }
        "_batch_norm_no_update.default" => batch_norm,
        "_weight_norm.default" | "_weight_norm_interface.default" => weight_norm,
        _ => return None,
    })
}

/// The last dimensions of `x`, which have the shape that is normalised over.
fn rows(args: &Args<'_>, x: ValueId) -> Result<Vec<usize>, Why> {
    let (shape, over) = (args.b.shape(x), args.shape("normalized_shape")?);
    let first = shape.len().checked_sub(over.len()).ok_or("more dimensions than the tensor has")?;
    if !args.b.same_shape(&shape[first..], &over) {
        let wrong = format!("{} normalised over {}", show(&shape), show(&over));
        return Err(Why::Wrong(wrong));
    }
    Ok((first..shape.len()).collect())
}

/// `(x * weight) + bias` as far as they are there, as `dtype`.
fn affine(
    args: &mut Args<'_>,
    x: ValueId,
    weight: Option<Arg>,
    bias: Option<Arg>,
    dtype: DType,
) -> Result<ValueId, Why> {
    let steps: Vec<(Fun, Arg)> = weight
        .map(|weight| (Fun::Mul, weight))
        .into_iter()
        .chain(bias.map(|bias| (Fun::Add, bias)))
        .collect();
    let (mut value, last) = (x, steps.len());
    for (i, (fun, operand)) in steps.into_iter().enumerate() {
        let dtype = if i + 1 == last { dtype } else { args.b.inner };
        value = args.b.map(fun, Domain::Float, &[value.into(), operand], dtype)?;
    }
    Ok(args.b.cast(value, dtype))
}

/// One over the root of the spread over `count` elements.
fn scale_of(args: &mut Args<'_>, spread: ValueId, count: &Size, eps: f64) -> Result<ValueId, Why> {
    let mean = args.b.f(Fun::Div, &[spread.into(), divisor(count).into()])?;
    let sum = args.b.f(Fun::Add, &[mean.into(), eps.into()])?;
    Ok(args.b.f(Fun::Rsqrt, &[sum.into()])?)
}

/// Normalised, mean and scale; the latter as declared, where they are outputs.
fn outputs(args: &mut Args<'_>, value: ValueId, others: [ValueId; 2]) -> Outputs {
    let mut all = vec![Some(value)];
    for (i, other) in others.into_iter().enumerate() {
        if args.node.outputs.len() <= i + 1 {
            break;
        }
        let (dtype, shape) = args.declared(i + 1)?;
        let fits = args.b.same(&product(&args.b.shape(other)), &product(&shape));
        let other = args.b.cast(other, dtype);
        all.push(fits.then(|| args.b.reshape(other, shape)));
    }
    Ok(all)
}

fn layer_norm(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("input")?;
    let dtype = args.b.dtype(x);
    let dims = rows(args, x)?;
    let eps = args.float("eps", 1e-5)?;
    let (mean, apart, spread) = moments(args.b, x, &dims)?;
    let n = count(args.b, x, &dims);
    let scale = scale_of(args, spread, &n, eps)?;
    let normal = args.b.f(Fun::Mul, &[apart.into(), scale.into()])?;
    let weight = args.maybe_tensor("weight")?.map(Arg::from);
    let bias = args.maybe_tensor("bias")?.map(Arg::from);
    let value = affine(args, normal, weight, bias, dtype)?;
    outputs(args, value, [mean, scale])
}

fn rms_norm(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("input")?;
    let dtype = args.b.dtype(x);
    let dims = rows(args, x)?;
    let least = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let eps = args.float("eps", least)?;
    let squared = args.b.f(Fun::Mul, &[x.into(), x.into()])?;
    let sum = args.b.reduce_keep(Reduction::Sum, squared, &dims, args.b.inner)?;
    let n = count(args.b, x, &dims);
    let scale = scale_of(args, sum, &n, eps)?;
    let normal = args.b.f(Fun::Mul, &[x.into(), scale.into()])?;
    let weight = args.maybe_tensor("weight")?.map(Arg::from);
    let value = affine(args, normal, weight, None, dtype)?;
    outputs(args, value, [scale, scale])
}

/// A tensor of one number for each channel against one with `rank` dimensions.
fn by_channel(args: &mut Args<'_>, name: &str, rank: usize) -> Result<Option<Arg>, Why> {
    let Some(value) = args.maybe_tensor(name)? else { return Ok(None) };
    let mut shape = vec![Size::from(1); rank];
    *shape.get_mut(1).ok_or("no channels")? = product(&args.b.shape(value));
    Ok(Some(args.b.reshape(value, shape).into()))
}

fn group_norm(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("input")?;
    let groups =
        args.int(if args.node.arg("num_groups").is_some() { "num_groups" } else { "group" }, 1)?;
    normalised_groups(args, x, Size::from(groups))
}

fn normalised_groups(args: &mut Args<'_>, x: ValueId, groups: Size) -> Outputs {
    let (dtype, shape) = (args.b.dtype(x), args.b.shape(x));
    if shape.len() < 2 || groups.known().is_some_and(|groups| groups < 1) {
        return Err("no channels".into());
    }
    let (each, rest) = shape[1].divide(&groups);
    if !rest.is(0) {
        return Err(Why::Wrong(format!("{} channels in {groups} groups", shape[1])));
    }
    let each = &each * &product(&shape[2..]);
    let flat = args.b.reshape(x, vec![shape[0].clone(), groups, each.clone()]);
    let eps = args.float("eps", 1e-5)?;
    let (mean, apart, spread) = moments(args.b, flat, &[2])?;
    let scale = scale_of(args, spread, &each, eps)?;
    let normal = args.b.f(Fun::Mul, &[apart.into(), scale.into()])?;
    let normal = args.b.reshape(normal, shape.clone());
    let weight = by_channel(args, "weight", shape.len())?;
    let bias = by_channel(args, "bias", shape.len())?;
    let value = affine(args, normal, weight, bias, dtype)?;
    outputs(args, value, [mean, scale])
}

fn instance_norm(args: &mut Args<'_>) -> Outputs {
    if !args.flag("use_input_stats", true)? || args.maybe_tensor("running_mean")?.is_some() {
        return unsupported("instance_norm with running statistics");
    }
    let x = args.tensor("input")?;
    let channels = args.b.shape(x).get(1).cloned().ok_or("no channels")?;
    normalised_groups(args, x, channels)
}

/// By the batch's own mean and variance.
fn norm_of_batch(args: &mut Args<'_>) -> Outputs {
    Ok(of_batch(args)?.0)
}

/// The same, beside it the mean and the sum of squared distances from that.
fn of_batch(args: &mut Args<'_>) -> Result<(Vec<Option<ValueId>>, [ValueId; 2]), Why> {
    let x = args.tensor("input")?;
    let (dtype, rank) = (args.b.dtype(x), args.b.rank(x));
    if rank < 2 || !is_float(dtype) {
        return Err(Why::Wrong(format!("a norm of {dtype} {}", show(&args.b.shape(x)))));
    }
    let dims: Vec<usize> = (0..rank).filter(|dim| *dim != 1).collect();
    let eps = args.float("eps", 1e-5)?;
    let (mean, apart, spread) = moments(args.b, x, &dims)?;
    let n = count(args.b, x, &dims);
    let scale = scale_of(args, spread, &n, eps)?;
    let normal = args.b.f(Fun::Mul, &[apart.into(), scale.into()])?;
    let weight = by_channel(args, "weight", rank)?;
    let bias = by_channel(args, "bias", rank)?;
    let value = affine(args, normal, weight, bias, dtype)?;
    Ok((outputs(args, value, [mean, scale])?, [mean, spread]))
}

fn batch_norm(args: &mut Args<'_>) -> Outputs {
    if args.flag("training", false)? {
        // Without running statistics: with them it is one that gives them (`functional`).
        return norm_of_batch(args);
    }
    let x = args.tensor("input")?;
    let (dtype, rank) = (args.b.dtype(x), args.b.rank(x));
    if !is_float(dtype) {
        return Err(Why::Wrong(format!("a norm of {dtype}")));
    }
    let eps = args.float("eps", 1e-5)?;
    let mean = by_channel(args, "running_mean", rank)?.ok_or("no running mean")?;
    let variance = by_channel(args, "running_var", rank)?.ok_or("no running variance")?;
    let sum = args.b.f(Fun::Add, &[variance, eps.into()])?;
    let scale = args.b.f(Fun::Rsqrt, &[sum.into()])?;
    let apart = args.b.f(Fun::Sub, &[x.into(), mean])?;
    let normal = args.b.f(Fun::Mul, &[apart.into(), scale.into()])?;
    let weight = by_channel(args, "weight", rank)?;
    let bias = by_channel(args, "bias", rank)?;
    one(affine(args, normal, weight, bias, dtype)?)
}

/// By the batch's own mean and variance; of these, and of the running ones, what comes after
/// the first `before` outputs.
fn trained(args: &mut Args<'_>, before: usize) -> Outputs {
    let names = ["running_mean", "running_var"];
    if !args.flag("training", true)? {
        let mut all = batch_norm(args)?;
        all.resize(before, None);
        for name in names {
            all.push(Some(args.tensor(name)?));
        }
        return Ok(all);
    }
    let x = args.tensor("input")?;
    let momentum = args.float("momentum", 0.1)?;
    let dims: Vec<usize> = (0..args.b.rank(x)).filter(|dim| *dim != 1).collect();
    let (mut all, [mean, spread]) = of_batch(args)?;
    all.resize(before, None);
    let fewer = &count(args.b, x, &dims) - &Size::from(1);
    let variance = args.b.f(Fun::Div, &[spread.into(), divisor(&fewer).into()])?;
    for (i, (name, new)) in names.into_iter().zip([mean, variance]).enumerate() {
        let old = args.tensor(name)?;
        let (dtype, shape) = (args.declared(before + i)?.0, args.b.shape(old));
        if !args.b.same(&product(&shape), &args.b.shape(x)[1]) {
            return Err(Why::Wrong(format!(
                "{name} {} of {}",
                show(&shape),
                show(&args.b.shape(x))
            )));
        }
        let new = args.b.reshape(new, shape);
        let new = args.b.f(Fun::Mul, &[new.into(), momentum.into()])?;
        let old = args.b.f(Fun::Mul, &[old.into(), (1.0 - momentum).into()])?;
        all.push(Some(args.b.map(Fun::Add, Domain::Float, &[new.into(), old.into()], dtype)?));
    }
    Ok(all)
}

/// `v` with the norm of each part along `dim` (-1: of all) as `g` says.
fn weight_norm(args: &mut Args<'_>) -> Outputs {
    let (v, g) = (args.tensor("v")?, args.tensor("g")?);
    let (dtype, rank) = (args.b.dtype(v), args.b.rank(v));
    let kept = match args.int("dim", 0)? {
        -1 => None,
        _ => Some(args.dim("dim", 0, rank)?),
    };
    let dims: Vec<usize> = (0..rank).filter(|dim| Some(*dim) != kept).collect();
    let b = &mut *args.b;
    let squared = b.f(Fun::Mul, &[v.into(), v.into()])?;
    let sum = b.reduce_keep(Reduction::Sum, squared, &dims, b.inner)?;
    let norm = b.f(Fun::Sqrt, &[sum.into()])?;
    let scale = b.f(Fun::Div, &[g.into(), norm.into()])?;
    let value = b.map(Fun::Mul, Domain::Float, &[v.into(), scale.into()], dtype)?;
    Ok(vec![Some(value), Some(norm)])
}
