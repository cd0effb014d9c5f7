//! Products of matrices and attention.
//!
//! Invariant: a product and what is added to it are rounded once, together.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Fun, Number, Op, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder, domain},
    one,
    promote::is_float,
    shapes::{product, show},
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "linear.default" => linear,
        "mm.default" | "bmm.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor("mat2")?);
            plain(args, a, b)
        },
        "matmul.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor("other")?);
            plain(args, a, b)
        },
        "mv.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor("vec")?);
            plain(args, a, b)
        },
        "dot.default" | "vdot.default" => |args| {
            let (a, b) = (args.tensor("self")?, args.tensor(right_of_dot(args))?);
            plain(args, a, b)
        },
        "addmm.default" => |args| added(args, "mat1", "mat2"),
        "baddbmm.default" => |args| added(args, "batch1", "batch2"),
        "addmv.default" => |args| added(args, "mat", "vec"),
        "outer.default" | "ger.default" => outer,
        "einsum.default" => einsum,
        "scaled_dot_product_attention.default"
        | "_scaled_dot_product_flash_attention.default"
        | "_scaled_dot_product_efficient_attention.default"
        | "_scaled_dot_product_cudnn_attention.default"
        | "_scaled_dot_product_flash_attention_for_cpu.default"
        | "_scaled_dot_product_attention_math.default" => attention,
        _ => return None,
    })
}

