//! Tensors from numbers: filled, counted, triangular.
//!
//! Invariant: numbers are stored as a tensor of the result's type holds them.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::domain,
    elementwise::stored,
    one,
    promote::is_float,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "zeros.default" | "zeros_like.default" | "new_zeros.default" => {
            |args| filled(args, Number::Int(0))
        }
        "ones.default" | "ones_like.default" | "new_ones.default" => {
            |args| filled(args, Number::Int(1))
        }
        // What is in memory that nobody wrote is anything: zeros do.
        "empty.memory_format"
        | "empty_like.default"
        | "new_empty.default"
        | "empty_permuted.default"
        | "empty_strided.default"
        | "new_empty_strided.default" => |args| filled(args, Number::Int(0)),
        "full.default" | "full_like.default" | "new_full.default" => |args| {
            let number = args.number("fill_value")?;
            filled(args, number)
        },
        "fill.Scalar" => |args| {
            let number = args.number("value")?;
            filled(args, number)
        },
        "fill.Tensor" => fill,
        "scalar_tensor.default" => |args| {
            let number = args.number("s")?;
            filled(args, number)
        },
        "arange.default" | "arange.start" | "arange.start_step" => arange,
        "linspace.default" => linspace,
        "eye.default" | "eye.m" => eye,
        "tril.default" => |args| triangle(args, Fun::Le),
        "triu.default" => |args| triangle(args, Fun::Ge),
        "diagonal.default" | "diagonal_copy.default" => diagonal,
        _ => return None,
    })
}

/// One number everywhere, in the declared type where none is asked for.
fn filled(args: &mut Args<'_>, number: Number) -> Outputs {
    let (declared, shape) = args.declared(0)?;
    let dtype = args.dtype()?.unwrap_or(declared);
    let base = ["self", "size"].map(|name| args.node.arg(name).is_some());
    let shape = match base {
        [_, true] => args.shape("size")?,
        [true, false] => {
            let x = args.tensor("self")?;
            args.b.shape(x)
        }
        [false, false] => shape,
    };
    let op = Op::Full(stored(number, dtype));
    one(args.b.push(op, vec![], dtype, shape))
}

fn fill(args: &mut Args<'_>) -> Outputs {
    let (x, value) = (args.tensor("self")?, args.tensor("value")?);
    let value = args.b.cast(value, args.b.dtype(x));
    let shape = args.b.shape(x);
    one(args.b.expand(value, shape))
}

fn arange(args: &mut Args<'_>) -> Outputs {
    let (declared, shape) = args.declared(0)?;
    let dtype = args.dtype()?.unwrap_or(declared);
    let start = args.maybe_number("start")?.unwrap_or(Number::Int(0));
    let step = args.maybe_number("step")?.unwrap_or(Number::Int(1));
    let end = args.number("end")?;
    let [count] = &shape[..] else { return Err("not one dimension".into()) };
    if let Some(expected) = steps(&start, &end, &step)
        && !args.b.same(&expected, count)
    {
        return Err(Why::Wrong(format!("declared with {count} elements, computes {expected}")));
    }
    // Floats are counted in f32 and rounded; whole numbers stay whole.
    let counted = match (&start, &step) {
        (Number::Float(_), _) | (_, Number::Float(_)) => args.b.inner,
        _ => DType::I64,
    };
    let (start, step) = (stored_or_size(start, counted), stored_or_size(step, counted));
    let line = args.b.push(Op::Iota { start, step }, vec![], counted, shape);
    one(args.b.cast(line, dtype))
}

/// A number for an iota: in floats even where it is whole.
fn stored_or_size(number: Number, dtype: DType) -> Number {
    match number {
        Number::Int(int) if is_float(dtype) => Number::Float(int as f64),
        other => stored(other, dtype),
    }
}

/// How many steps there are from `start` to `end`, where that can be told.
fn steps(start: &Number, end: &Number, step: &Number) -> Option<Size> {
    let size = |number: &Number| match number {
        Number::Int(int) => Some(Size::from(*int)),
        Number::Size(size) => Some(size.clone()),
        _ => None,
    };
    let float = |number: &Number| match number {
        Number::Int(int) => Some(*int as f64),
        Number::Float(float) => Some(*float),
        _ => None,
    };
    if let (Some(start), Some(end), Some(step)) = (size(start), size(end), size(step)) {
        let span = &end - &start;
        return match step.known() {
            Some(1) => Some(span),
            Some(step) if step > 0 => Some(span.div_ceil(&Size::from(step))),
            Some(step) if step < 0 => Some((-&span).div_ceil(&Size::from(step.saturating_neg()))),
            _ => None,
        };
    }
    let steps = (float(end)? - float(start)?) / float(step)?;
    Some(Size::from(steps.ceil() as i64))
}

