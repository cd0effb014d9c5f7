//! Pooling: the greatest or the mean of each window, or of as many parts as are asked for.
//!
//! Invariant: what pads a window is never its greatest, and counts for a mean only where
//! PyTorch counts it.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder},
    convolution::{each, grown, windows},
    one,
    promote::{ends, is_float},
    shapes::show,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "max_pool1d.default" => |args| max_pool(args, 1),
        "max_pool2d.default" | "max_pool2d_with_indices.default" => |args| max_pool(args, 2),
        "max_pool3d.default" | "max_pool3d_with_indices.default" => |args| max_pool(args, 3),
        "max_pool1d_with_indices.default" => |args| max_pool(args, 1),
        "avg_pool1d.default" => |args| mean_pool(args, 1),
        "avg_pool2d.default" => |args| mean_pool(args, 2),
        "avg_pool3d.default" => |args| mean_pool(args, 3),
        "adaptive_avg_pool1d.default" => |args| adaptive(args, 1, false),
        "adaptive_avg_pool2d.default" | "_adaptive_avg_pool2d.default" => {
            |args| adaptive(args, 2, false)
        }
        "adaptive_avg_pool3d.default" | "_adaptive_avg_pool3d.default" => {
            |args| adaptive(args, 3, false)
        }
        "adaptive_max_pool1d.default" => |args| adaptive(args, 1, true),
        "adaptive_max_pool2d.default" => |args| adaptive(args, 2, true),
        "adaptive_max_pool3d.default" => |args| adaptive(args, 3, true),
        _ => return None,
    })
}

/// Most elements of a padded dimension.
const LONGEST: i128 = 1 << 40;

/// The last dimensions of an image, and how windows lie over them.
struct Pool {
    sizes: Vec<i64>,
    strides: Vec<i64>,
    pads: Vec<i64>,
    dilations: Vec<i64>,
    /// How much further than the padding the last window reaches.
    beyond: Vec<i64>,
}

fn pool(args: &Args<'_>, x: ValueId, spatial: usize) -> Result<Pool, Why> {
    let shape = args.b.shape(x);
    let first = shape.len().checked_sub(spatial).filter(|n| (1..=2).contains(n));
    let first = first.ok_or_else(|| Why::Wrong(format!("windows of {}", show(&shape))))?;
    let sizes = each(args, "kernel_size", spatial, 1)?;
    let strides = match args.ints("stride")?.is_none_or(|given| given.is_empty()) {
        true => sizes.clone(),
        false => each(args, "stride", spatial, 1)?,
    };
    let (pads, dilations) =
        (each(args, "padding", spatial, 0)?, each(args, "dilation", spatial, 1)?);
    let wrong = |i: &usize| {
        sizes[*i] < 1
            || strides[*i] < 1
            || dilations[*i] < 1
            || pads[*i] < 0
            || pads[*i] > sizes[*i] / 2
    };
    if (0..spatial).any(|i| wrong(&i)) {
        return Err(Why::Wrong(format!(
            "windows of {sizes:?} each {strides:?}, padded by {pads:?}"
        )));
    }
    let all = sizes.iter().try_fold(1i64, |all, size| all.checked_mul(*size));
    let given = [&sizes, &strides, &pads, &dilations].into_iter().flatten();
    if all.is_none() || given.into_iter().any(|number| i128::from(*number) > LONGEST) {
        return Err(Why::Wrong(format!("windows of {sizes:?} each {strides:?}")));
    }
    let up = args.flag("ceil_mode", false)?;
    let mut beyond = vec![0; spatial];
    for i in 0..spatial {
        let Some(size) = shape[first + i].known() else {
            if up {
                return unsupported("windows beyond the end of a size that is not known");
            }
            continue;
        };
        // Wide enough for all that an archive may say.
        let [size, pad, stride, dilation, length] =
            [size, pads[i], strides[i], dilations[i], sizes[i]].map(i128::from);
        let reach = dilation * (length - 1) + 1;
        let span = size + 2 * pad - reach;
        let mut last = match up {
            true => (span + stride - 1).div_euclid(stride),
            false => span.div_euclid(stride),
        };
        // A window starts inside, or in the padding before.
        if up && last * stride >= size + pad {
            last -= 1;
        }
        let more = i64::try_from((last * stride - span).max(0));
        let (false, Ok(more)) = (last < 0 || size + 2 * pad > LONGEST, more) else {
            return Err(Why::Wrong(format!("windows over {reach} of {size} elements")));
        };
        if i128::from(more) > LONGEST {
            return Err(Why::Wrong(format!("windows {more} beyond {size} elements")));
        }
        beyond[i] = more;
    }
    Ok(Pool { sizes, strides, pads, dilations, beyond })
}

