//! What inputs hold.

use std::borrow::Cow;

use half::{bf16, f16};
use kiln_proto::{
    Digest,
    graph::{Constant, DType},
};

use super::{builder::is_float, rng::Rng};
use crate::{interp::Tensor, size::Size};

/// The elements of an input.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Any in an interval, perhaps with NaN, infinities and zeros of both signs.
    Floats { low: f64, high: f64, special: bool },
    /// Whole numbers, in any type.
    Whole { low: i64, high: i64 },
    /// The largest and smallest of a float type.
    Extreme,
}

impl Content {
    pub(super) fn interval(&self, dtype: DType) -> (f64, f64) {
        match self {
            Self::Floats { low, high, .. } => (*low, *high),
            Self::Whole { low, high } => (*low as f64, *high as f64),
            Self::Extreme => (-largest(dtype), largest(dtype)),
        }
    }

    pub(super) const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    pub(super) const fn is_special(&self) -> bool {
        matches!(self, Self::Floats { special: true, .. } | Self::Extreme)
    }

    fn element(&self, dtype: DType, rng: &mut Rng) -> f64 {
        match self {
            Self::Floats { special: true, .. } if rng.one_in(24) => {
                *rng.pick(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0])
            }
            Self::Floats { low, high, .. } => rng.float(*low, *high),
            Self::Whole { low, high } => rng.int(*low, *high) as f64,
            Self::Extreme => {
                let (most, least) = (largest(dtype), smallest(dtype));
                *rng.pick(&[most, -most, least, -least, 0.0, -0.0, 1.0, -1.5, f64::INFINITY])
            }
        }
    }

    /// A tensor of these elements, with garbage between them.
    pub(super) fn tensor(
        &self,
        dtype: DType,
        shape: &[Size],
        strides: &[Size],
        symbols: &[i64],
        rng: &mut Rng,
    ) -> Tensor<'static> {
        let value = |size: &Size| size.value(symbols).unwrap_or_default() as usize;
        let shape: Vec<usize> = shape.iter().map(value).collect();
        let strides: Vec<usize> = strides.iter().map(value).collect();
        let width = dtype.bytes() as usize;
        let count: usize = shape.iter().product();
        let spans =
            shape.iter().zip(&strides).map(|(size, stride)| size.saturating_sub(1) * stride);
        let held = if count == 0 { 0 } else { spans.sum::<usize>() + 1 };
        let mut bytes = vec![if dtype == DType::Bool { 1 } else { 0xff }; held * width];
        for index in 0..count {
            let (mut left, mut at) = (index, 0);
            for (size, stride) in shape.iter().zip(&strides).rev() {
                at += left % size * stride;
                left /= size;
            }
            let element = encode(self.element(dtype, rng), dtype);
            bytes[at * width..][..width].copy_from_slice(&element[..width]);
        }
        Tensor { dtype, shape, strides, bytes: Cow::Owned(bytes) }
    }

    /// A baked tensor of these elements.
    pub(super) fn constant(&self, dtype: DType, shape: &[Size], rng: &mut Rng) -> Constant {
        let count: i64 = shape.iter().map(|size| size.known().unwrap_or_default()).product();
        let width = dtype.bytes() as usize;
        let elements = (0..count)
            .flat_map(|_| encode(self.element(dtype, rng), dtype).into_iter().take(width));
        let data: Vec<u8> = elements.collect();
        Constant { digest: Digest::of(&data), data }
    }

    /// What `constant` is to the interpreter.
    pub(super) fn baked(dtype: DType, shape: &[Size], constant: &Constant) -> Tensor<'static> {
        let sizes = shape.iter().map(|size| size.known().unwrap_or_default() as usize);
        Tensor::dense(dtype, &sizes.collect::<Vec<_>>(), constant.data.clone())
    }
}

fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::MAX.to_f64(),
        DType::BF16 => bf16::MAX.to_f64(),
        _ => f64::from(f32::MAX),
    }
}

fn smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::MIN_POSITIVE_SUBNORMAL.to_f64(),
        DType::BF16 => bf16::MIN_POSITIVE_SUBNORMAL.to_f64(),
        _ => f64::from(f32::from_bits(1)),
    }
}

/// Little-endian, the element first.
fn encode(x: f64, dtype: DType) -> [u8; 8] {
    let mut bytes = [0; 8];
    match dtype {
        DType::F32 => bytes[..4].copy_from_slice(&(x as f32).to_le_bytes()),
        DType::F16 => bytes[..2].copy_from_slice(&f16::from_f64(x).to_le_bytes()),
        DType::BF16 => bytes[..2].copy_from_slice(&bf16::from_f64(x).to_le_bytes()),
        DType::Bool => bytes[0] = u8::from(x != 0.0),
        _ => bytes = (x as i64).to_le_bytes(),
    }
    debug_assert!(is_float(dtype) || x.fract() == 0.0);
    bytes
}
