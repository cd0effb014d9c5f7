//! Comparisons, logic, division of whole numbers, choices and casts: what only
//! exact operands may decide.

use kiln_proto::graph::{Argument, DType};

use super::{
    arithmetic::{Other, broadcast, category, promoted, truth},
    builder::{Builder, Known, is_float, precision, whole_up_to},
    data::Content,
};

impl Builder {
    /// NaN or infinite; zero or not.
    pub(super) fn test(&mut self) -> Option<()> {
        let op = *self.rng.pick(&["isnan.default", "isinf.default", "logical_not.default"]);
        let x = self.operand();
        if !x.is_exact() || (!x.is_float() && op != "logical_not.default") {
            return None;
        }
        self.node(op, vec![("self", Argument::Tensor(x.id))], vec![truth(&x, x.shape.clone())])
    }

    pub(super) fn compared(&mut self, x: &Known, other: &Other) -> Option<()> {
        let y = other.known(x);
        // Both sides as they are: a cast to a narrower type is exact, too.
        if !x.is_exact() || !y.is_exact() {
            return None;
        }
        let name = *self.rng.pick(&["eq", "ne", "lt", "le", "gt", "ge"]);
        let overload = if matches!(other, Other::Tensor(_)) { "Tensor" } else { "Scalar" };
        let args = vec![("self", Argument::Tensor(x.id)), ("other", other.argument())];
        let shape = broadcast(&x.shape, &y.shape)?;
        self.node(&format!("{name}.{overload}"), args, vec![truth(x, shape)])
    }

    pub(super) fn bitwise(&mut self, x: &Known, other: &Other) -> Option<()> {
        let Other::Tensor(y) = other else { return None };
        let args = vec![("self", Argument::Tensor(x.id)), ("other", other.argument())];
        let shape = broadcast(&x.shape, &y.shape)?;
        if self.rng.one_in(2) && x.is_exact() && y.is_exact() {
            let op = *self.rng.pick(&[
                "logical_and.default",
                "logical_or.default",
                "logical_xor.default",
            ]);
            return self.node(op, args, vec![truth(x, shape)]);
        }
        if x.is_float() || y.is_float() {
            let dtype = *self.rng.pick(&[DType::I32, DType::I64, DType::Bool]);
            let ends = if dtype == DType::Bool { (0, 1) } else { (-60, 60) };
            let shape = x.shape.clone();
            let content = Content::Whole { low: ends.0, high: ends.1 };
            let a = self.input(dtype, shape.clone(), content.clone());
            let b = self.input(dtype, shape, content);
            return self.bitwise(&a, &Other::Tensor(b));
        }
        let op = *self.rng.pick(&["bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor"]);
        let dtype = promoted(x, other);
        // No more bits than either has.
        let most = 2.0 * (x.most().max(y.most()) + 1.0);
        let (low, high) = if dtype == DType::Bool { (0.0, 1.0) } else { (-most, most) };
        self.node(op, args, vec![Known { dtype, shape, low, high, ..x.clone() }])
    }

    /// Division and remainder of whole numbers, by another than zero.
    pub(super) fn divided(&mut self, x: &Known, other: &Other) -> Option<()> {
        let (mut x, mut other) = (x.clone(), other);
        if !x.whole || !x.is_exact() || x.dtype == DType::Bool {
            let shape = x.shape.clone();
            let dtype = *self.rng.pick(&[DType::I32, DType::I64, DType::F32]);
            x = self.input(dtype, shape, Content::Whole { low: -20, high: 20 });
        }
        let made;
        if matches!(other, Other::Tensor(y) if y.low <= 0.0 || !y.whole || !y.is_exact()) {
            let shape = x.shape.clone();
            made = Other::Tensor(self.input(x.dtype, shape, Content::Whole { low: 1, high: 5 }));
            other = &made;
        }
        let (x, y) = (&x, other.known(&x));
        let dtype = promoted(x, other);
        let apart = y.low > 0.0 || y.high < 0.0;
        let whole = x.whole && y.whole && x.is_exact() && y.is_exact();
        if !whole || !apart || dtype == DType::Bool || x.special || y.special {
            return None;
        }
        if is_float(dtype) && x.most().max(y.most()) > whole_up_to(dtype) {
            return None;
        }
        let most = x.most().max(y.most());
        let mut args = vec![("self", Argument::Tensor(x.id)), ("other", other.argument())];
        let tensor = matches!(other, Other::Tensor(_));
        let op = match self.rng.below(4) {
            0 if tensor => "floor_divide.default",
            0 | 1 => {
                let mode = *self.rng.pick(&["floor", "trunc"]);
                args.push(("rounding_mode", Argument::String(mode.to_owned())));
                "div.Tensor_mode"
            }
            2 if tensor => "remainder.Tensor",
            2 => "remainder.Scalar",
            _ if tensor => "fmod.Tensor",
            _ => "fmod.Scalar",
        };
        let shape = broadcast(&x.shape, &y.shape)?;
        let (low, high) = (-most - 1.0, most + 1.0);
        self.node(op, args, vec![Known { dtype, shape, low, high, whole: true, ..x.clone() }])
    }

