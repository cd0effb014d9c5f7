//! Tensors: as callers hold them, in bytes, and as the interpreter does.
//!
//! Invariant: a [`Data`] holds exactly what its dtype can represent, unless
//! floats are kept exact; truth values are the whole numbers 0 and 1.

use std::borrow::Cow;

use half::{bf16, f16};
use kiln_proto::{Failure, graph::DType};

use super::{Precision, invalid, number::truncated};
use crate::float8::Float8;

/// A tensor in a caller's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Of the elements.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// In elements, for each dimension.
    pub strides: Vec<usize>,
    /// From the first element on, little-endian.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// Row-major `bytes`.
    pub fn dense(dtype: DType, shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        let (shape, strides) = (shape.to_vec(), row_major(shape));
        Self { dtype, shape, strides, bytes: bytes.into() }
    }

    /// The same elements in row-major order.
    pub fn to_dense(&self) -> Result<Tensor<'static>, Failure> {
        let bytes = dense_bytes(self, width(self.dtype)?)?.into_owned();
        Ok(Tensor::dense(self.dtype, &self.shape, bytes))
    }

    /// The elements in row-major order, as numbers.
    pub fn to_f64(&self) -> Result<Vec<f64>, Failure> {
        Ok(match Data::read(self)? {
            Data::Float(floats) => floats,
            Data::Int(ints) => ints.into_iter().map(|int| int as f64).collect(),
        })
    }
}

/// The elements of a dense tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Float(Vec<f64>),
    Int(Vec<i64>),
}

/// A dense tensor with its sizes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dense {
    pub(super) shape: Vec<usize>,
    pub(super) data: Data,
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Float(floats) => floats.len(),
            Self::Int(ints) => ints.len(),
        }
    }

    /// The elements of `tensor`, which must lie in its bytes.
    pub(super) fn read(tensor: &Tensor<'_>) -> Result<Self, Failure> {
        let width = width(tensor.dtype)?;
        let bytes = dense_bytes(tensor, width)?;
        let bytes = bytes.as_ref();
        if let Some(short) = Float8::of(tensor.dtype) {
            return Ok(Self::Float(bytes.iter().map(|bits| short.value(*bits)).collect()));
        }
        macro_rules! read {
            ($variant:ident, $type:ty, $into:expr) => {
                Self::$variant(
                    bytes
                        .chunks_exact(width)
                        .map(|b| {
                            let mut le = [0; size_of::<$type>()];
                            le.copy_from_slice(b);
                            $into(<$type>::from_le_bytes(le))
                        })
                        .collect(),
                )
            };
        }
        Ok(match tensor.dtype {
            DType::F64 => read!(Float, f64, |x| x),
            DType::F32 => read!(Float, f32, f64::from),
            DType::F16 => read!(Float, f16, f16::to_f64),
            DType::BF16 => read!(Float, bf16, bf16::to_f64),
            DType::I64 => read!(Int, i64, |x| x),
            DType::I32 => read!(Int, i32, i64::from),
            DType::I16 => read!(Int, i16, i64::from),
            DType::I8 => read!(Int, i8, i64::from),
            DType::U8 => read!(Int, u8, i64::from),
            DType::U16 => read!(Int, u16, i64::from),
            _ => read!(Int, u8, |x| i64::from(x != 0)),
        })
    }

    /// Row-major, little-endian.
    pub(super) fn to_bytes(&self, dtype: DType) -> Vec<u8> {
        match self {
            Self::Float(floats) => {
                let floats = floats.iter();
                if let Some(short) = Float8::of(dtype) {
                    return floats.map(|x| short.bits(*x)).collect();
                }
                match dtype {
                    DType::F64 => floats.flat_map(|x| x.to_le_bytes()).collect(),
                    DType::F32 => floats.flat_map(|x| (*x as f32).to_le_bytes()).collect(),
                    DType::F16 => floats.flat_map(|x| to_f16(*x).to_le_bytes()).collect(),
                    _ => floats.flat_map(|x| to_bf16(*x).to_le_bytes()).collect(),
                }
            }
            Self::Int(ints) => {
                let width = dtype.bytes() as usize;
                ints.iter().flat_map(|x| x.to_le_bytes().into_iter().take(width)).collect()
            }
        }
    }
}

