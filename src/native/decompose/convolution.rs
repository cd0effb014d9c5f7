//! Convolutions as windows and a product of matrices.
//!
//! Invariant: sums and the bias are rounded once, together.

use super::{
    super::{
        core::{Domain, Fun, Number, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    elementwise::stored,
    one,
    products::matmul,
    promote::is_float,
    shapes::{product, show},
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "convolution.default"
        | "_convolution.default"
        | "conv1d.default"
        | "conv2d.default"
        | "conv3d.default"
        | "conv1d.padding"
        | "conv2d.padding"
        | "conv3d.padding"
        | "conv_transpose1d.default"
        | "conv_transpose2d.input"
        | "conv_transpose3d.input" => convolution,
        "im2col.default" => im2col,
        _ => return None,
    })
}

/// Windows of `size` elements of dimension `dim`, as a new last dimension.
pub(super) fn windows(
    b: &mut Builder,
    x: ValueId,
    dim: usize,
    size: i64,
    step: i64,
    dilation: i64,
) -> Result<ValueId, Why> {
    let mut shape = b.shape(x);
    if size < 1 || step < 1 || dilation < 1 || shape.len() <= dim {
        return Err(Why::Wrong(format!("windows of {size} each {step}, dilated by {dilation}")));
    }
    let reach = dilation.saturating_mul(size - 1).saturating_add(1);
    if shape[dim].known().is_some_and(|all| all < reach) {
        return Err(Why::Wrong(format!("windows over {reach} of {} elements", shape[dim])));
    }
    let span = &shape[dim] - &Size::from(reach);
    shape[dim] = &span.div_floor(&Size::from(step)) + &Size::from(1);
    shape.push(Size::from(size));
    let dtype = b.dtype(x);
    Ok(b.push(Op::Window { dim, step, dilation }, vec![x], dtype, shape))
}

/// `x` with as many zeros before and after each of the last dimensions; a number less than
/// zero cuts off as many.
fn padded(b: &mut Builder, x: ValueId, pads: &[(i64, i64)]) -> Result<ValueId, Why> {
    let first = b.rank(x) - pads.len();
    let mut x = x;
    for (i, (start, end)) in pads.iter().enumerate().filter(|(_, (s, e))| *s < 0 || *e < 0) {
        let (start, end) = (Size::from((-start).max(0)), Size::from((-end).max(0)));
        let count = &(&b.shape(x)[first + i] - &start) - &end;
        if count.known().is_some_and(|count| count < 1) {
            return Err(Why::Wrong(format!("{start} and {end} cut off {}", b.shape(x)[first + i])));
        }
        x = b.slice(x, first + i, start, 1, count);
    }
    if pads.iter().all(|(start, end)| *start <= 0 && *end <= 0) {
        return Ok(x);
    }
    let value = stored(Number::Int(0), b.dtype(x));
    Ok(grown(b, x, pads, value))
}

/// `x` with as many of `value` before and after each of the last dimensions, where that is
/// more than none.
pub(super) fn grown(b: &mut Builder, x: ValueId, pads: &[(i64, i64)], value: Number) -> ValueId {
    let mut shape = b.shape(x);
    let first = shape.len() - pads.len();
    let mut before = vec![Size::default(); shape.len()];
    for (i, (start, end)) in pads.iter().enumerate() {
        let (start, end) = (*start.max(&0), *end.max(&0));
        shape[first + i] = &shape[first + i] + &Size::from(start.saturating_add(end));
        before[first + i] = Size::from(start);
    }
    let dtype = b.dtype(x);
    b.push(Op::Pad { before, value }, vec![x], dtype, shape)
}

/// One number for each of `count` dimensions, or one for all.
pub(super) fn each(
    args: &Args<'_>,
    name: &str,
    count: usize,
    default: i64,
) -> Result<Vec<i64>, Why> {
    let given = args.ints(name)?.unwrap_or_default();
    match given.len() {
        0 => Ok(vec![default; count]),
        1 => Ok(vec![given[0]; count]),
        n if n == count => Ok(given),
        n => Err(Why::Wrong(format!("{n} numbers in {name:?} for {count} dimensions"))),
    }
}

/// How a kernel is laid over its input.
struct Steps {
    strides: Vec<i64>,
    /// Before and after, in each dimension; less than zero cuts off.
    pads: Vec<(i64, i64)>,
    dilations: Vec<i64>,
    groups: i64,
}

