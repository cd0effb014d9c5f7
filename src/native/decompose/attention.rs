//! Scaled dot-product attention in all forms that PyTorch exports.
//!
//! Invariant: query, key, value and mask reach the operation with four
//! dimensions; heads of the query that share a key are not expanded.

use kiln_proto::graph::DType;

use super::{
    super::{
        core::{Domain, Fun, Number, Op, Reduction, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::{Arg, Builder},
    elementwise::stored,
    one,
    products::matmul,
    promote::is_float,
    shapes::{product, show},
    softmax::exponentials,
    unsupported,
};

pub(super) fn rule(name: &str) -> Option<Rule> {
    Some(match name {
        "scaled_dot_product_attention.default"
        | "_scaled_dot_product_flash_attention.default"
        | "_scaled_dot_product_efficient_attention.default"
        | "_scaled_dot_product_cudnn_attention.default"
        | "_scaled_dot_product_flash_attention_for_cpu.default"
        | "_scaled_dot_product_attention_math.default" => attention,
        _ => return None,
    })
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
    let out = match dtype {
        // No kernel keeps `f64` scores.
        DType::F64 => pieces(args.b, &reads, causal, scale, shape)?,
        _ => args.b.push(Op::attention(causal, scale), reads, dtype, shape),
    };
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

/// The attention of `reads` (query, key, value and perhaps a mask) as products and a softmax.
fn pieces(
    b: &mut Builder,
    reads: &[ValueId],
    causal: bool,
    scale: f64,
    shape: Vec<Size>,
) -> Result<ValueId, Why> {
    let [q, k, v, mask @ ..] = reads else { return Err("three tensors".into()) };
    let dtype = b.dtype(*q);
    let heads = b.shape(*q)[1].clone();
    let (k, v) = (repeated(b, *k, &heads), repeated(b, *v, &heads));
    let keys = b.shape(k)[2].clone();
    if keys.is(0) {
        return Ok(b.push(Op::Full(stored(Number::Int(0), dtype)), vec![], dtype, shape));
    }
    let turned = b.permute(k, &[0, 1, 3, 2]);
    let scores = matmul(b, *q, turned, dtype)?;
    let mut scores = b.map(Fun::Mul, Domain::Float, &[scores.into(), scale.into()], dtype)?;
    let hidden = || Arg::from(f64::NEG_INFINITY);
    if causal {
        let rows = b.shape(scores)[2].clone();
        let (row, key) = (b.positions(&rows, 2, 4), b.positions(&keys, 3, 4));
        let seen = b.map(Fun::Le, Domain::Int, &[key.into(), row.into()], DType::Bool)?;
        let choice = [seen.into(), scores.into(), hidden()];
        scores = b.map(Fun::Where, Domain::Float, &choice, dtype)?;
    }
    let test = mask.first().is_none_or(|mask| b.dtype(*mask) == DType::Bool);
    // In f64 PyTorch computes it in pieces, by a softmax that gives zero in any such row.
    let safe = test || dtype == DType::F64;
    if let Some(mask) = mask.first() {
        let (fun, args) = match test {
            true => (Fun::Where, vec![Arg::from(*mask), scores.into(), hidden()]),
            false => (Fun::Add, vec![Arg::from(scores), (*mask).into()]),
        };
        scores = b.map(fun, Domain::Float, &args, dtype)?;
    }
    let [_, exp, sum] = exponentials(b, scores, 3)?;
    let mut weights = b.map(Fun::Div, Domain::Float, &[exp.into(), sum.into()], dtype)?;
    if safe {
        // A row that sees nothing gives zero.
        let most = b.reduce_keep(Reduction::Max, scores, &[3], dtype)?;
        let none = b.test(Fun::Eq, &[most.into(), f64::NEG_INFINITY.into()])?;
        let choice = [none.into(), 0.0.into(), weights.into()];
        weights = b.map(Fun::Where, Domain::Float, &choice, dtype)?;
    }
    matmul(b, weights, v, dtype)
}

/// `x` (`[b, g, t, d]`) with each of its heads as often as `heads` has it.
fn repeated(b: &mut Builder, x: ValueId, heads: &Size) -> ValueId {
    let shape = b.shape(x);
    if shape[1] == *heads {
        return x;
    }
    let mut deep = shape.clone();
    deep.insert(2, heads.div_floor(&shape[1]));
    let each = b.unsqueeze(x, 2);
    let each = b.expand(each, deep);
    let mut whole = shape;
    whole[1] = heads.clone();
    b.reshape(each, whole)
}