/// Whether elements of `dtype` are floats here.
pub(super) const fn is_float(dtype: DType) -> bool {
    let is_wide = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    is_wide || matches!(dtype, DType::F8E4M3 | DType::F8E5M2)
}

/// Bytes of an element, of the types that the interpreter knows.
pub(super) fn width(dtype: DType) -> Result<usize, Failure> {
    match dtype {
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 | DType::Bool => {}
        DType::F8E4M3 | DType::F8E5M2 => {}
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::U16 => {}
        _ => return Err(invalid(format!("no arithmetic in {dtype}"))),
    }
    Ok(dtype.bytes() as usize)
}

/// `x` as a float of type `dtype`.
pub(super) fn round(x: f64, dtype: DType, precision: Precision) -> f64 {
    match (precision, dtype) {
        (Precision::Exact, _) | (_, DType::F64) => x,
        (_, DType::F16) => to_f16(x).to_f64(),
        (_, DType::BF16) => to_bf16(x).to_f64(),
        _ => Float8::of(dtype).map_or_else(|| f64::from(x as f32), |short| short.round(x)),
    }
}

/// `x` as a whole number of type `dtype`: its low bits, or whether it is zero.
pub(super) const fn wrap(x: i64, dtype: DType) -> i64 {
    match dtype {
        DType::Bool => (x != 0) as i64,
        DType::U8 => x as u8 as i64,
        DType::I8 => x as i8 as i64,
        DType::U16 => x as u16 as i64,
        DType::I16 => x as i16 as i64,
        DType::I32 => x as i32 as i64,
        _ => x,
    }
}

/// `x` as a whole number of type `dtype`; beyond its range an `i32` is its
/// nearest end, as on the device.
pub(super) fn float_to_int(x: f64, dtype: DType) -> i64 {
    match dtype {
        DType::Bool => i64::from(x != 0.0),
        DType::I32 => i64::from(x as i32),
        _ => wrap(truncated(x), dtype),
    }
}

/// Rounded once: the crate's own conversion from `f64` drops low bits first.
fn to_f16(x: f64) -> f16 {
    f16::from_f32(to_odd(x))
}

fn to_bf16(x: f64) -> bf16 {
    bf16::from_f32(to_odd(x))
}

/// Rounded towards zero, with the last bit set where that was inexact: what is
/// rounded again to a shorter type comes out as if rounded once.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || !x.is_finite() {
        return near;
    }
    let inward = match f64::from(near).abs() > x.abs() {
        true => f32::from_bits(near.to_bits() - 1),
        false => near,
    };
    f32::from_bits(inward.to_bits() | 1)
}

/// Strides of a dense tensor of `shape`.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim].max(1));
    }
    strides
}

/// The elements in row-major order.
fn dense_bytes<'t>(tensor: &'t Tensor<'_>, width: usize) -> Result<Cow<'t, [u8]>, Failure> {
    let Tensor { shape, strides, bytes, .. } = tensor;
    if strides.len() != shape.len() {
        return Err(invalid(format!("{} strides for shape {shape:?}", strides.len())));
    }
    let too_few = || {
        let held = bytes.len();
        invalid(format!("{held} bytes hold no {} {shape:?} of strides {strides:?}", tensor.dtype))
    };
    let count = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
    let count = count.and_then(|n| n.checked_mul(width)).ok_or_else(too_few)?;
    if count == 0 {
        return Ok(Cow::Borrowed(&[]));
    }
    let spans = shape.iter().zip(strides);
    let last = spans
        .clone()
        .try_fold(0usize, |n, (size, stride)| n.checked_add((size - 1).checked_mul(*stride)?));
    let needed = last.and_then(|n| n.checked_add(1)?.checked_mul(width)).ok_or_else(too_few)?;
    if needed > bytes.len() {
        return Err(too_few());
    }
    let mut dense = row_major(shape).into_iter();
    if spans.clone().all(|(size, stride)| dense.next() == Some(*stride) || *size == 1) {
        return Ok(Cow::Borrowed(&bytes[..count]));
    }
    let mut out = Vec::with_capacity(count);
    let strides: Vec<isize> = strides.iter().map(|stride| *stride as isize).collect();
    super::movement::each(shape, [&strides], |[at]| {
        out.extend_from_slice(&bytes[at as usize * width..][..width]);
    });
    Ok(Cow::Owned(out))
}
