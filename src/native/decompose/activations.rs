//! Activation functions: a few functions each, in the inner type, rounded once.
//!
//! Invariant: the last function of each writes the result's type, all before it the inner one.

use super::{
    super::core::{Domain, Fun, ValueId},
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder},
    one, unsupported,
};

/// Arithmetic in the inner type, as far as the last step.
type Steps = fn(&mut Builder, ValueId, &Numbers) -> Result<(Fun, Vec<Arg>), Why>;

/// The numbers that an activation takes, by name, with their defaults.
struct Numbers(Vec<f64>);

/// Name, its numbers, its steps.
type Activation = (&'static str, &'static [(&'static str, f64)], Steps);

const TABLE: &[Activation] = &[
    ("relu", &[], |_, x, _| Ok((Fun::Max, vec![x.into(), 0.0.into()]))),
    ("relu6", &[], |b, x, _| {
        let low = b.f(Fun::Max, &[x.into(), 0.0.into()])?;
        Ok((Fun::Min, vec![low.into(), 6.0.into()]))
    }),
    ("hardtanh", &[("min_val", -1.0), ("max_val", 1.0)], |b, x, n| {
        let low = b.f(Fun::Max, &[x.into(), n.0[0].into()])?;
        Ok((Fun::Min, vec![low.into(), n.0[1].into()]))
    }),
    ("silu", &[], |b, x, _| {
        let gate = b.f(Fun::Sigmoid, &[x.into()])?;
        Ok((Fun::Mul, vec![x.into(), gate.into()]))
    }),
    ("mish", &[], |b, x, _| {
        let soft = softplus(b, x, 1.0, 20.0)?;
        let gate = b.f(Fun::Tanh, &[soft.into()])?;
        Ok((Fun::Mul, vec![x.into(), gate.into()]))
    }),
    ("softplus", &[("beta", 1.0), ("threshold", 20.0)], |b, x, n| {
        let soft = softplus(b, x, n.0[0], n.0[1])?;
        Ok((Fun::Id, vec![soft.into()]))
    }),
    ("log_sigmoid", &[], |b, x, _| {
        let low = b.f(Fun::Min, &[x.into(), 0.0.into()])?;
        let size = b.f(Fun::Abs, &[x.into()])?;
        let size = b.f(Fun::Neg, &[size.into()])?;
        let rest = b.f(Fun::Exp, &[size.into()])?;
        let rest = b.f(Fun::Log1p, &[rest.into()])?;
        Ok((Fun::Sub, vec![low.into(), rest.into()]))
    }),
    ("hardsigmoid", &[], |b, x, _| {
        let gate = hard_gate(b, x)?;
        Ok((Fun::Div, vec![gate.into(), 6.0.into()]))
    }),
    ("hardswish", &[], |b, x, _| {
        let gate = hard_gate(b, x)?;
        let product = b.f(Fun::Mul, &[x.into(), gate.into()])?;
        Ok((Fun::Div, vec![product.into(), 6.0.into()]))
    }),
    ("leaky_relu", &[("negative_slope", 0.01)], |b, x, n| {
        let slope = b.f(Fun::Mul, &[x.into(), n.0[0].into()])?;
        positive_else(b, x, slope)
    }),
    ("elu", &[("alpha", 1.0), ("scale", 1.0), ("input_scale", 1.0)], |b, x, n| {
        let [alpha, scale, input_scale] = [n.0[0], n.0[1], n.0[2]];
        let up = b.f(Fun::Mul, &[x.into(), scale.into()])?;
        let down = b.f(Fun::Mul, &[x.into(), input_scale.into()])?;
        let down = b.f(Fun::Expm1, &[down.into()])?;
        let down = b.f(Fun::Mul, &[down.into(), (alpha * scale).into()])?;
        let above = b.test(Fun::Gt, &[x.into(), 0.0.into()])?;
        Ok((Fun::Where, vec![above.into(), up.into(), down.into()]))
    }),
    ("celu", &[("alpha", 1.0)], |b, x, n| {
        let down = b.f(Fun::Div, &[x.into(), n.0[0].into()])?;
        let down = b.f(Fun::Expm1, &[down.into()])?;
        let down = b.f(Fun::Mul, &[down.into(), n.0[0].into()])?;
        positive_else(b, x, down)
    }),
    ("selu", &[], |b, x, _| {
        const ALPHA: f64 = 1.673_263_242_354_377_2;
        const SCALE: f64 = 1.050_700_987_355_480_5;
        let up = b.f(Fun::Mul, &[x.into(), SCALE.into()])?;
        let down = b.f(Fun::Expm1, &[x.into()])?;
        let down = b.f(Fun::Mul, &[down.into(), (ALPHA * SCALE).into()])?;
        let above = b.test(Fun::Gt, &[x.into(), 0.0.into()])?;
        Ok((Fun::Where, vec![above.into(), up.into(), down.into()]))
    }),
    ("softsign", &[], |b, x, _| {
        let size = b.f(Fun::Abs, &[x.into()])?;
        let size = b.f(Fun::Add, &[size.into(), 1.0.into()])?;
        Ok((Fun::Div, vec![x.into(), size.into()]))
    }),
    ("tanhshrink", &[], |b, x, _| {
        let tanh = b.f(Fun::Tanh, &[x.into()])?;
        Ok((Fun::Sub, vec![x.into(), tanh.into()]))
    }),
    ("hardshrink", &[("lambd", 0.5)], |b, x, n| {
        let size = b.f(Fun::Abs, &[x.into()])?;
        let near = b.test(Fun::Le, &[size.into(), n.0[0].into()])?;
        Ok((Fun::Where, vec![near.into(), 0.0.into(), x.into()]))
    }),
    ("softshrink", &[("lambd", 0.5)], |b, x, n| {
        let size = b.f(Fun::Abs, &[x.into()])?;
        let left = b.f(Fun::Sub, &[size.into(), n.0[0].into()])?;
        let left = b.f(Fun::Max, &[left.into(), 0.0.into()])?;
        let sign = b.f(Fun::Sign, &[x.into()])?;
        Ok((Fun::Mul, vec![sign.into(), left.into()]))
    }),
    ("threshold", &[("threshold", 0.0), ("value", 0.0)], |b, x, n| {
        let below = b.test(Fun::Le, &[x.into(), n.0[0].into()])?;
        Ok((Fun::Where, vec![below.into(), n.0[1].into(), x.into()]))
    }),
];

pub(super) fn rule(name: &str) -> Option<Rule> {
    match name {
        "gelu.default" => return Some(gelu),
        "glu.default" => return Some(glu),
        "prelu.default" | "_prelu_kernel.default" => return Some(prelu),
        "log_sigmoid_forward.default" => return Some(activation),
        _ => {}
    }
    let base = name.strip_suffix(".default")?;
    TABLE.iter().any(|(known, ..)| *known == base).then_some(activation)
}

fn activation(args: &mut Args<'_>) -> Outputs {
    let name = args.node.op.trim_start_matches("aten.").trim_end_matches(".default");
    let name = name.trim_end_matches("_forward");
    let found = TABLE.iter().find(|(known, ..)| *known == name).ok_or("unknown")?;
    let (_, numbers, steps) = found;
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    if !super::promote::is_float(dtype) {
        if name == "relu" {
            return one(args.b.map(Fun::Max, Domain::Int, &[x.into(), 0i64.into()], dtype)?);
        }
        return unsupported(format!("{name} of {dtype}"));
    }
    let numbers: Result<Vec<f64>, Why> =
        numbers.iter().map(|(name, default)| args.float(name, *default)).collect();
    let (fun, operands) = steps(args.b, x, &Numbers(numbers?))?;
    one(args.b.map(fun, Domain::Float, &operands, dtype)?)
}

/// `log(1 + exp(beta * x)) / beta`, and `x` where that is the same.
fn softplus(b: &mut Builder, x: ValueId, beta: f64, threshold: f64) -> Result<ValueId, Why> {
    let scaled = b.f(Fun::Mul, &[x.into(), beta.into()])?;
    let soft = b.f(Fun::Exp, &[scaled.into()])?;
    let soft = b.f(Fun::Log1p, &[soft.into()])?;
    let soft = b.f(Fun::Div, &[soft.into(), beta.into()])?;
    let far = b.test(Fun::Gt, &[scaled.into(), threshold.into()])?;
    Ok(b.f(Fun::Where, &[far.into(), x.into(), soft.into()])?)
}

/// `x + 3`, from 0 to 6.
fn hard_gate(b: &mut Builder, x: ValueId) -> Result<ValueId, Why> {
    let gate = b.f(Fun::Add, &[x.into(), 3.0.into()])?;
    let gate = b.f(Fun::Max, &[gate.into(), 0.0.into()])?;
    Ok(b.f(Fun::Min, &[gate.into(), 6.0.into()])?)
}

fn positive_else(b: &mut Builder, x: ValueId, other: ValueId) -> Result<(Fun, Vec<Arg>), Why> {
    let above = b.test(Fun::Gt, &[x.into(), 0.0.into()])?;
    Ok((Fun::Where, vec![above.into(), x.into(), other.into()]))
}

fn gelu(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    let b = &mut *args.b;
    let half = b.f(Fun::Mul, &[x.into(), 0.5.into()])?;
    let inner = match args.text("approximate", "none")? {
        "none" => {
            let scaled = args.b.f(Fun::Mul, &[x.into(), std::f64::consts::FRAC_1_SQRT_2.into()])?;
            args.b.f(Fun::Erf, &[scaled.into()])?
        }
        "tanh" => {
            let b = &mut *args.b;
            let square = b.f(Fun::Mul, &[x.into(), x.into()])?;
            let cube = b.f(Fun::Mul, &[square.into(), x.into()])?;
            let cube = b.f(Fun::Mul, &[cube.into(), 0.044_715.into()])?;
            let sum = b.f(Fun::Add, &[x.into(), cube.into()])?;
            let scale = std::f64::consts::SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI * 0.5;
            let scaled = b.f(Fun::Mul, &[sum.into(), scale.into()])?;
            b.f(Fun::Tanh, &[scaled.into()])?
        }
        other => return unsupported(format!("gelu as {other:?}")),
    };
    let gate = args.b.f(Fun::Add, &[inner.into(), 1.0.into()])?;
    one(args.b.map(Fun::Mul, Domain::Float, &[half.into(), gate.into()], dtype)?)
}

/// The first half times the sigmoid of the second.
fn glu(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dim = args.dim("dim", -1, args.b.rank(x))?;
    let half = args.b.shape(x)[dim].div_floor(&2.into());
    let a = args.b.slice(x, dim, 0.into(), 1, half.clone());
    let gate = args.b.slice(x, dim, half.clone(), 1, half);
    let gate = args.b.f(Fun::Sigmoid, &[gate.into()])?;
    let dtype = args.b.dtype(x);
    one(args.b.map(Fun::Mul, Domain::Float, &[a.into(), gate.into()], dtype)?)
}

/// One slope for all, or one for each channel, which is dimension 1.
fn prelu(args: &mut Args<'_>) -> Outputs {
    let (x, mut weight) = (args.tensor("self")?, args.tensor("weight")?);
    let dtype = args.b.dtype(x);
    if args.b.rank(weight) == 1 && args.b.rank(x) > 1 {
        let mut shape = vec![1.into(); args.b.rank(x)];
        shape[1] = args.b.shape(weight)[0].clone();
        weight = args.b.reshape(weight, shape);
    }
    let slope = args.b.f(Fun::Mul, &[x.into(), weight.into()])?;
    let (fun, operands) = positive_else(args.b, x, slope)?;
    one(args.b.map(fun, Domain::Float, &operands, dtype)?)
}
