//! Element by element: functions, sums and products, comparisons, choices, casts.

use kiln_proto::graph::{Argument, DType};

use super::{
    builder::{Builder, Known, is_float, precision, whole_up_to},
    data::Content,
    table::FUNCTIONS,
};
use crate::size::Size;

/// The right side of a binary operation.
pub(super) enum Other {
    Tensor(Known),
    Int(i64),
    Float(f64),
}

impl Other {
    pub(super) fn argument(&self) -> Argument {
        match self {
            Self::Tensor(known) => Argument::Tensor(known.id),
            Self::Int(int) => Argument::Int(*int),
            Self::Float(float) => Argument::Float(*float),
        }
    }

    /// As if it were a tensor without dimensions.
    pub(super) fn known(&self, like: &Known) -> Known {
        let (dtype, number) = match self {
            Self::Tensor(known) => return known.clone(),
            Self::Int(int) => (DType::I64, *int as f64),
            Self::Float(float) => (DType::F32, *float),
        };
        let whole = number.fract() == 0.0;
        let (shape, error, special) = (Vec::new(), 0.0, false);
        Known { id: like.id, dtype, shape, low: number, high: number, error, whole, special }
    }
}

/// Bool, whole, float: a higher category decides whatever its dimensions.
pub(super) const fn category(dtype: DType) -> u8 {
    match dtype {
        DType::Bool => 0,
        _ if is_float(dtype) => 2,
        _ => 1,
    }
}

fn wider(a: DType, b: DType) -> DType {
    match (category(a), category(b)) {
        (x, y) if x > y => a,
        (x, y) if x < y => b,
        _ if a == b => a,
        (2, _) => DType::F32,
        _ => DType::I64,
    }
}

/// PyTorch's promotion: tensors with dimensions, then those without, then numbers.
pub(super) fn promoted(x: &Known, other: &Other) -> DType {
    let rank = |known: &Known| usize::from(!known.shape.is_empty());
    match other {
        Other::Int(_) => {
            if x.dtype == DType::Bool {
                DType::I64
            } else {
                x.dtype
            }
        }
        Other::Float(_) => {
            if is_float(x.dtype) {
                x.dtype
            } else {
                DType::F32
            }
        }
        Other::Tensor(y) if rank(x) == rank(y) || category(x.dtype) == category(y.dtype) => {
            match (rank(x), rank(y)) {
                (1, 0) => x.dtype,
                (0, 1) => y.dtype,
                _ => wider(x.dtype, y.dtype),
            }
        }
        Other::Tensor(y) => wider(x.dtype, y.dtype),
    }
}

/// The shape that both broadcast to.
pub(super) fn broadcast(a: &[Size], b: &[Size]) -> Option<Vec<Size>> {
    let rank = a.len().max(b.len());
    let one = Size::from(1);
    let size = |shape: &[Size], i: usize| {
        (i + shape.len()).checked_sub(rank).map_or(one.clone(), |i| shape[i].clone())
    };
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y => Some(x),
            (x, y) if x.is(1) => Some(y),
            (x, y) if y.is(1) => Some(x),
            _ => None,
        })
        .collect()
}

impl Builder {
    pub(super) fn unary(&mut self) -> Option<()> {
        if self.rng.one_in(6) {
            return self.cast();
        }
        if self.rng.one_in(10) {
            return self.test();
        }
        let function = self.rng.pick(FUNCTIONS);
        let mut x = self.operand();
        if !x.is_float() {
            return self.whole_unary(&x);
        }
        if function.jumps && !x.is_exact() {
            return None;
        }
        let reach = x.error;
        if !(function.from <= x.low - reach && x.high + reach <= function.to) {
            x = self.tamed(&x, function.from, function.to)?;
        }
        let (low, high) = function.interval(x.low, x.high, x.special);
        let slope = (function.slope)(x.low - x.error, x.high + x.error);
        let (ulp, _) = precision(x.dtype);
        let most = low.abs().max(high.abs());
        let error = match function.exact {
            true => x.error,
            false => slope * (x.error + x.most() * 2e-7) + most * (ulp + 1e-6) + 1e-7,
        };
        let whole = function.whole || (function.exact && x.whole);
        let special = x.special;
        let mut args = vec![("self", Argument::Tensor(x.id))];
        if function.op.starts_with("gelu") {
            let way = if self.rng.one_in(2) { "none" } else { "tanh" };
            args.push(("approximate", Argument::String(way.to_owned())));
        }
        let result = Known { low, high, error, whole, special, ..x };
        self.node(function.op, args, vec![result])
    }