impl Pool {
    /// Windows of `x`, padded with `value`, as last dimensions.
    fn windows(&self, b: &mut Builder, x: ValueId, value: Number) -> Result<ValueId, Why> {
        let spatial = self.sizes.len();
        let first = b.rank(x) - spatial;
        let pads: Vec<(i64, i64)> =
            self.pads.iter().zip(&self.beyond).map(|(pad, more)| (*pad, pad + more)).collect();
        let none = pads.iter().all(|pad| *pad == (0, 0));
        let mut x = if none { x } else { grown(b, x, &pads, value) };
        for i in 0..spatial {
            let (size, step, dilation) = (self.sizes[i], self.strides[i], self.dilations[i]);
            x = windows(b, x, first + i, size, step, dilation)?;
        }
        Ok(x)
    }

    fn inner(&self, b: &Builder, windows: ValueId) -> Vec<usize> {
        let rank = b.rank(windows);
        (rank - self.sizes.len()..rank).collect()
    }
}

fn max_pool(args: &mut Args<'_>, spatial: usize) -> Outputs {
    let x = args.tensor("self")?;
    let pool = pool(args, x, spatial)?;
    let dtype = args.b.dtype(x);
    let found = pool.windows(args.b, x, ends(dtype).0)?;
    let inner = pool.inner(args.b, found);
    // Where they were, nothing in inference asks.
    Ok(vec![Some(args.b.reduce(Reduction::Max, found, &inner, dtype)?), None])
}

fn mean_pool(args: &mut Args<'_>, spatial: usize) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    if !is_float(dtype) {
        return Err(Why::Wrong(format!("a mean of {dtype}")));
    }
    let pool = pool(args, x, spatial)?;
    let with_pads = args.flag("count_include_pad", true)?;
    let divisor = args.maybe_int("divisor_override")?;
    if divisor == Some(0) {
        return Err("a divisor of zero".into());
    }
    let b = &mut *args.b;
    let found = pool.windows(b, x, Number::Float(0.0))?;
    let inner = pool.inner(b, found);
    let sum = b.reduce(Reduction::Sum, found, &inner, b.inner)?;
    let padded = pool.pads.iter().any(|pad| *pad > 0);
    let whole = pool.beyond.iter().all(|more| *more == 0) && (with_pads || !padded);
    let count = match divisor {
        Some(divisor) => Arg::from(divisor as f64),
        None if whole => Arg::from(pool.sizes.iter().product::<i64>() as f64),
        None => counted(b, x, &pool, with_pads)?.into(),
    };
    one(b.map(Fun::Div, Domain::Float, &[sum.into(), count], dtype)?)
}

/// How many elements of each window count.
fn counted(b: &mut Builder, x: ValueId, pool: &Pool, with_pads: bool) -> Result<ValueId, Why> {
    let spatial = pool.sizes.len();
    let mut shape = b.shape(x);
    let first = shape.len() - spatial;
    shape[..first].iter_mut().for_each(|size| *size = Size::from(1));
    let full = super::super::core::Op::Full(Number::Float(1.0));
    let mut ones = b.push(full, vec![], b.inner, shape);
    if with_pads {
        let pads: Vec<(i64, i64)> = pool.pads.iter().map(|pad| (*pad, *pad)).collect();
        ones = grown(b, ones, &pads, Number::Float(1.0));
    }
    let pads = if with_pads { vec![0; spatial] } else { pool.pads.clone() };
    let over = Pool {
        sizes: pool.sizes.clone(),
        strides: pool.strides.clone(),
        dilations: pool.dilations.clone(),
        beyond: pool.beyond.clone(),
        pads,
    };
    let found = over.windows(b, ones, Number::Float(0.0))?;
    let inner = over.inner(b, found);
    b.reduce(Reduction::Sum, found, &inner, b.inner)
}

