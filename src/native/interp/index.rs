//! Reads at computed positions.
//!
//! Invariant: a position out of range is an error that names it; nothing is
//! read before it was checked.

use kiln_proto::Failure;

use super::{
    invalid,
    movement::{View, each, size},
    step::Step,
    tensor::{Data, Dense},
};

/// The first operand at the positions of the second, along `dim`.
pub(super) fn gather(step: &Step<'_>, dim: usize) -> Result<Dense, Failure> {
    let (x, positions) = (step.read(0)?, step.read(1)?);
    let length = size(x, dim)?;
    let fits = positions.shape.len() == x.shape.len()
        && (0..x.shape.len()).all(|d| d == dim || positions.shape[d] <= x.shape[d]);
    if !fits {
        let (x, positions) = (&x.shape, &positions.shape);
        return Err(invalid(format!("positions {positions:?} in {x:?}")));
    }
    let mut strides = View::of(&x.shape).strides;
    let stride = std::mem::take(&mut strides[dim]);
    let offsets = offsets(positions.ints()?, length, stride, false)?;
    let mut at = Vec::with_capacity(offsets.len());
    let mut next = offsets.into_iter();
    each(&positions.shape, [&strides], |[rest]| at.extend(next.next().map(|o| o + rest)));
    Ok(Dense { shape: positions.shape.clone(), data: pick(&x.data, at.into_iter()) })
}

/// The first operand at the positions of the others, one for each of `dims`.
pub(super) fn index(step: &Step<'_>, dims: &[usize], wrap: bool) -> Result<Dense, Failure> {
    let x = step.read(0)?;
    let strides = View::of(&x.shape).strides;
    let ascending = dims.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || dims.is_empty() || step.reads.len() != dims.len() + 1 {
        let given = step.reads.len() - 1;
        return Err(invalid(format!("{given} tensors of positions for dimensions {dims:?}")));
    }
    let shape = &step.read(1)?.shape;
    let mut starts = vec![0isize; shape.iter().product()];
    for (i, dim) in dims.iter().enumerate() {
        let positions = step.read(i + 1)?;
        if positions.shape != *shape {
            return Err(invalid(format!("positions {:?} beside {shape:?}", positions.shape)));
        }
        let length = size(x, *dim)?;
        let offsets = offsets(positions.ints()?, length, strides[*dim], wrap)?;
        starts.iter_mut().zip(offsets).for_each(|(start, offset)| *start += offset);
    }
    let others = (0..x.shape.len()).filter(|dim| !dims.contains(dim));
    let (rest, steps): (Vec<usize>, Vec<isize>) =
        others.map(|dim| (x.shape[dim], strides[dim])).unzip();
    let shape: Vec<usize> = shape.iter().chain(&rest).copied().collect();
    step.expect(&shape)?;
    let mut within = Vec::with_capacity(rest.iter().product());
    each(&rest, [&steps], |[at]| within.push(at));
    let at = starts.iter().flat_map(|start| within.iter().map(move |at| start + at));
    Ok(Dense { shape, data: pick(&x.data, at) })
}

/// Checked positions times `stride`.
fn offsets(
    positions: &[i64],
    length: usize,
    stride: isize,
    wrap: bool,
) -> Result<Vec<isize>, Failure> {
    let offset = |position: &i64| {
        let from_start = match *position {
            negative if wrap && negative < 0 => negative.checked_add(length as i64),
            position => Some(position),
        };
        let found = from_start.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < length);
        let found = found.ok_or_else(|| {
            invalid(format!("position {position} is not in a dimension of {length}"))
        })?;
        Ok(found as isize * stride)
    };
    positions.iter().map(offset).collect()
}

fn pick(from: &Data, at: impl Iterator<Item = isize>) -> Data {
    match from {
        Data::Float(all) => Data::Float(at.map(|at| all[at as usize]).collect()),
        Data::Int(all) => Data::Int(at.map(|at| all[at as usize]).collect()),
    }
}
