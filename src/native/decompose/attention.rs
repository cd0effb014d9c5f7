//! Scaled dot-product attention in all forms that PyTorch exports.
//!
//! Invariant: query, key, value and mask reach the operation with four
//! dimensions; heads of the query that share a key are not expanded.

use super::{
    super::{
        core::{Op, ValueId},
        size::Size,
    },
    Args, Outputs, Rule, Why,
    builder::Builder,
    one,
    promote::is_float,
    shapes::{product, show},
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
    let out = args.b.push(Op::attention(causal, scale), reads, dtype, shape);
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
