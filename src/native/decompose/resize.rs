//! Images of another size: the nearest element, or a mean of neighbours along each dimension.
//!
//! Invariant: positions are computed in `f32` (of `f64` in that) and in PyTorch's order, so that
//! the nearest element is the same one.

use kiln_proto::graph::{Argument, DType};

use super::{
    super::{
        core::{Domain, Fun, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder},
    index::lookup,
    one,
    promote::is_float,
    shapes::show,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    let (base, overload) = name.split_once('.')?;
    if !matches!(overload, "default" | "vec") {
        return None;
    }
    Some(match base {
        "upsample_nearest1d" | "upsample_nearest2d" | "upsample_nearest3d" => {
            |args| resize(args, Mode::Nearest)
        }
        "_upsample_nearest_exact1d" | "_upsample_nearest_exact2d" | "_upsample_nearest_exact3d" => {
            |args| resize(args, Mode::Exact)
        }
        "upsample_linear1d" | "upsample_bilinear2d" | "upsample_trilinear3d" => {
            |args| resize(args, Mode::Linear)
        }
        "upsample_bicubic2d" => |args| resize(args, Mode::Cubic),
        _ => return None,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    /// The nearest to the element's middle.
    Exact,
    Linear,
    Cubic,
}

fn resize(args: &mut Args<'_>, mode: Mode) -> Outputs {
    let x = match args.maybe_tensor("self")? {
        Some(x) => x,
        None => args.tensor("input")?,
    };
    let (dtype, shape) = (args.b.dtype(x), args.b.shape(x));
    let (_, declared) = args.declared(0)?;
    let spatial = shape.len().checked_sub(2).filter(|n| (1..=3).contains(n));
    let spatial = spatial.filter(|_| declared.len() == shape.len());
    let spatial = spatial
        .ok_or_else(|| Why::Wrong(format!("{} resized to {}", show(&shape), show(&declared))))?;
    let smooth = matches!(mode, Mode::Linear | Mode::Cubic);
    if !is_float(dtype) && smooth {
        return unsupported(format!("a mean of {dtype}"));
    }
    let corners = args.flag("align_corners", false)?;
    let mut value = x;
    for (i, dim) in (2..shape.len()).enumerate() {
        let (Some(size), Some(new)) = (shape[dim].known(), declared[dim].known()) else {
            return unsupported("an image of no fixed size");
        };
        if size < 1 || new < 1 {
            return Err(Why::Wrong(format!("{size} elements resized to {new}")));
        }
        let step = scale(args, i, spatial, size, new, corners && smooth)?;
        let b = &mut *args.b;
        value = match mode {
            _ if size == new && step == 1.0 => value,
            Mode::Nearest | Mode::Exact => {
                let at = nearest(b, size, new, step, mode == Mode::Exact)?;
                lookup(b, value, dim, at, false)
            }
            Mode::Linear => linear(b, value, dim, (size, new), step, corners)?,
            Mode::Cubic => cubic(b, value, dim, (size, new), step, corners)?,
        };
    }
    one(args.b.cast(value, dtype))
}

/// How far apart the new elements are, in old ones.
fn scale(
    args: &Args<'_>,
    i: usize,
    spatial: usize,
    size: i64,
    new: i64,
    corners: bool,
) -> Result<f64, Why> {
    if corners {
        let step = (size - 1) as f64 / (new - 1).max(1) as f64;
        return Ok(if new > 1 { held(step, args.b.inner) } else { 0.0 });
    }
    let given = match args.node.arg("scale_factors") {
        Some(Argument::Floats(all)) => all.get(i).copied(),
        Some(Argument::Tensors(none)) if none.is_empty() => None,
        Some(_) => return unsupported("factors that are no numbers"),
        None => {
            let names = match spatial {
                1 => &["scales"][..],
                2 => &["scales_h", "scales_w"][..],
                _ => &["scales_d", "scales_h", "scales_w"][..],
            };
            args.maybe_number(names[i])?.map(|_| args.float(names[i], 0.0)).transpose()?
        }
    };
    let step = match given {
        Some(factor) if factor > 0.0 => 1.0 / factor,
        _ => size as f64 / new as f64,
    };
    Ok(held(step, args.b.inner))
}

/// A step in the type in which positions are computed. Sizes are whole in both types, so a
/// quotient that is rounded twice is what it is rounded once.
fn held(step: f64, inner: DType) -> f64 {
    if inner == DType::F64 { step } else { f64::from(step as f32) }
}

fn nearest(b: &mut Builder, size: i64, new: i64, step: f64, middle: bool) -> Result<ValueId, Why> {
    let at = b.positions(&Size::from(new), 0, 1);
    let mut at = b.cast(at, b.inner);
    if middle {
        at = b.f(Fun::Add, &[at.into(), 0.5.into()])?;
    }
    let at = b.f(Fun::Mul, &[at.into(), step.into()])?;
    let at = b.f(Fun::Floor, &[at.into()])?;
    let at = b.cast(at, DType::I64);
    Ok(b.map(Fun::Min, Domain::Int, &[at.into(), (size - 1).into()], DType::I64)?)
}

/// Where the new elements lie among the old ones.
fn places(
    b: &mut Builder,
    new: i64,
    step: f64,
    corners: bool,
    inside: bool,
) -> Result<ValueId, Why> {
    let at = b.positions(&Size::from(new), 0, 1);
    let mut at = b.cast(at, b.inner);
    if corners {
        return Ok(b.f(Fun::Mul, &[at.into(), step.into()])?);
    }
    at = b.f(Fun::Add, &[at.into(), 0.5.into()])?;
    at = b.f(Fun::Mul, &[at.into(), step.into()])?;
    at = b.f(Fun::Sub, &[at.into(), 0.5.into()])?;
    Ok(if inside { b.f(Fun::Max, &[at.into(), 0.0.into()])? } else { at })
}

/// `weight` (of the new elements) as a factor along `dim`.
fn along(b: &mut Builder, weight: ValueId, dim: usize, rank: usize) -> ValueId {
    let mut shape = vec![Size::from(1); rank];
    shape[dim] = b.shape(weight)[0].clone();
    b.reshape(weight, shape)
}

fn linear(
    b: &mut Builder,
    x: ValueId,
    dim: usize,
    (size, new): (i64, i64),
    step: f64,
    corners: bool,
) -> Result<ValueId, Why> {
    let rank = b.rank(x);
    let at = places(b, new, step, corners, true)?;
    let down = b.f(Fun::Floor, &[at.into()])?;
    let first = b.cast(down, DType::I64);
    let last = Arg::from(size - 1);
    let first = b.map(Fun::Min, Domain::Int, &[first.into(), last.clone()], DType::I64)?;
    let next = b.map(Fun::Add, Domain::Int, &[first.into(), 1i64.into()], DType::I64)?;
    let next = b.map(Fun::Min, Domain::Int, &[next.into(), last], DType::I64)?;
    let first_at = b.cast(first, b.inner);
    let share = b.f(Fun::Sub, &[at.into(), first_at.into()])?;
    let share = b.f(Fun::Min, &[share.into(), 1.0.into()])?;
    let left = b.f(Fun::Sub, &[1.0.into(), share.into()])?;
    let (share, left) = (along(b, share, dim, rank), along(b, left, dim, rank));
    let (a, c) = (lookup(b, x, dim, first, false), lookup(b, x, dim, next, false));
    let a = b.f(Fun::Mul, &[a.into(), left.into()])?;
    let c = b.f(Fun::Mul, &[c.into(), share.into()])?;
    Ok(b.f(Fun::Add, &[a.into(), c.into()])?)
}

/// Four neighbours, by the cubic of Keys with -0.75.
fn cubic(
    b: &mut Builder,
    x: ValueId,
    dim: usize,
    (size, new): (i64, i64),
    step: f64,
    corners: bool,
) -> Result<ValueId, Why> {
    const A: f64 = -0.75;
    let rank = b.rank(x);
    let at = places(b, new, step, corners, false)?;
    let down = b.f(Fun::Floor, &[at.into()])?;
    let share = b.f(Fun::Sub, &[at.into(), down.into()])?;
    let first = b.cast(down, DType::I64);
    let mut sum: Option<ValueId> = None;
    for tap in 0..4i64 {
        // How far the neighbour is.
        let far = match tap {
            0 => b.f(Fun::Add, &[share.into(), 1.0.into()])?,
            1 => share,
            2 => b.f(Fun::Sub, &[1.0.into(), share.into()])?,
            _ => b.f(Fun::Sub, &[2.0.into(), share.into()])?,
        };
        let [c3, c2, c1, c0] = match tap {
            1 | 2 => [A + 2.0, -(A + 3.0), 0.0, 1.0],
            _ => [A, -5.0 * A, 8.0 * A, -4.0 * A],
        };
        // ((c3 far + c2) far + c1) far + c0
        let mut weight = b.f(Fun::Mul, &[far.into(), c3.into()])?;
        weight = b.f(Fun::Add, &[weight.into(), c2.into()])?;
        for more in [c1, c0] {
            weight = b.f(Fun::Mul, &[weight.into(), far.into()])?;
            weight = b.f(Fun::Add, &[weight.into(), more.into()])?;
        }
        let at = b.map(Fun::Add, Domain::Int, &[first.into(), (tap - 1).into()], DType::I64)?;
        let at = b.map(Fun::Max, Domain::Int, &[at.into(), 0i64.into()], DType::I64)?;
        let at = b.map(Fun::Min, Domain::Int, &[at.into(), (size - 1).into()], DType::I64)?;
        let taken = lookup(b, x, dim, at, false);
        let weight = along(b, weight, dim, rank);
        let part = b.f(Fun::Mul, &[taken.into(), weight.into()])?;
        sum = Some(match sum {
            None => part,
            Some(sum) => b.f(Fun::Add, &[sum.into(), part.into()])?,
        });
    }
    sum.ok_or_else(|| Why::Wrong("no neighbours".to_owned()))
}