fn convolution(args: &mut Args<'_>) -> Outputs {
    let mut x = args.tensor("input")?;
    let mut weight = args.tensor("weight")?;
    let dtype = args.b.dtype(x);
    let kernel = args.b.shape(weight);
    let spatial = kernel.len().checked_sub(2).filter(|n| *n > 0).ok_or("no spatial dimensions")?;
    let alone = args.b.rank(x) == spatial + 1;
    if alone {
        x = args.b.unsqueeze(x, 0);
    }
    if args.b.rank(x) != spatial + 2 || args.b.dtype(weight) != dtype || !is_float(dtype) {
        let (x, weight) = (show(&args.b.shape(x)), show(&kernel));
        return Err(Why::Wrong(format!("a convolution of {x} with {weight}")));
    }
    let sizes: Option<Vec<i64>> = kernel[2..].iter().map(Size::known).collect();
    let Some(sizes) = sizes else { return unsupported("a kernel of no fixed size") };
    let strides = each(args, "stride", spatial, 1)?;
    let dilations = each(args, "dilation", spatial, 1)?;
    let reach = |i: usize| dilations[i].saturating_mul(sizes[i] - 1);
    let pads: Vec<(i64, i64)> = match args.node.op.ends_with(".padding") {
        false => each(args, "padding", spatial, 0)?.into_iter().map(|pad| (pad, pad)).collect(),
        true => match args.text("padding", "valid")? {
            "same" => (0..spatial).map(|i| (reach(i) / 2, reach(i) - reach(i) / 2)).collect(),
            _ => vec![(0, 0); spatial],
        },
    };
    if pads.iter().any(|(start, end)| *start < 0 || *end < 0) {
        return Err("padding by a negative number".into());
    }
    let groups = args.int("groups", 1)?;
    let mut steps = Steps { strides, pads, dilations, groups };
    if args.flag("transposed", false)? || args.node.op.starts_with("aten.conv_transpose") {
        let more = each(args, "output_padding", spatial, 0)?;
        (x, weight, steps) = turned(args.b, x, weight, &sizes, steps, &more)?;
    }
    let bias = args.maybe_tensor("bias")?;
    let mut value = convolved(args.b, x, weight, &sizes, &steps, bias)?;
    if alone {
        value = args.b.squeeze(value, 0);
    }
    one(value)
}

/// A transposed convolution as one: over elements apart, with the kernel turned around.
fn turned(
    b: &mut Builder,
    x: ValueId,
    weight: ValueId,
    sizes: &[i64],
    steps: Steps,
    more: &[i64],
) -> Result<(ValueId, ValueId, Steps), Why> {
    let Steps { strides, pads, dilations, groups } = steps;
    if strides.iter().chain(&dilations).any(|step| *step < 1) || more.iter().any(|pad| *pad < 0) {
        return Err(Why::Wrong(format!("steps of {strides:?}, dilated by {dilations:?}")));
    }
    let dtype = b.dtype(x);
    let zero = || stored(Number::Int(0), dtype);
    let mut apart = x;
    for (i, step) in strides.iter().enumerate().filter(|(_, step)| **step > 1) {
        let dim = 2 + i;
        let count = b.shape(apart)[dim].clone();
        apart = b.unsqueeze(apart, dim + 1);
        let mut shape = b.shape(apart);
        shape[dim + 1] = Size::from(*step);
        let before = vec![Size::default(); shape.len()];
        apart = b.push(Op::Pad { before, value: zero() }, vec![apart], dtype, shape.clone());
        shape.remove(dim + 1);
        shape[dim] = &count * &Size::from(*step);
        apart = b.reshape(apart, shape);
        // Nothing follows the last one.
        let all = &(&(&count - &Size::from(1)) * &Size::from(*step)) + &Size::from(1);
        apart = b.slice(apart, dim, Size::default(), 1, all);
    }
    let pads = (0..sizes.len()).map(|i| {
        let reach = dilations[i].saturating_mul(sizes[i] - 1);
        (reach - pads[i].0, (reach - pads[i].1).saturating_add(more[i]))
    });
    let pads: Vec<(i64, i64)> = pads.collect();
    let kernel = b.shape(weight);
    let spatial: Vec<usize> = (2..kernel.len()).collect();
    let flipped = b.push(Op::Flip(spatial.clone()), vec![weight], dtype, kernel.clone());
    // [c, o/g, ..] to [o, c/g, ..]
    let known = kernel[0].known().filter(|c| groups > 0 && c % groups == 0);
    let Some(c) = known else {
        return Err(Why::Wrong(format!("{} channels in {groups} groups", kernel[0])));
    };
    let per = Size::from(c / groups);
    let mut split = vec![Size::from(groups), per.clone(), kernel[1].clone()];
    split.extend_from_slice(&kernel[2..]);
    let parted = b.reshape(flipped, split);
    let mut order = vec![0, 2, 1];
    order.extend(spatial.iter().map(|dim| dim + 1));
    let parted = b.permute(parted, &order);
    let mut whole = vec![&kernel[1] * &Size::from(groups), per];
    whole.extend_from_slice(&kernel[2..]);
    let weight = b.reshape(parted, whole);
    let strides = vec![1; sizes.len()];
    Ok((apart, weight, Steps { strides, pads, dilations, groups }))
}