/// As many parts of each dimension as are asked for, from `i * size / parts` rounded down to
/// `(i + 1) * size / parts` rounded up.
fn adaptive(args: &mut Args<'_>, spatial: usize, greatest: bool) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    let shape = args.b.shape(x);
    let first = shape.len().checked_sub(spatial).filter(|n| (1..=2).contains(n));
    let first = first.ok_or_else(|| Why::Wrong(format!("parts of {}", show(&shape))))?;
    if !is_float(dtype) {
        return unsupported(format!("parts of {dtype}"));
    }
    // A size that is left out is as it was.
    let (_, declared) = args.declared(0)?;
    if declared.len() != shape.len() || !args.b.same_shape(&declared[..first], &shape[..first]) {
        return Err(Why::Wrong(format!("{} from {}", show(&declared), show(&shape))));
    }
    let (mut value, mut counts) = (x, Vec::new());
    for dim in first..shape.len() {
        let (size, parts) = (shape[dim].clone(), declared[dim].clone());
        if size == parts {
            continue;
        }
        let b = &mut *args.b;
        let how = if greatest { Reduction::Max } else { Reduction::Sum };
        if parts.is(1) {
            value = b.reduce_keep(how, value, &[dim], b.inner)?;
            counts.push(Arg::from(super::reductions::divisor(&size)));
            continue;
        }
        let (Some(size), Some(parts)) = (size.known(), parts.known().filter(|parts| *parts > 0))
        else {
            return unsupported("parts of a size that is not known");
        };
        if size % parts == 0 {
            let each = size / parts;
            let found = windows(b, value, dim, each, each, 1)?;
            let last = b.rank(found) - 1;
            value = b.reduce(how, found, &[last], b.inner)?;
            counts.push(Arg::from(each as f64));
            continue;
        }
        let (inside, count) = parted(b, size, parts)?;
        // [.., size, ..] to [.., parts, .., size]
        let last = b.rank(value);
        let moved = b.move_dim(value, dim, last - 1);
        let mut order: Vec<usize> = (0..last - 1).collect();
        order.insert(dim, last);
        order.push(last - 1);
        let moved = b.unsqueeze(moved, last);
        let moved = b.permute(moved, &order);
        let mut deep = vec![Size::from(1); last + 1];
        deep[dim] = Size::from(parts);
        deep[last] = Size::from(size);
        let inside = b.reshape(inside, deep);
        let none = if greatest { f64::NEG_INFINITY } else { 0.0 };
        let args = [inside.into(), moved.into(), none.into()];
        let each = b.map(Fun::Where, Domain::Float, &args, b.inner)?;
        value = b.reduce(how, each, &[last], b.inner)?;
        let mut deep = vec![Size::from(1); last];
        deep[dim] = Size::from(parts);
        counts.push(b.reshape(count, deep).into());
    }
    if greatest {
        return Ok(vec![Some(args.b.cast(value, dtype)), None]);
    }
    let last = counts.len();
    for (i, count) in counts.into_iter().enumerate() {
        let to = if i + 1 == last { dtype } else { args.b.inner };
        value = args.b.map(Fun::Div, Domain::Float, &[value.into(), count], to)?;
    }
    one(value)
}

/// Which of `size` elements are in each of `parts`, and how many are: `[parts, size]`, `[parts]`.
fn parted(b: &mut Builder, size: i64, parts: i64) -> Result<(ValueId, ValueId), Why> {
    let int = |b: &mut Builder, fun, args: &[Arg]| b.map(fun, Domain::Int, args, DType::I64);
    let part = b.positions(&Size::from(parts), 0, 2);
    let at = b.positions(&Size::from(size), 1, 2);
    let scaled = int(b, Fun::Mul, &[part.into(), size.into()])?;
    let start = int(b, Fun::FloorDiv, &[scaled.into(), parts.into()])?;
    let next = int(b, Fun::Add, &[scaled.into(), (size + parts - 1).into()])?;
    let end = int(b, Fun::FloorDiv, &[next.into(), parts.into()])?;
    let after = b.map(Fun::Ge, Domain::Int, &[at.into(), start.into()], DType::Bool)?;
    let before = b.map(Fun::Lt, Domain::Int, &[at.into(), end.into()], DType::Bool)?;
    let inside = b.map(Fun::And, Domain::Bool, &[after.into(), before.into()], DType::Bool)?;
    let count = int(b, Fun::Sub, &[end.into(), start.into()])?;
    let count = b.cast(count, b.inner);
    let count = b.reshape(count, vec![Size::from(parts)]);
    Ok((inside, count))
}