fn right_of_dot(args: &Args<'_>) -> &'static str {
    if args.node.arg("other").is_some() { "other" } else { "tensor" }
}

fn plain(args: &mut Args<'_>, a: ValueId, b: ValueId) -> Outputs {
    let dtype = args.b.dtype(a);
    one(matmul(args.b, a, b, dtype)?)
}

/// The product of any ranks, with broadcasting, as `dtype`.
pub(super) fn matmul(
    b: &mut Builder,
    left: ValueId,
    right: ValueId,
    dtype: DType,
) -> Result<ValueId, Why> {
    let (x, y) = (b.shape(left), b.shape(right));
    let wrong = || Why::Wrong(format!("a product of shapes {} and {}", show(&x), show(&y)));
    if b.dtype(left) != b.dtype(right) {
        let (x, y) = (b.dtype(left), b.dtype(right));
        return Err(Why::Wrong(format!("a product of {x} and {y}")));
    }
    if b.dtype(left) == DType::Bool {
        return unsupported("a product of truth values");
    }
    if x.is_empty() || y.is_empty() {
        return Err(wrong());
    }
    // Vectors are matrices with one row or column.
    let mut left = left;
    let mut right = right;
    if x.len() == 1 {
        left = b.unsqueeze(left, 0);
    }
    if y.len() == 1 {
        right = b.unsqueeze(right, 1);
    }
    let (xs, ys) = (b.shape(left), b.shape(right));
    let (Some((xb, [m, k])), Some((yb, [k2, n]))) =
        (xs.split_last_chunk::<2>(), ys.split_last_chunk::<2>())
    else {
        return Err(wrong());
    };
    if !b.same(k, k2) {
        return Err(wrong());
    }
    let batch = b.broadcast(xb, yb).map_err(|_| wrong())?;
    let mut shape = batch.clone();
    if x.len() > 1 {
        shape.push(m.clone());
    }
    if y.len() > 1 {
        shape.push(n.clone());
    }
    let value = if yb.is_empty() && !xb.is_empty() {
        // A batch against one matrix is one product with more rows.
        let rows = &product(xb) * m;
        let flat = b.reshape(left, vec![rows.clone(), k.clone()]);
        b.push(Op::MatMul, vec![flat, right], dtype, vec![rows, n.clone()])
    } else {
        let with = |last: [&Size; 2]| [batch.as_slice(), &last.map(Clone::clone)].concat();
        let left = b.expand(left, with([m, k]));
        let right = b.expand(right, with([k, n]));
        b.push(Op::MatMul, vec![left, right], dtype, with([m, n]))
    };
    Ok(b.reshape(value, shape))
}

/// The type of what is summed before it is rounded.
fn inner(dtype: DType) -> DType {
    if is_float(dtype) { DType::F32 } else { dtype }
}

fn linear(args: &mut Args<'_>) -> Outputs {
    let (x, weight) = (args.tensor("input")?, args.tensor("weight")?);
    let dtype = args.b.dtype(x);
    let weight = match args.b.rank(weight) {
        1 => weight,
        2 => args.b.permute(weight, &[1, 0]),
        rank => return Err(Why::Wrong(format!("a weight with {rank} dimensions"))),
    };
    match args.maybe_tensor("bias")? {
        None => one(matmul(args.b, x, weight, dtype)?),
        Some(bias) => {
            let product = matmul(args.b, x, weight, inner(dtype))?;
            one(plus(args, product, bias.into(), dtype)?)
        }
    }
}

/// `product + other`, of the product's shape.
fn plus(args: &mut Args<'_>, product: ValueId, other: Arg, dtype: DType) -> Result<ValueId, Why> {
    let sum = args.b.map(Fun::Add, domain(dtype), &[product.into(), other], dtype)?;
    let (a, b) = (args.b.shape(sum), args.b.shape(product));
    if !args.b.same_shape(&a, &b) {
        return Err(Why::Wrong(format!("{} added to {}", show(&a), show(&b))));
    }
    Ok(sum)
}

/// `beta * self + alpha * (left @ right)`
fn added(args: &mut Args<'_>, left: &str, right: &str) -> Outputs {
    let (a, b) = (args.tensor(left)?, args.tensor(right)?);
    let dtype = args.b.dtype(a);
    let x = args.tensor("self")?;
    let alpha = args.maybe_number("alpha")?.unwrap_or(Number::Int(1));
    let beta = args.maybe_number("beta")?.unwrap_or(Number::Int(1));
    let is = |number: &Number, x: f64| match number {
        Number::Int(int) => *int as f64 == x,
        Number::Float(float) => *float == x,
        _ => false,
    };
    // What nothing is added to is rounded once as it is.
    let alone = is(&alpha, 1.0) && is(&beta, 0.0);
    let mut product = matmul(args.b, a, b, if alone { dtype } else { inner(dtype) })?;
    if alone {
        return one(product);
    }
    let d = domain(dtype);
    if !is(&alpha, 1.0) {
        product = args.b.map(Fun::Mul, d, &[product.into(), alpha.into()], inner(dtype))?;
    }
    let mut x = Arg::from(x);
    if is(&beta, 0.0) {
        // Not even NaN gets through.
        return one(args.b.cast(product, dtype));
    }
    if !is(&beta, 1.0) {
        x = args.b.map(Fun::Mul, d, &[x, beta.into()], inner(dtype))?.into();
    }
    one(plus(args, product, x, dtype)?)
}

fn outer(args: &mut Args<'_>) -> Outputs {
    let (a, b) = (args.tensor("self")?, args.tensor("vec2")?);
    let dtype = args.b.dtype(a);
    let a = args.b.unsqueeze(a, 1);
    one(args.b.map(Fun::Mul, domain(dtype), &[a.into(), b.into()], dtype)?)
}

/// One or two operands, each letter once in an operand.
fn einsum(args: &mut Args<'_>) -> Outputs {
    let equation: String = args.text("equation", "")?.split_whitespace().collect();
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs.to_owned(), output.to_owned()),
        None => {
            let letters: Vec<char> = equation.chars().filter(|c| *c != ',').collect();
            let mut once: Vec<char> = letters.clone();
            once.retain(|c| letters.iter().filter(|l| *l == c).count() == 1);
            once.sort_unstable();
            (equation.clone(), once.into_iter().collect())
        }
    };
    let operands = args.tensors("tensors")?;
    let terms: Vec<Vec<char>> = inputs.split(',').map(|term| term.chars().collect()).collect();
    let output: Vec<char> = output.chars().collect();
    let plain = |term: &Vec<char>| {
        term.iter().all(|c| c.is_ascii_alphabetic())
            && term.iter().all(|c| term.iter().filter(|l| *l == c).count() == 1)
    };
    let ranks_fit = || {
        let ranks = terms.iter().zip(&operands);
        terms.len() == operands.len() && ranks.into_iter().all(|(t, x)| t.len() == args.b.rank(*x))
    };
    if !terms.iter().all(plain) || !plain(&output) || !ranks_fit() || operands.len() > 2 {
        return unsupported(format!("the equation {equation:?}"));
    }
    let dtype = args.b.dtype(operands[0]);
    let kept = |c: &char, other: Option<&Vec<char>>| {
        output.contains(c) || other.is_some_and(|other| other.contains(c))
    };
    // What only one operand has and the result has not is summed first.
    let mut parts = Vec::new();
    for (i, (term, value)) in terms.iter().zip(operands).enumerate() {
        let other = terms.iter().enumerate().find(|(j, _)| *j != i).map(|(_, term)| term);
        let gone: Vec<usize> = (0..term.len()).filter(|d| !kept(&term[*d], other)).collect();
        let value = match gone.is_empty() {
            true => value,
            false => args.b.reduce(Reduction::Sum, value, &gone, dtype)?,
        };
        parts.push((term.iter().copied().filter(|c| kept(c, other)).collect::<Vec<_>>(), value));
    }
    let (letters, value) = match &parts[..] {
        [(term, value)] => (term.clone(), *value),
        [(a, x), (b, y)] => contract(args, (a, *x), (b, *y), &output)?,
        _ => return Err("no operands".into()),
    };
    let order: Option<Vec<usize>> =
        output.iter().map(|c| letters.iter().position(|l| l == c)).collect();
    one(args.b.permute(value, &order.ok_or("a letter of the result is in no operand")?))
}

