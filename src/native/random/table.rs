//! Functions of one number, with what is needed to bound their results.

/// A function of one float.
pub(super) struct Function {
    /// After `aten.`.
    pub(super) op: &'static str,
    /// In this interval of arguments it is tame.
    pub(super) from: f64,
    pub(super) to: f64,
    /// Its value.
    pub(super) of: fn(f64) -> f64,
    /// The greatest slope between two arguments.
    pub(super) slope: fn(f64, f64) -> f64,
    /// Where it is not monotonic: what it never leaves.
    pub(super) within: Option<(f64, f64)>,
    /// Gives the same bits wherever it is computed.
    pub(super) exact: bool,
    /// Gives whole numbers.
    pub(super) whole: bool,
    /// A rounded argument may give quite another result.
    pub(super) jumps: bool,
}

const SMOOTH: Function = Function {
    op: "",
    from: -1e3,
    to: 1e3,
    of: |x| x,
    slope: |_, _| 1.0,
    within: None,
    exact: false,
    whole: false,
    jumps: false,
};
const EXACT: Function = Function { exact: true, from: f64::MIN, to: f64::MAX, ..SMOOTH };
const STEP: Function = Function { jumps: true, whole: true, ..EXACT };

/// All of them.
pub(super) const FUNCTIONS: &[Function] = &[
    Function { op: "neg.default", of: |x| -x, ..EXACT },
    Function { op: "abs.default", of: f64::abs, within: Some((0.0, f64::MAX)), ..EXACT },
    Function { op: "relu.default", of: |x| x.max(0.0), ..EXACT },
    Function { op: "floor.default", of: f64::floor, ..STEP },
    Function { op: "ceil.default", of: f64::ceil, ..STEP },
    Function { op: "trunc.default", of: f64::trunc, ..STEP },
    Function { op: "round.default", of: f64::round_ties_even, ..STEP },
    Function { op: "sign.default", of: |x| if x == 0.0 { 0.0 } else { x.signum() }, ..STEP },
    Function {
        op: "sqrt.default",
        from: 0.0,
        of: f64::sqrt,
        slope: |a, _| 0.5 / a.sqrt(),
        ..SMOOTH
    },
    Function {
        op: "rsqrt.default",
        from: 0.1,
        of: |x| 1.0 / x.sqrt(),
        slope: |a, _| 0.5 / (a * a.sqrt()),
        ..SMOOTH
    },
    Function {
        op: "reciprocal.default",
        from: 0.1,
        of: |x| 1.0 / x,
        slope: |a, _| 1.0 / (a * a),
        ..SMOOTH
    },
    Function { op: "exp.default", to: 6.0, of: f64::exp, slope: |_, b| b.exp(), ..SMOOTH },
    Function { op: "exp2.default", to: 8.0, of: f64::exp2, slope: |_, b| b.exp2(), ..SMOOTH },
    Function { op: "expm1.default", to: 6.0, of: f64::exp_m1, slope: |_, b| b.exp(), ..SMOOTH },
    Function { op: "log.default", from: 0.1, of: f64::ln, slope: |a, _| 1.0 / a, ..SMOOTH },
    Function { op: "log2.default", from: 0.1, of: f64::log2, slope: |a, _| 1.5 / a, ..SMOOTH },
    Function { op: "log10.default", from: 0.1, of: f64::log10, slope: |a, _| 1.0 / a, ..SMOOTH },
    Function {
        op: "log1p.default",
        from: -0.9,
        of: f64::ln_1p,
        slope: |a, _| 1.0 / (1.0 + a),
        ..SMOOTH
    },
    Function { op: "sin.default", from: -100.0, to: 100.0, within: Some((-1.0, 1.0)), ..SMOOTH },
    Function { op: "cos.default", from: -100.0, to: 100.0, within: Some((-1.0, 1.0)), ..SMOOTH },
    Function { op: "tan.default", from: -1.2, to: 1.2, of: f64::tan, slope: |_, _| 8.0, ..SMOOTH },
    Function {
        op: "asin.default",
        from: -0.9,
        to: 0.9,
        of: f64::asin,
        slope: |_, _| 2.5,
        ..SMOOTH
    },
    Function {
        op: "acos.default",
        from: -0.9,
        to: 0.9,
        of: f64::acos,
        slope: |_, _| 2.5,
        ..SMOOTH
    },
    Function { op: "atan.default", of: f64::atan, ..SMOOTH },
    Function {
        op: "sinh.default",
        from: -5.0,
        to: 5.0,
        of: f64::sinh,
        slope: |_, _| 75.0,
        ..SMOOTH
    },
    Function {
        op: "cosh.default",
        from: -5.0,
        to: 5.0,
        slope: |_, _| 75.0,
        within: Some((1.0, 75.0)),
        ..SMOOTH
    },
    Function { op: "tanh.default", of: f64::tanh, ..SMOOTH },
    Function { op: "asinh.default", of: f64::asinh, ..SMOOTH },
    Function { op: "acosh.default", from: 1.1, of: f64::acosh, slope: |_, _| 2.2, ..SMOOTH },
    Function {
        op: "atanh.default",
        from: -0.9,
        to: 0.9,
        of: f64::atanh,
        slope: |_, _| 5.3,
        ..SMOOTH
    },
    Function { op: "erf.default", slope: |_, _| 1.2, within: Some((-1.0, 1.0)), ..SMOOTH },
    Function { op: "sigmoid.default", of: |x| 1.0 / (1.0 + (-x).exp()), ..SMOOTH },
    Function { op: "silu.default", slope: |_, _| 1.1, within: Some((-0.3, f64::MAX)), ..SMOOTH },
    Function { op: "gelu.default", slope: |_, _| 1.2, within: Some((-0.2, f64::MAX)), ..SMOOTH },
];

impl Function {
    /// The results' interval for arguments in another; with what infinities give.
    pub(super) fn interval(&self, low: f64, high: f64, special: bool) -> (f64, f64) {
        if let Some((least, most)) = self.within {
            // Those without a highest result grow no faster than their argument.
            let bound = low.abs().max(high.abs()).max(1.0);
            return (least, if most == f64::MAX { bound } else { most });
        }
        let ends = [f64::NEG_INFINITY, low, high, f64::INFINITY];
        let ends = if special { &ends[..] } else { &ends[1..3] };
        let results = ends.iter().map(|x| (self.of)(*x)).filter(|y| y.is_finite());
        results.fold((f64::MAX, f64::MIN), |(a, b), y| (a.min(y), b.max(y)))
    }
}