/// `steps` numbers from `start` to `end`, both included; the second half is
/// counted from the end, as PyTorch does.
fn linspace(args: &mut Args<'_>) -> Outputs {
    let (declared, shape) = args.declared(0)?;
    let dtype = args.dtype()?.unwrap_or(declared);
    let (start, end) = (args.float("start", 0.0)?, args.float("end", 0.0)?);
    let count = args.maybe_int("steps")?.ok_or("no number of steps")?;
    if count < 2 {
        return one(args.b.push(Op::Full(Number::Float(start)), vec![], dtype, shape));
    }
    let step = (end - start) / (count - 1) as f64;
    let iota = |first: f64| Op::Iota { start: Number::Float(first), step: Number::Float(step) };
    let up = args.b.push(iota(start), vec![], args.b.inner, shape.clone());
    let down =
        args.b.push(iota(end - step * (count - 1) as f64), vec![], args.b.inner, shape.clone());
    let at = args.b.positions(&shape[0], 0, 1);
    let early = args.b.map(Fun::Lt, Domain::Int, &[at.into(), (count / 2).into()], DType::Bool)?;
    one(args.b.map(Fun::Where, Domain::Float, &[early.into(), up.into(), down.into()], dtype)?)
}

/// Row and column numbers for a matrix of the shape's last two dimensions.
fn rows_and_columns(args: &mut Args<'_>, shape: &[Size]) -> Result<[ValueId; 2], Why> {
    let Some((_, [m, n])) = shape.split_last_chunk::<2>() else { return Err("no matrix".into()) };
    Ok([args.b.positions(m, 0, 2), args.b.positions(n, 1, 2)])
}

fn eye(args: &mut Args<'_>) -> Outputs {
    let (declared, shape) = args.declared(0)?;
    let dtype = args.dtype()?.unwrap_or(declared);
    let [row, column] = rows_and_columns(args, &shape)?;
    let there = args.b.map(Fun::Eq, Domain::Int, &[row.into(), column.into()], DType::Bool)?;
    one(args.b.cast(there, dtype))
}

/// Zero where `column - row` is on the other side of the diagonal.
fn triangle(args: &mut Args<'_>, fun: Fun) -> Outputs {
    let x = args.tensor("self")?;
    let (dtype, shape) = (args.b.dtype(x), args.b.shape(x));
    let diagonal = args.maybe_size("diagonal")?.unwrap_or_default();
    let diagonal = diagonal.known().map_or(Number::Size(diagonal), Number::Int);
    let [row, column] = rows_and_columns(args, &shape)?;
    let limit = args.b.map(Fun::Add, Domain::Int, &[row.into(), diagonal.into()], DType::I64)?;
    let inside = args.b.map(fun, Domain::Int, &[column.into(), limit.into()], DType::Bool)?;
    let zero = stored(Number::Int(0), dtype);
    one(args.b.map(Fun::Where, domain(dtype), &[inside.into(), x.into(), zero.into()], dtype)?)
}

/// Elements `[i, i + offset]` of two dimensions, as a new last one.
fn diagonal(args: &mut Args<'_>) -> Outputs {
    let x = args.tensor("self")?;
    let (rank, offset) = (args.b.rank(x), args.int("offset", 0)?);
    let (a, b) = (args.dim("dim1", 0, rank)?, args.dim("dim2", 1, rank)?);
    if rank < 2 || a == b {
        return unsupported("the diagonal of no matrix");
    }
    let (dtype, shape) = args.declared(0)?;
    let count = shape.last().cloned().ok_or("no dimensions")?;
    let positions = |args: &mut Args<'_>, first: i64| {
        let op = Op::Iota { start: Number::Int(first), step: Number::Int(1) };
        args.b.push(op, vec![], DType::I64, vec![count.clone()])
    };
    let (along_a, along_b) =
        (positions(args, offset.saturating_neg().max(0)), positions(args, offset.max(0)));
    let (dims, reads) = match a < b {
        true => (vec![a, b], vec![x, along_a, along_b]),
        false => (vec![b, a], vec![x, along_b, along_a]),
    };
    let mut first = vec![count];
    first.extend_from_slice(&shape[..shape.len() - 1]);
    let found = args.b.push(Op::Index { dims, wrap: false }, reads, dtype, first);
    one(args.b.move_dim(found, 0, shape.len() - 1))
}
