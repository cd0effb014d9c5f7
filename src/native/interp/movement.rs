//! Operations that move elements and compute nothing.
//!
//! Invariant: no element is read outside of the tensor it is in: each view is
//! checked as a whole before the first.

use kiln_proto::Failure;

use super::{
    invalid,
    tensor::{Data, Dense, row_major},
};

/// Where a result's elements lie in what is read.
pub(super) struct View {
    pub(super) offset: isize,
    pub(super) strides: Vec<isize>,
}

impl View {
    /// All of a dense tensor.
    pub(super) fn of(shape: &[usize]) -> Self {
        let strides = row_major(shape).into_iter().map(|stride| stride as isize).collect();
        Self { offset: 0, strides }
    }

    /// A dense tensor of `shape`, broadcast from the right to `to`.
    pub(super) fn broadcast(shape: &[usize], to: &[usize]) -> Result<Self, Failure> {
        let mismatch = || invalid(format!("{shape:?} does not broadcast to {to:?}"));
        let missing = to.len().checked_sub(shape.len()).ok_or_else(mismatch)?;
        let mut view = Self::of(shape);
        for ((size, wanted), stride) in shape.iter().zip(&to[missing..]).zip(&mut view.strides) {
            match size {
                _ if size == wanted && *size != 1 => {}
                1 => *stride = 0,
                _ => return Err(mismatch()),
            }
        }
        view.strides.splice(0..0, std::iter::repeat_n(0, missing));
        Ok(view)
    }

    /// The elements of `from` that a result of `shape` has.
    pub(super) fn take(&self, from: &Data, shape: &[usize]) -> Result<Dense, Failure> {
        if shape.len() != self.strides.len() {
            return Err(invalid(format!("{} sizes for a view in {shape:?}", self.strides.len())));
        }
        let count = shape.iter().product();
        if count > 0 {
            let (mut least, mut most) = (self.offset, self.offset);
            for (size, stride) in shape.iter().zip(&self.strides) {
                let span = (*size as isize - 1) * stride;
                if span < 0 { least += span } else { most += span }
            }
            if least < 0 || most as usize >= from.len() {
                return Err(invalid(format!("a view of {shape:?} leaves what it reads")));
            }
        }
        let data = match from {
            Data::Float(from) => Data::Float(self.copy(from, shape, count)),
            Data::Int(from) => Data::Int(self.copy(from, shape, count)),
        };
        Ok(Dense { shape: shape.to_vec(), data })
    }

    fn copy<T: Copy>(&self, from: &[T], shape: &[usize], count: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(count);
        each(shape, [&self.strides], |[at]| out.push(from[(self.offset + at) as usize]));
        out
    }
}

/// Calls `visit` for each element of `shape` in row-major order, with where
/// each of `strides` leads.
pub(super) fn each<const N: usize>(
    shape: &[usize],
    strides: [&[isize]; N],
    mut visit: impl FnMut([isize; N]),
) {
    if shape.contains(&0) {
        return;
    }
    let (rows, inner) = match shape.split_last() {
        Some((inner, rows)) => (rows, *inner),
        None => return visit([0; N]),
    };
    let steps = strides.map(|s| s[rows.len()]);
    let mut at = vec![0; rows.len()];
    let mut base = [0isize; N];
    loop {
        let mut here = base;
        for _ in 0..inner {
            visit(here);
            for (place, step) in here.iter_mut().zip(steps) {
                *place += step;
            }
        }
        let mut dim = rows.len();
        loop {
            if dim == 0 {
                return;
            }
            dim -= 1;
            at[dim] += 1;
            for (place, strides) in base.iter_mut().zip(strides) {
                *place += strides[dim];
            }
            if at[dim] < rows[dim] {
                break;
            }
            for (place, strides) in base.iter_mut().zip(strides) {
                *place -= strides[dim] * rows[dim] as isize;
            }
            at[dim] = 0;
        }
    }
}

/// `x` turned by `shift` along `dim`.
pub(super) fn roll(x: &Dense, dim: usize, shift: i64) -> Result<Dense, Failure> {
    let size = size(x, dim)?;
    if size == 0 {
        return Ok(x.clone());
    }
    let shift = shift.rem_euclid(size as i64) as usize;
    let inner: usize = x.shape[dim + 1..].iter().product();
    fn turned<T: Copy>(from: &[T], chunk: usize, by: usize) -> Vec<T> {
        let mut out = from.to_vec();
        out.chunks_exact_mut(chunk.max(1)).for_each(|chunk| chunk.rotate_right(by));
        out
    }
    let data = match &x.data {
        Data::Float(from) => Data::Float(turned(from, size * inner, shift * inner)),
        Data::Int(from) => Data::Int(turned(from, size * inner, shift * inner)),
    };
    Ok(Dense { shape: x.shape.clone(), data })
}

/// Writes `part` into `whole` from position `start` on.
pub(super) fn place(part: &Dense, whole: &mut Dense, start: &[usize]) -> Result<(), Failure> {
    let fits = part.shape.len() == whole.shape.len()
        && start.len() == part.shape.len()
        && (0..start.len())
            .all(|d| part.shape[d].checked_add(start[d]).is_some_and(|end| end <= whole.shape[d]));
    if !fits {
        let (part, whole) = (&part.shape, &whole.shape);
        return Err(invalid(format!("{part:?} at {start:?} does not fit into {whole:?}")));
    }
    let strides = View::of(&whole.shape).strides;
    let offset: isize = start.iter().zip(&strides).map(|(i, stride)| *i as isize * stride).sum();
    fn copy<T: Copy>(from: &[T], to: &mut [T], shape: &[usize], strides: &[isize], offset: isize) {
        let mut from = from.iter();
        each(shape, [strides], |[at]| {
            if let Some(element) = from.next() {
                to[(offset + at) as usize] = *element;
            }
        });
    }
    match (&part.data, &mut whole.data) {
        (Data::Float(from), Data::Float(to)) => copy(from, to, &part.shape, &strides, offset),
        (Data::Int(from), Data::Int(to)) => copy(from, to, &part.shape, &strides, offset),
        _ => return Err(invalid("parts of one tensor differ in type")),
    }
    Ok(())
}

/// The size of dimension `dim`.
pub(super) fn size(x: &Dense, dim: usize) -> Result<usize, Failure> {
    let size = x.shape.get(dim).copied();
    size.ok_or_else(|| invalid(format!("{:?} has no dimension {dim}", x.shape)))
}