/// Two operands with letters for dimensions, as a product of matrices.
fn contract(
    args: &mut Args<'_>,
    (a, x): (&[char], ValueId),
    (b, y): (&[char], ValueId),
    output: &[char],
) -> Result<(Vec<char>, ValueId), Why> {
    let both = |keep: bool| -> Vec<char> {
        a.iter().copied().filter(|c| b.contains(c) && output.contains(c) == keep).collect()
    };
    let (batch, summed) = (both(true), both(false));
    let only = |x: &[char], y: &[char]| -> Vec<char> {
        x.iter().copied().filter(|c| !y.contains(c)).collect()
    };
    let (rows, columns) = (only(a, b), only(b, a));
    let mut sizes = Vec::new();
    let mut flat = |args: &mut Args<'_>, letters: &[char], value: ValueId, groups: [&[char]; 3]| {
        let places = |group: &[char]| -> Vec<usize> {
            group.iter().filter_map(|c| letters.iter().position(|l| l == c)).collect()
        };
        let order: Vec<usize> = groups.iter().flat_map(|group| places(group)).collect();
        let shape = args.b.shape(value);
        let size = |group: &[char]| -> Vec<Size> {
            places(group).iter().map(|at| shape[*at].clone()).collect()
        };
        let groups = groups.map(size);
        let value = args.b.permute(value, &order);
        let flat = groups.iter().map(|group| product(group)).collect();
        sizes.push(groups);
        args.b.reshape(value, flat)
    };
    let left = flat(args, a, x, [&batch, &rows, &summed]);
    let right = flat(args, b, y, [&batch, &summed, &columns]);
    let dtype = args.b.dtype(x);
    let value = matmul(args.b, left, right, dtype)?;
    let shape = [&sizes[0][0][..], &sizes[0][1], &sizes[1][2]].concat();
    let value = args.b.reshape(value, shape);
    Ok(([batch, rows, columns].concat(), value))
}