    /// A value between two numbers: `tanh` of one, scaled and moved.
    fn tamed(&mut self, x: &Known, from: f64, to: f64) -> Option<Known> {
        let (from, to) = (from.max(-3.0), to.min(3.0));
        if !x.is_float() || x.most() > 1e4 {
            return None;
        }
        let slope = x.error + x.most() * 2e-7;
        let (ulp, _) = precision(x.dtype);
        let squashed =
            Known { low: -1.0, high: 1.0, error: slope + ulp + 1e-6, whole: false, ..x.clone() };
        self.node("tanh.default", vec![("self", Argument::Tensor(x.id))], vec![squashed])?;
        // Numbers that every type has, with room for what rounding adds.
        let room = (to - from) * 0.1;
        let (half, middle) = ((to - from) / 2.0 - room, (to + from) / 2.0);
        let (half, middle) = ((half * 8.0).floor() / 8.0, (middle * 8.0).round() / 8.0);
        if half <= 0.0 {
            return None;
        }
        let squashed = self.last();
        self.combined("mul.Tensor", &squashed, &Other::Float(half), 1)?;
        let scaled = self.within(-half, half);
        self.combined("add.Tensor", &scaled, &Other::Float(middle), 1)?;
        Some(self.within(middle - half, middle + half))
    }

    /// The last value, whose finite elements are known to lie there.
    fn within(&mut self, low: f64, high: f64) -> Known {
        if let Some(last) = self.known.last_mut() {
            (last.low, last.high) = (low, high);
        }
        self.last()
    }

    fn whole_unary(&mut self, x: &Known) -> Option<()> {
        let op = match x.dtype {
            DType::Bool => *self.rng.pick(&["logical_not.default", "bitwise_not.default"]),
            _ => *self.rng.pick(&[
                "neg.default",
                "abs.default",
                "sign.default",
                "bitwise_not.default",
            ]),
        };
        let most = x.most() + 1.0;
        let (low, high) = if x.dtype == DType::Bool { (0.0, 1.0) } else { (-most, most) };
        self.node(
            op,
            vec![("self", Argument::Tensor(x.id))],
            vec![Known { low, high, ..x.clone() }],
        )
    }

    /// Something to combine `x` with.
    pub(super) fn other(&mut self, x: &Known) -> Other {
        match self.rng.below(8) {
            0 => Other::Int(self.rng.int(-3, 5)),
            1 | 2 => Other::Float(*self.rng.pick(&[-2.0, -1.5, -0.5, 0.25, 0.5, 1.0, 1.5, 3.0])),
            3 | 4 => {
                // A new input of a shape that broadcasts to it.
                let mut shape = x.shape.clone();
                for size in &mut shape {
                    if self.rng.one_in(3) {
                        *size = Size::from(1);
                    }
                }
                let cut = if self.rng.one_in(3) { self.rng.below(shape.len() + 1) } else { 0 };
                let shape = shape.split_off(cut);
                if x.is_float() && !self.rng.one_in(6) {
                    return Other::Tensor(self.floats_of(x.dtype, shape));
                }
                Other::Tensor(self.anything(shape))
            }
            _ => {
                for _ in 0..8 {
                    let y = self.operand();
                    if broadcast(&x.shape, &y.shape).is_some() {
                        return Other::Tensor(y);
                    }
                }
                Other::Tensor(x.clone())
            }
        }
    }

    /// An input of any type.
    pub(super) fn anything(&mut self, shape: Vec<Size>) -> Known {
        match self.rng.below(4) {
            0 => self.input(DType::Bool, shape, Content::Whole { low: 0, high: 1 }),
            1 => self.input(DType::I32, shape, Content::Whole { low: -9, high: 9 }),
            2 => self.input(DType::I64, shape, Content::Whole { low: -100, high: 100 }),
            _ => self.floats(shape),
        }
    }

    pub(super) fn binary(&mut self) -> Option<()> {
        let x = self.operand();
        let other = self.other(&x);
        let op = *self.rng.pick(&[
            "add.Tensor",
            "sub.Tensor",
            "mul.Tensor",
            "mul.Tensor",
            "div.Tensor",
            "maximum.default",
            "minimum.default",
            "pow.Tensor_Scalar",
            "compare",
            "compare",
            "bits",
            "floor",
        ]);
        match op {
            "compare" => self.compared(&x, &other),
            "bits" => self.bitwise(&x, &other),
            "floor" => self.divided(&x, &other),
            "pow.Tensor_Scalar" => self.power(&x),
            _ => {
                let doubles = matches!(op, "add.Tensor" | "sub.Tensor") && self.rng.one_in(5);
                self.combined(op, &x, &other, 1 + i64::from(doubles)).map(|_| ())
            }
        }
    }

