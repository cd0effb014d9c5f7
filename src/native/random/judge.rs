//! Whether a computed tensor is what it should be.

use kiln_proto::graph::DType;

use super::builder::is_float;
use crate::interp::Tensor;

/// What an output may differ by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// The greatest difference of finite elements; zero: none at all.
    pub error: f64,
    /// Least finite element there can be.
    pub low: f64,
    /// Greatest finite element there can be.
    pub high: f64,
}

impl Bound {
    /// Compares what was computed with what the interpreter says.
    pub fn check(&self, expected: &Tensor<'_>, found: &Tensor<'_>) -> Result<(), String> {
        if (expected.dtype, &expected.shape) != (found.dtype, &found.shape) {
            return Err(format!(
                "{} {:?} instead of {} {:?}",
                found.dtype, found.shape, expected.dtype, expected.shape
            ));
        }
        let numbers = |tensor: &Tensor<'_>| tensor.to_f64().map_err(|e| e.message);
        let (wanted, got) = (numbers(expected)?, numbers(found)?);
        let wrong: Vec<usize> = (0..wanted.len().max(got.len()))
            .filter(|at| !self.holds(expected.dtype, wanted.get(*at), got.get(*at)))
            .collect();
        let Some(first) = wrong.first() else { return Ok(()) };
        Err(format!(
            "{} of {} elements of {} {:?} are wrong (bound {:.3e}); at {first}: {:?}, not {:?}",
            wrong.len(),
            wanted.len(),
            expected.dtype,
            expected.shape,
            self.error,
            got.get(*first),
            wanted.get(*first),
        ))
    }

    fn holds(&self, dtype: DType, wanted: Option<&f64>, got: Option<&f64>) -> bool {
        let (Some(wanted), Some(got)) = (wanted, got) else { return false };
        if wanted.is_nan() || got.is_nan() {
            return wanted.is_nan() && got.is_nan();
        }
        if wanted == got {
            return true;
        }
        // Below the smallest normal number a GPU may be coarser.
        let tiny = if is_float(dtype) && self.error > 0.0 { 1e-37 } else { 0.0 };
        (wanted - got).abs() <= self.error + tiny
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn floats(elements: &[f32]) -> Tensor<'static> {
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor::dense(DType::F32, &[elements.len()], bytes)
    }

    #[test]
    fn what_is_beyond_the_bound_is_refused() {
        let bound = Bound { error: 0.125, low: -9.0, high: 9.0 };
        let wanted = floats(&[1.0, f32::NAN, f32::INFINITY]);
        bound.check(&wanted, &floats(&[1.125, f32::NAN, f32::INFINITY])).unwrap();
        for wrong in [
            [1.25, f32::NAN, f32::INFINITY],
            [1.0, 0.0, f32::INFINITY],
            [1.0, f32::NAN, f32::NEG_INFINITY],
            [f32::NAN, f32::NAN, f32::INFINITY],
        ] {
            assert!(bound.check(&wanted, &floats(&wrong)).is_err(), "{wrong:?}");
        }
        assert!(bound.check(&wanted, &floats(&[1.0, f32::NAN])).is_err());
        let exact = Bound { error: 0.0, ..bound };
        assert!(exact.check(&floats(&[0.0]), &floats(&[1e-40])).is_err());
    }
}