fn attention(args: &mut Args<'_>) -> Outputs {
    let [q, k, v] = [args.tensor("query")?, args.tensor("key")?, args.tensor("value")?];
    if args.float("dropout_p", 0.0)? != 0.0 {
        return unsupported("attention with dropout: export the model after `.eval()`");
    }
    let mask = match args.maybe_tensor("attn_mask")? {
        Some(mask) => Some(mask),
        None => args.maybe_tensor("attn_bias")?,
    };
    let causal = args.flag("is_causal", false)?;
    let from = args.b.shape(q);
    let Some((batch, [s, d])) = from.split_last_chunk::<2>() else {
        return Err("a query with fewer than two dimensions".into());
    };
    let scale = match (args.maybe_number("scale")?, d.known()) {
        (Some(_), _) => args.float("scale", 1.0)?,
        (None, Some(d)) => 1.0 / (d as f64).sqrt(),
        (None, None) => return unsupported("attention over heads of no fixed size"),
    };
    let dtype = args.b.dtype(q);
    if !is_float(dtype) || [k, v].iter().any(|x| args.b.dtype(*x) != dtype) {
        return Err("query, key and value of different types".into());
    }
    let grouped = args.flag("enable_gqa", false)?;
    let mut four = [q, k, v];
    for x in &mut four {
        *x = with_four(args.b, *x, batch, grouped)?;
    }
    let [q4, k4, v4] = four;
    let [qs, ks, vs] = four.map(|x| args.b.shape(x));
    let divides = match (qs[1].known(), ks[1].known()) {
        (Some(h), Some(g)) => g > 0 && h % g == 0,
        _ => args.b.same(&qs[1], &ks[1]),
    };
    let fit = args.b.same(&ks[2], &vs[2]) && args.b.same(&qs[3], &ks[3]);
    if !fit || !divides || !args.b.same(&ks[1], &vs[1]) {
        let wrong = format!("attention over {}, {} and {}", show(&qs), show(&ks), show(&vs));
        return Err(Why::Wrong(wrong));
    }
    let mut reads = vec![q4, k4, v4];
    if let Some(mut mask) = mask {
        let scores = [batch, &[s.clone(), ks[2].clone()]].concat();
        let full = args.b.broadcast(&args.b.shape(mask), &scores)?;
        if full.len() != scores.len() {
            return Err("a mask with more dimensions than the scores".into());
        }
        if batch.len() > 2 || (batch.len() == 1 && args.b.rank(mask) > 2) {
            // The leading dimensions become one: only the whole mask can follow.
            mask = args.b.expand(mask, full);
            mask = with_four(args.b, mask, batch, false)?;
        }
        reads.push(mask);
    }
    let shape = vec![qs[0].clone(), qs[1].clone(), qs[2].clone(), vs[3].clone()];
    let out = args.b.push(Op::Attention { causal, scale }, reads, dtype, shape);
    let whole = [batch, &[s.clone(), vs[3].clone()]].concat();
    one(args.b.reshape(out, whole))
}

/// `x` as `[batch, heads, length, size]`, its batch that of the query.
fn with_four(b: &mut Builder, x: ValueId, batch: &[Size], grouped: bool) -> Result<ValueId, Why> {
    let shape = b.shape(x);
    let Some((own, last)) = shape.split_last_chunk::<2>() else {
        return Err("a tensor with fewer than two dimensions".into());
    };
    let mut to = batch.to_vec();
    // With groups the heads are fewer; everything else is that of the query.
    if grouped && let (Some(to), Some(own)) = (to.last_mut(), own.last()) {
        *to = own.clone();
    }
    let whole = [to.as_slice(), last].concat();
    if !b.same_shape(&b.broadcast(&shape, &whole)?, &whole) {
        return Err(Why::Wrong(format!("{} in a batch of {}", show(&shape), show(batch))));
    }
    let x = b.expand(x, whole);
    let four = match to.split_last() {
        None => vec![Size::from(1), Size::from(1)],
        Some((heads, [])) => vec![heads.clone(), Size::from(1)],
        Some((heads, rest)) => vec![product(rest), heads.clone()],
    };
    Ok(b.reshape(x, [four.as_slice(), last].concat()))
}