/// `x` (`[n, c, ..]`) with a kernel of these sizes, and `bias` for each channel.
fn convolved(
    b: &mut Builder,
    x: ValueId,
    weight: ValueId,
    sizes: &[i64],
    steps: &Steps,
    bias: Option<ValueId>,
) -> Result<ValueId, Why> {
    let (dtype, kernel, spatial) = (b.dtype(x), b.shape(weight), sizes.len());
    let groups = steps.groups;
    let (channels, outs) = (b.shape(x)[1].clone(), kernel[0].clone());
    let known = |size: &Size| size.known().filter(|size| groups > 0 && size % groups == 0);
    let (Some(c), Some(o)) = (known(&channels), known(&outs)) else {
        return Err(Why::Wrong(format!("{channels} to {outs} channels in {groups} groups")));
    };
    if kernel[1].known() != Some(c / groups) {
        return Err(Why::Wrong(format!("{channels} channels against {}", show(&kernel))));
    }
    let mut patches = padded(b, x, &steps.pads)?;
    let each = sizes.iter().zip(steps.strides.iter().zip(&steps.dilations));
    for (i, (size, (step, dilation))) in each.enumerate() {
        patches = windows(b, patches, 2 + i, *size, *step, *dilation)?;
    }
    // [n, c, places.., kernel..]
    let whole = b.shape(patches);
    let (n, places) = (whole[0].clone(), whole[2..2 + spatial].to_vec());
    let inner = Size::from(c / groups * sizes.iter().product::<i64>());
    let product_type = if bias.is_some() { b.inner } else { dtype };
    let (g, per) = (Size::from(groups), Size::from(o / groups));
    let value = if groups == 1 {
        let mut order = vec![0];
        order.extend(2..2 + spatial);
        order.push(1);
        order.extend(2 + spatial..2 + 2 * spatial);
        let patches = b.permute(patches, &order);
        let rows = &n * &product(&places);
        let patches = b.reshape(patches, vec![rows, inner.clone()]);
        let flat = b.reshape(weight, vec![outs.clone(), inner]);
        let flat = b.permute(flat, &[1, 0]);
        let value = matmul(b, patches, flat, product_type)?;
        let mut shape = vec![n];
        shape.extend_from_slice(&places);
        shape.push(outs);
        let value = b.reshape(value, shape);
        b.move_dim(value, spatial + 1, 1)
    } else {
        let mut split = vec![n.clone(), g.clone(), Size::from(c / groups)];
        split.extend_from_slice(&whole[2..]);
        let patches = b.reshape(patches, split);
        // [n, g, c/g, places.., kernel..] to [n, g, c/g, kernel.., places..]
        let mut order = vec![0, 1, 2];
        order.extend(3 + spatial..3 + 2 * spatial);
        order.extend(3..3 + spatial);
        let patches = b.permute(patches, &order);
        let count = product(&places);
        let patches = b.reshape(patches, vec![n.clone(), g.clone(), inner.clone(), count]);
        let flat = b.reshape(weight, vec![g, per, inner]);
        let value = matmul(b, flat, patches, product_type)?;
        let mut shape = vec![n, outs];
        shape.extend_from_slice(&places);
        b.reshape(value, shape)
    };
    let Some(bias) = bias else { return Ok(value) };
    let mut shape = vec![Size::from(1); spatial + 2];
    shape[1] = product(&b.shape(bias));
    let bias = b.reshape(bias, shape);
    Ok(b.map(Fun::Add, Domain::Float, &[value.into(), bias.into()], dtype)?)
}

/// Patches of an image as columns: `[n, c * kernel, places]`.
fn im2col(args: &mut Args<'_>) -> Outputs {
    let mut x = args.tensor("self")?;
    let alone = args.b.rank(x) == 3;
    if alone {
        x = args.b.unsqueeze(x, 0);
    }
    if args.b.rank(x) != 4 {
        return Err("no image".into());
    }
    let sizes = each(args, "kernel_size", 2, 1)?;
    let (steps, dilations) = (each(args, "stride", 2, 1)?, each(args, "dilation", 2, 1)?);
    let pads = each(args, "padding", 2, 0)?;
    let pads: Vec<(i64, i64)> = pads.into_iter().map(|pad| (pad, pad)).collect();
    let mut patches = padded(args.b, x, &pads)?;
    for i in 0..2 {
        patches = windows(args.b, patches, 2 + i, sizes[i], steps[i], dilations[i])?;
    }
    let whole = args.b.shape(patches);
    let patches = args.b.permute(patches, &[0, 1, 4, 5, 2, 3]);
    let inner = &whole[1] * &Size::from(sizes[0] * sizes[1]);
    let columns = vec![whole[0].clone(), inner, &whole[2] * &whole[3]];
    let mut value = args.b.reshape(patches, columns);
    if alone {
        value = args.b.squeeze(value, 0);
    }
    one(value)
}