    /// Sums, products, quotients, extremes; of a sum the right side `alpha` times.
    fn combined(&mut self, op: &str, x: &Known, other: &Other, alpha: i64) -> Option<Known> {
        let mut y = other.known(x);
        let times = alpha as f64;
        (y.low, y.high, y.error) = (y.low * times, y.high * times, y.error * times);
        let dtype = match op {
            "div.Tensor" if !is_float(promoted(x, other)) => DType::F32,
            _ => promoted(x, other),
        };
        // Scalar overloads take any number; `maximum` wants tensors.
        let is_choice = matches!(op, "maximum.default" | "minimum.default");
        if (is_choice && !matches!(other, Other::Tensor(_))) || dtype == DType::Bool {
            return None;
        }
        // Nothing times infinity: rounding decides what it is.
        let apart = |k: &Known| k.low - k.error > 0.0 || k.high + k.error < 0.0;
        let unsafe_product = |a: &Known, b: &Known| a.special && !b.is_exact() && !apart(b);
        if matches!(op, "mul.Tensor" | "div.Tensor")
            && (unsafe_product(x, &y) || unsafe_product(&y, x))
        {
            return None;
        }
        let (mut low, mut high, slope) = match op {
            "add.Tensor" => (x.low + y.low, x.high + y.high, x.error + y.error),
            "sub.Tensor" => (x.low - y.high, x.high - y.low, x.error + y.error),
            "mul.Tensor" => {
                let all = [x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high];
                let (low, high) = hull(&all);
                let cross = x.error * y.error;
                (low, high, x.error * y.most() + y.error * x.most() + cross)
            }
            "div.Tensor" => {
                let near = y.low.abs().min(y.high.abs()) - y.error;
                if y.low * y.high <= 0.0 || near < 0.1 {
                    return None;
                }
                let all = [x.low / y.low, x.low / y.high, x.high / y.low, x.high / y.high];
                let (low, high) = hull(&all);
                (low, high, x.error / near + y.error * x.most() / (near * near))
            }
            "maximum.default" => (x.low.max(y.low), x.high.max(y.high), x.error.max(y.error)),
            _ => (x.low.min(y.low), x.high.min(y.high), x.error.max(y.error)),
        };
        if x.special || y.special {
            // An infinity may take the place of either.
            low = low.min(x.low).min(y.low).min(0.0);
            high = high.max(x.high).max(y.high).max(0.0);
        }
        let whole = x.whole && y.whole && op != "div.Tensor";
        let (ulp, _) = precision(dtype);
        let most = low.abs().max(high.abs());
        let is_exact = !is_float(dtype)
            || (is_choice && x.dtype == y.dtype)
            || (whole && most <= whole_up_to(dtype));
        let error = if is_exact { slope } else { slope + most * (ulp + 5e-7) };
        if is_float(dtype) && most > 1e30 {
            return None;
        }
        let shape = broadcast(&x.shape, &y.shape)?;
        let mut args = vec![("self", Argument::Tensor(x.id)), ("other", other.argument())];
        if alpha != 1 {
            args.push(("alpha", Argument::Int(alpha)));
        }
        let special = x.special || y.special;
        let result = Known { id: x.id, dtype, shape, low, high, error, whole, special };
        self.node(op, args, vec![result])?;
        Some(self.last())
    }

    fn power(&mut self, x: &Known) -> Option<()> {
        if !x.is_float() || x.most() > 30.0 || x.special {
            return None;
        }
        let exponent = *self.rng.pick(&[2.0, 3.0, 0.5, -1.0, 1.5]);
        let least = x.low - x.error;
        if exponent != 2.0 && exponent != 3.0 && least < 0.1 {
            return None;
        }
        let most = x.most() + x.error;
        let slope =
            f64::abs(exponent) * most.powf(exponent - 1.0).max(least.abs().powf(exponent - 1.0));
        let of = |value: f64| value.powf(exponent);
        let (low, high) = match least > 0.0 {
            true => hull(&[of(least), of(most)]),
            false => (-most.powi(3).max(1.0), most.powi(3).max(most.powi(2)).max(1.0)),
        };
        let (ulp, _) = precision(x.dtype);
        let error = slope * x.error + low.abs().max(high.abs()) * (ulp + 2e-6);
        let exponent = match exponent {
            2.0 => Argument::Int(2),
            3.0 if self.rng.one_in(2) => Argument::Int(3),
            _ => Argument::Float(exponent),
        };
        let args = vec![("self", Argument::Tensor(x.id)), ("exponent", exponent)];
        let result = Known { low, high, error, whole: false, ..x.clone() };
        self.node("pow.Tensor_Scalar", args, vec![result])
    }
}

/// A truth value.
pub(super) fn truth(like: &Known, shape: Vec<Size>) -> Known {
    let (dtype, low, high) = (DType::Bool, 0.0, 1.0);
    Known { id: like.id, dtype, shape, low, high, error: 0.0, whole: true, special: false }
}

fn hull(all: &[f64]) -> (f64, f64) {
    all.iter().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(*x), b.max(*x)))
}
