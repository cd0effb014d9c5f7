//! Complex numbers, as pairs of real ones in a last dimension.
//!
//! Invariant: only a node that reads or gives complex tensors comes here, and a value that
//! stands for one has the real type and a last dimension of two: the real part, the imaginary.

use kiln_proto::graph::{Argument, DType, Graph, Node};

use super::{
    super::{
        core::{Domain, Fun, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder},
    compound::length,
    one,
    shapes::dimension,
    unsupported,
};

/// The type of the parts of a complex number.
pub(super) const fn parts(dtype: DType) -> Option<DType> {
    match dtype {
        DType::C128 => Some(DType::F64),
        DType::C64 => Some(DType::F32),
        DType::C32 => Some(DType::F16),
        _ => None,
    }
}

/// Whether a node reads or gives complex tensors.
pub(super) fn concerns(graph: &Graph, node: &Node) -> bool {
    let is_complex = |value| parts(graph.value(value).ty.dtype).is_some();
    node.tensors().chain(node.outputs.iter().copied()).any(is_complex)
}

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "polar.default" => polar,
        "complex.default" => |args| {
            let (re, im) = (args.tensor("real")?, args.tensor("imag")?);
            one(pair(args.b, re, im)?)
        },
        "view_as_complex.default"
        | "view_as_real.default"
        | "view_as_real_copy.default"
        | "view_as_complex_copy.default"
        | "alias.default"
        | "clone.default"
        | "detach.default"
        | "contiguous.default"
        | "resolve_conj.default"
        | "lift_fresh_copy.default" => same,
        "to.dtype" | "to.dtype_layout" | "to.device" | "_to_copy.default" => kept,
        "real.default" => |args| part(args, 0),
        "imag.default" => |args| part(args, 1),
        "_conj.default" | "conj.default" | "_conj_physical.default" | "conj_physical.default" => {
            conjugate
        }
        "abs.default" => magnitude,
        "angle.default" => angle,
        "mul.Tensor" => multiply,
        "add.Tensor" => |args| sum(args, Fun::Add),
        "sub.Tensor" => |args| sum(args, Fun::Sub),
        "neg.default" => negated,
        "view.default"
        | "reshape.default"
        | "unsqueeze.default"
        | "squeeze.dim"
        | "squeeze.dims"
        | "squeeze.default"
        | "flatten.using_ints"
        | "unflatten.int"
        | "_unsafe_view.default" => reshaped,
        "expand.default" => expanded,
        "transpose.int" | "permute.default" => turned,
        "slice.Tensor" | "select.int" | "index_select.default" | "narrow.default" => shifted,
        "index.Tensor" => {
            |args| super::rule("aten.index.Tensor").map_or_else(nothing, |rule| rule(args))
        }
        _ => return None,
    })
}

fn nothing() -> Outputs {
    unsupported("it is not known")
}

fn same(args: &mut Args<'_>) -> Outputs {
    one(args.tensor("self")?)
}

/// The same numbers on another device: of other types nothing is known here.
fn kept(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    if !is_complex(args, "self") || parts(args.declared(0)?.0) != Some(args.b.dtype(x)) {
        return unsupported("a complex tensor from another type, or to one");
    }
    one(x)
}

/// Both parts together.
fn pair(b: &mut Builder, re: ValueId, im: ValueId) -> Result<ValueId, Why> {
    let shape = b.broadcast(&b.shape(re), &b.shape(im))?;
    let rank = shape.len();
    let (re, im) = (b.expand(re, shape.clone()), b.expand(im, shape));
    let parts = vec![b.unsqueeze(re, rank), b.unsqueeze(im, rank)];
    Ok(b.cat(parts, rank))
}

/// The real part of a pair, or the imaginary one.
fn part_of(b: &mut Builder, pair: ValueId, which: i64) -> ValueId {
    let last = b.rank(pair) - 1;
    let part = b.slice(pair, last, Size::from(which), 1, Size::from(1));
    b.squeeze(part, last)
}

fn polar(args: &mut Args<'_>) -> Outputs {
    let (abs, angle) = (args.tensor("abs")?, args.tensor("angle")?);
    let dtype = args.b.dtype(abs);
    let mut both = Vec::with_capacity(2);
    for fun in [Fun::Cos, Fun::Sin] {
        let wave = args.b.f(fun, &[angle.into()])?;
        both.push(args.b.map(Fun::Mul, Domain::Float, &[abs.into(), wave.into()], dtype)?);
    }
    one(pair(args.b, both[0], both[1])?)
}

/// Whether the tensor of that name is complex.
fn is_complex(args: &Args<'_>, name: &str) -> bool {
    match args.node.arg(name) {
        Some(Argument::Tensor(value)) => parts(args.graph.value(*value).ty.dtype).is_some(),
        _ => false,
    }
}

fn part(args: &mut Args<'_>, which: i64) -> Outputs {
    let x = args.tensor("self")?;
    if !is_complex(args, "self") {
        return Err("no complex tensor".into());
    }
    one(part_of(args.b, x, which))
}

fn magnitude(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    let b = &mut *args.b;
    let (re, im) = (part_of(b, x, 0), part_of(b, x, 1));
    one(length(b, re.into(), im.into(), dtype)?)
}