    /// `where`, `masked_fill`, `clamp`.
    pub(super) fn choice(&mut self) -> Option<()> {
        let x = self.operand();
        if self.rng.one_in(3) {
            if x.dtype == DType::Bool {
                return None;
            }
            let (least, most) = (self.rng.int(-2, 0), self.rng.int(0, 2));
            let mut args = vec![("self", Argument::Tensor(x.id))];
            let (mut low, mut high) = (x.low, x.high);
            if !self.rng.one_in(4) {
                args.push(("min", Argument::Int(least)));
                (low, high) = (low.max(least as f64), high.max(least as f64));
            }
            if args.len() == 1 || !self.rng.one_in(4) {
                args.push(("max", Argument::Int(most)));
                (low, high) = (low.min(most as f64), high.min(most as f64));
            }
            if x.special {
                (low, high) = (low.min(-2.0), high.max(2.0));
            }
            return self.node("clamp.default", args, vec![Known { low, high, ..x }]);
        }
        let condition = self.condition(&x)?;
        let other = self.other(&x);
        let shape = broadcast(&condition.shape, &x.shape)?;
        if let Other::Int(_) | Other::Float(_) = other {
            let y = other.known(&x);
            if shape != x.shape || (category(x.dtype) < category(y.dtype) && !x.is_float()) {
                return None;
            }
            let args = vec![
                ("self", Argument::Tensor(x.id)),
                ("mask", Argument::Tensor(condition.id)),
                ("value", other.argument()),
            ];
            let (low, high) = (x.low.min(y.low), x.high.max(y.high));
            let whole = x.whole && y.whole;
            return self.node("masked_fill.Scalar", args, vec![Known { low, high, whole, ..x }]);
        }
        let y = other.known(&x);
        let dtype = promoted(&x, &other);
        if dtype == DType::F16 && x.most().max(y.most()) > 6e4 {
            return None;
        }
        let result = Known {
            id: x.id,
            dtype,
            shape: broadcast(&shape, &y.shape)?,
            low: x.low.min(y.low),
            high: x.high.max(y.high),
            error: x.error.max(y.error),
            whole: x.whole && y.whole,
            special: x.special || y.special,
        };
        let args = vec![
            ("condition", Argument::Tensor(condition.id)),
            ("self", Argument::Tensor(x.id)),
            ("other", other.argument()),
        ];
        self.node("where.self", args, vec![result])
    }

    /// A truth value that fits `x`.
    fn condition(&mut self, x: &Known) -> Option<Known> {
        let fits = |k: &Known| k.dtype == DType::Bool && broadcast(&k.shape, &x.shape).is_some();
        let found: Vec<Known> = self.known.iter().filter(|k| fits(k)).cloned().collect();
        if !found.is_empty() {
            return Some(self.rng.pick(&found).clone());
        }
        Some(self.input(DType::Bool, x.shape.clone(), Content::Whole { low: 0, high: 1 }))
    }

    pub(super) fn cast(&mut self) -> Option<()> {
        let x = self.operand();
        let to = *self.rng.pick(&[
            DType::F32,
            DType::F32,
            DType::BF16,
            DType::F16,
            DType::I32,
            DType::I64,
            DType::Bool,
        ]);
        let mut result = Known { dtype: to, ..x.clone() };
        match (x.is_float(), is_float(to)) {
            (_, true) => {
                let (ulp, most) = precision(to);
                // What is exact is rounded everywhere alike.
                let rounded = if x.is_exact() { 0.0 } else { x.most() * ulp };
                result.error = x.error + rounded;
                result.whole = x.whole && x.most() <= whole_up_to(to);
                if x.most() > most {
                    return None;
                }
                (result.low, result.high) = (x.low - ulp * x.most(), x.high + ulp * x.most());
            }
            (true, false) if !x.is_exact() || x.special || x.most() > 1e9 => return None,
            _ => {
                (result.low, result.high) = (x.low.trunc(), x.high.trunc());
                result.whole = true;
            }
        }
        if to == DType::Bool {
            (result.low, result.high) = (0.0, 1.0);
        }
        let op = *self.rng.pick(&["to.dtype", "_to_copy.default"]);
        let args = vec![("self", Argument::Tensor(x.id)), ("dtype", Argument::DType(to))];
        self.node(op, args, vec![result])
    }
}
