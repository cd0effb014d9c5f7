//! Floats of 8 bits: e4m3fn, which has no infinity, and e5m2, the upper half of an `f16`.
//!
//! Invariant: a number is rounded once, to the nearest and to even between two. What is beyond the
//! greatest number, infinities too, is that in e4m3fn and infinite in e5m2, as PyTorch 2.15 has it
//! (earlier ones made it NaN in e4m3fn).

use kiln_proto::graph::DType;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Float8 {
    /// Bits behind the point.
    mantissa: i32,
    /// What is added to exponents.
    bias: i32,
    /// Whether the greatest exponent is that of infinity.
    infinite: bool,
}

impl Float8 {
    /// That of `dtype`, if it is one.
    pub(crate) const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F8E4M3 => Some(Self { mantissa: 3, bias: 7, infinite: false }),
            DType::F8E5M2 => Some(Self { mantissa: 2, bias: 15, infinite: true }),
            _ => None,
        }
    }

    /// The greatest number: in both the last mantissa before the end is 1.75.
    fn greatest(self) -> f64 {
        1.75 * f64::from(if self.infinite { 1 << 15 } else { 1 << 8 })
    }

    /// The exponent of the numbers around `x`, and the distance of neighbours there.
    fn place(self, x: f64) -> (i32, f64) {
        let own = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
        let exponent = own.max(1 - self.bias);
        (exponent, f64::exp2(f64::from(exponent - self.mantissa)))
    }

    /// `x` as one of these numbers.
    pub(crate) fn round(self, x: f64) -> f64 {
        let most = if self.infinite { f64::INFINITY } else { self.greatest() };
        let beyond = most.copysign(x);
        if !x.is_finite() {
            return if x.is_nan() { x } else { beyond };
        }
        let step = self.place(x).1;
        let near = (x / step).round_ties_even() * step;
        if near.abs() > self.greatest() { beyond } else { near }
    }

    /// The bits of `x`, rounded.
    pub(crate) fn bits(self, x: f64) -> u8 {
        let near = self.round(x);
        let sign = if near.is_sign_negative() { 0x80 } else { 0 };
        if near.is_nan() {
            return sign | 0x7f;
        }
        if near.is_infinite() {
            return sign | 0x7c;
        }
        let (exponent, step) = self.place(near);
        // The leading one of a normal number is what its exponent is one more for.
        let below = (exponent + self.bias - 1) << self.mantissa;
        sign | (below + (near.abs() / step) as i32) as u8
    }

    /// The number of these bits.
    pub(crate) fn value(self, bits: u8) -> f64 {
        let size = i32::from(bits & 0x7f);
        let (field, rest) = (size >> self.mantissa, size & ((1 << self.mantissa) - 1));
        let magnitude = match (self.infinite, size, rest) {
            (false, 0x7f, _) => f64::NAN,
            (true, 0x7c, _) => f64::INFINITY,
            (true, 0x7d.., _) => f64::NAN,
            _ => {
                let whole = if field > 0 { rest + (1 << self.mantissa) } else { rest };
                f64::from(whole) * f64::exp2(f64::from(field.max(1) - self.bias - self.mantissa))
            }
        };
        if bits & 0x80 == 0 { magnitude } else { -magnitude }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn both() -> [Float8; 2] {
        [DType::F8E4M3, DType::F8E5M2].map(|dtype| Float8::of(dtype).unwrap())
    }

    #[test]
    fn all_bits_are_numbers_that_come_back() {
        for format in both() {
            for bits in 0..=u8::MAX {
                let value = format.value(bits);
                match value.is_nan() {
                    true => assert!(format.value(format.bits(value)).is_nan()),
                    false => assert_eq!(format.bits(value), bits, "{format:?} {value}"),
                }
            }
        }
        let [e4m3, e5m2] = both();
        assert_eq!([0x01, 0x38, 0x7e].map(|bits| e4m3.value(bits)), [2f64.powi(-9), 1.0, 448.0]);
        assert_eq!([0x01, 0x3c, 0x7b].map(|bits| e5m2.value(bits)), [2f64.powi(-16), 1.0, 57344.0]);
        // An `f16` with eight more bits.
        let half = |bits: u8| half::f16::from_bits(u16::from(bits) << 8).to_f64();
        for bits in 0..=u8::MAX {
            let (ours, its) = (e5m2.value(bits), half(bits));
            assert!(ours == its || (ours.is_nan() && its.is_nan()), "{bits:#x}: {ours} {its}");
        }
    }

    #[test]
    fn between_two_the_even_one_is_taken_and_beyond_the_last_that_or_infinity() {
        let [e4m3, e5m2] = both();
        let cases = [
            (e4m3, 1.0625, 1.0),
            (e4m3, 1.1875, 1.25),
            (e4m3, 1.0625 + 1e-9, 1.125),
            (e4m3, 464.0, 448.0),
            (e4m3, 465.0, 448.0),
            (e4m3, -1e9, -448.0),
            (e4m3, f64::INFINITY, 448.0),
            (e4m3, 2f64.powi(-10), 0.0),
            (e4m3, 3.0 * 2f64.powi(-10), 2f64.powi(-8)),
            (e4m3, -1e-30, -0.0),
            (e5m2, 1.125, 1.0),
            (e5m2, 1.375, 1.5),
            (e5m2, 61439.0, 57344.0),
            (e5m2, 61440.0, f64::INFINITY),
            (e5m2, -1e9, f64::NEG_INFINITY),
        ];
        for (format, x, expected) in cases {
            assert_eq!(format.round(x), expected, "{format:?} {x}");
            assert_eq!(format.round(x).is_sign_negative(), x < 0.0, "{format:?} {x}");
        }
        assert!(e4m3.round(f64::NAN).is_nan() && e5m2.round(f64::NAN).is_nan());
    }
}