fn angle(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    let b = &mut *args.b;
    let (re, im) = (part_of(b, x, 0), part_of(b, x, 1));
    one(b.map(Fun::Atan2, Domain::Float, &[im.into(), re.into()], dtype)?)
}

fn conjugate(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    let b = &mut *args.b;
    let (re, im) = (part_of(b, x, 0), part_of(b, x, 1));
    let im = b.map(Fun::Neg, Domain::Float, &[im.into()], dtype)?;
    one(pair(b, re, im)?)
}

fn negated(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let dtype = args.b.dtype(x);
    one(args.b.map(Fun::Neg, Domain::Float, &[x.into()], dtype)?)
}

/// The parts of an operand; of a real one there is no imaginary part.
fn operand(args: &mut Args<'_>, name: &str) -> Result<(Arg, Option<Arg>), Why> {
    if !is_complex(args, name) {
        return Ok((args.operand(name)?, None));
    }
    let x = args.tensor(name)?;
    Ok((part_of(args.b, x, 0).into(), Some(part_of(args.b, x, 1).into())))
}

/// The type of the parts of what a node gives.
fn own_type(args: &Args<'_>) -> Result<DType, Why> {
    parts(args.declared(0)?.0).ok_or_else(|| Why::Wrong("it gives no complex tensor".to_owned()))
}

fn multiply(args: &mut Args<'_>) -> Outputs {
    let dtype = own_type(args)?;
    let ((a, b), (c, d)) = (operand(args, "self")?, operand(args, "other")?);
    let builder = &mut *args.b;
    let mut times = |x: &Arg, y: &Arg| builder.f(Fun::Mul, &[x.clone(), y.clone()]);
    let ac = times(&a, &c)?;
    let (re, im) = match (&b, &d) {
        (Some(b), Some(d)) => {
            let (bd, ad, bc) = (times(b, d)?, times(&a, d)?, times(b, &c)?);
            let re = builder.map(Fun::Sub, Domain::Float, &[ac.into(), bd.into()], dtype)?;
            let im = builder.map(Fun::Add, Domain::Float, &[ad.into(), bc.into()], dtype)?;
            (re, im)
        }
        (Some(b), None) => (ac, times(b, &c)?),
        (None, Some(d)) => (ac, times(&a, d)?),
        (None, None) => return Err("no complex tensor".into()),
    };
    let (re, im) = (args.b.cast(re, dtype), args.b.cast(im, dtype));
    one(pair(args.b, re, im)?)
}

fn sum(args: &mut Args<'_>, fun: Fun) -> Outputs {
    if args.maybe_number("alpha")?.is_some_and(|a| a != super::super::core::Number::Int(1)) {
        return unsupported("a factor of what is added");
    }
    let dtype = own_type(args)?;
    let ((a, b), (c, d)) = (operand(args, "self")?, operand(args, "other")?);
    let re = args.b.map(fun, Domain::Float, &[a, c], dtype)?;
    let none = || Arg::from(0.0);
    let (b, d) = (b.unwrap_or_else(none), d.unwrap_or_else(none));
    let im = args.b.map(fun, Domain::Float, &[b, d], dtype)?;
    one(pair(args.b, re, im)?)
}

/// Under the declared shape.
fn reshaped(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let mut shape = args.declared(0)?.1;
    shape.push(Size::from(2));
    if !args.b.same(&super::shapes::product(&shape), &super::shapes::product(&args.b.shape(x))) {
        return Err("as many elements under no such shape".into());
    }
    one(args.b.reshape(x, shape))
}

fn expanded(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let mut shape = args.declared(0)?.1;
    shape.push(Size::from(2));
    let rank = args.b.rank(x);
    // New dimensions come first, the pair stays last.
    let mut own = args.b.shape(x);
    while own.len() < shape.len() {
        own.insert(0, Size::from(1));
    }
    let x = if rank < shape.len() { args.b.reshape(x, own) } else { x };
    one(args.b.expand(x, shape))
}

fn turned(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x) - 1;
    let mut order: Vec<usize> = match args.dims("dims", rank)? {
        Some(dims) => dims,
        None => {
            let (a, b) = (args.dim("dim0", 0, rank)?, args.dim("dim1", 0, rank)?);
            let mut order: Vec<usize> = (0..rank).collect();
            order.swap(a, b);
            order
        }
    };
    if order.len() != rank {
        return Err("some of the dimensions".into());
    }
    order.push(rank);
    one(args.b.permute(x, &order))
}

/// The rule for real tensors, for which a dimension that counts from the end is another one.
fn shifted(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let rank = args.b.rank(x) - 1;
    let mut node = args.node.clone();
    for (name, argument) in &mut node.args {
        if let (true, Argument::Int(dim)) = (name == "dim", &argument) {
            *argument = Argument::Int(dimension(*dim, rank)? as i64);
        }
    }
    let Some(rule) = super::rule(&node.op) else { return nothing() };
    let Args { graph, symbols, values, .. } = *args;
    rule(&mut Args { graph, node: &node, symbols, values, b: args.b })
}
