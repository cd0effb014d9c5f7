//! Convolutions as windows and a product of matrices.
//!
//! Invariant: sums and the bias are rounded once, together.

use kiln_proto::graph::DType;

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
        | "conv3d.padding" => convolution,
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

/// `x` with as many zeros before and after each of the last dimensions.
fn padded(b: &mut Builder, x: ValueId, pads: &[(i64, i64)]) -> ValueId {
    if pads.iter().all(|pad| *pad == (0, 0)) {
        return x;
    }
    let mut shape = b.shape(x);
    let first = shape.len() - pads.len();
    let mut before = vec![Size::default(); shape.len()];
    for (i, (start, end)) in pads.iter().enumerate() {
        shape[first + i] = &shape[first + i] + &Size::from(start + end);
        before[first + i] = Size::from(*start);
    }
    let dtype = b.dtype(x);
    let value = stored(Number::Int(0), dtype);
    b.push(Op::Pad { before, value }, vec![x], dtype, shape)
}

/// One number for each of `count` dimensions, or one for all.
fn each(args: &Args<'_>, name: &str, count: usize, default: i64) -> Result<Vec<i64>, Why> {
    let given = args.ints(name)?.unwrap_or_default();
    match given.len() {
        0 => Ok(vec![default; count]),
        1 => Ok(vec![given[0]; count]),
        n if n == count => Ok(given),
        n => Err(Why::Wrong(format!("{n} numbers in {name:?} for {count} dimensions"))),
    }
}

fn convolution(args: &mut Args<'_>) -> Outputs {
    if args.flag("transposed", false)? {
        return unsupported("a transposed convolution");
    }
    let mut x = args.tensor("input")?;
    let weight = args.tensor("weight")?;
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
    let steps = each(args, "stride", spatial, 1)?;
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
    let (channels, outs) = (args.b.shape(x)[1].clone(), kernel[0].clone());
    let known = |size: &Size| size.known().filter(|size| groups > 0 && size % groups == 0);
    let (Some(c), Some(o)) = (known(&channels), known(&outs)) else {
        return Err(Why::Wrong(format!("{channels} to {outs} channels in {groups} groups")));
    };
    if kernel[1].known() != Some(c / groups) {
        return Err(Why::Wrong(format!("{channels} channels against {}", show(&kernel))));
    }
    let mut patches = padded(args.b, x, &pads);
    for i in 0..spatial {
        patches = windows(args.b, patches, 2 + i, sizes[i], steps[i], dilations[i])?;
    }
    // [n, c, places.., kernel..]
    let whole = args.b.shape(patches);
    let (n, places) = (whole[0].clone(), whole[2..2 + spatial].to_vec());
    let inner = Size::from(c / groups * sizes.iter().product::<i64>());
    let bias = args.maybe_tensor("bias")?;
    let product_type = if bias.is_some() { DType::F32 } else { dtype };
    let (g, per) = (Size::from(groups), Size::from(o / groups));
    let value = if groups == 1 {
        let mut order = vec![0];
        order.extend(2..2 + spatial);
        order.push(1);
        order.extend(2 + spatial..2 + 2 * spatial);
        let patches = args.b.permute(patches, &order);
        let rows = &n * &product(&places);
        let patches = args.b.reshape(patches, vec![rows, inner.clone()]);
        let flat = args.b.reshape(weight, vec![outs.clone(), inner]);
        let flat = args.b.permute(flat, &[1, 0]);
        let value = matmul(args.b, patches, flat, product_type)?;
        let mut shape = vec![n];
        shape.extend_from_slice(&places);
        shape.push(outs);
        let value = args.b.reshape(value, shape);
        args.b.move_dim(value, spatial + 1, 1)
    } else {
        let mut split = vec![n.clone(), g.clone(), Size::from(c / groups)];
        split.extend_from_slice(&whole[2..]);
        let patches = args.b.reshape(patches, split);
        // [n, g, c/g, places.., kernel..] to [n, g, c/g, kernel.., places..]
        let mut order = vec![0, 1, 2];
        order.extend(3 + spatial..3 + 2 * spatial);
        order.extend(3..3 + spatial);
        let patches = args.b.permute(patches, &order);
        let count = product(&places);
        let patches = args.b.reshape(patches, vec![n.clone(), g.clone(), inner.clone(), count]);
        let flat = args.b.reshape(weight, vec![g, per, inner]);
        let value = matmul(args.b, flat, patches, product_type)?;
        let mut shape = vec![n, outs];
        shape.extend_from_slice(&places);
        args.b.reshape(value, shape)
    };
    let mut value = value;
    if let Some(bias) = bias {
        let mut shape = vec![Size::from(1); spatial + 2];
        shape[1] = product(&args.b.shape(bias));
        let bias = args.b.reshape(bias, shape);
        value = args.b.map(Fun::Add, Domain::Float, &[value.into(), bias.into()], dtype)?;
    }
    if alone {
        value = args.b.squeeze(value, 0);
    }
    one(value)
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
    let mut patches = padded(args.b, x, &pads);
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
