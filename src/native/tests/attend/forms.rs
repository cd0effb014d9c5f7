//! The forms in which attention in pieces comes: each becomes one kernel with
//! the pieces' numbers.

use kiln_proto::graph::{Argument, DType};

use super::bench::{Bench, LOW, T};
use DType::{BF16, Bool, F32};

const SHAPE: [usize; 4] = [2, 2, 5, 8];
/// Keys.
const K: usize = 7;

fn three(b: &mut Bench, dtype: DType, lead: &[usize]) -> [T; 3] {
    let shape = |rows, width| [lead, &[rows, width]].concat();
    [(5, 8), (K, 8), (K, 4)].map(|(rows, width)| b.input(dtype, &shape(rows, width)))
}

/// Attention whose scores go through `with` between the products and the softmax.
fn between(b: &mut Bench, name: &'static str, with: impl Fn(&mut Bench, &T) -> T) {
    let [q, k, v] = three(b, F32, &SHAPE[..2]);
    let scores = b.products(&q, &k);
    let scores = with(b, &scores);
    let weights = b.softmax(&scores);
    let out = b.matmul(&weights, &v);
    b.output(name, &out);
}

#[test]
fn a_scale_may_be_anywhere() {
    let mut b = Bench::default();
    between(&mut b, "after", |b, x| b.scaled(x, 0.3));
    between(&mut b, "divided", |b, x| {
        let by = [("other", Argument::Int(3))];
        b.op("div.Tensor", &[("self", x)], &by, (x.dtype, &x.shape))
    });
    between(&mut b, "tensor", |b, x| {
        let args = [("size", Argument::Ints(vec![])), ("fill_value", Argument::Float(8.0))];
        let eight = b.op("full.default", &[], &args, (F32, &[]));
        let root = b.op("sqrt.default", &[("self", &eight)], &[], (F32, &[]));
        b.binary("div.Tensor", x, &root)
    });
    between(&mut b, "a root of a constant", |b, x| {
        let eight = b.constant(8);
        let root = b.op("sqrt.default", &[("self", &eight)], &[], (F32, &[]));
        b.binary("div.Tensor", x, &root)
    });
    let [q, k, v] = three(&mut b, F32, &[2, 2]);
    let (q, k) = (b.scaled(&q, 0.6), b.scaled(&k, 0.7));
    let scores = b.products(&q, &k);
    let weights = b.softmax(&scores);
    let out = b.matmul(&weights, &v);
    b.output("on both sides", &out);
    b.check(1e-5);
}

#[test]
fn masks_are_added() {
    let mut b = Bench::default();
    // The third row sees nothing: it is no number.
    let rows: Vec<f32> = (0..35).map(|i| if i / 7 == 2 { LOW } else { i as f32 * 0.1 }).collect();
    between(&mut b, "of rows and keys", |b, x| {
        let mask = b.given(F32, &[5, K], &rows);
        b.binary("add.Tensor", x, &mask)
    });
    between(&mut b, "of each batch, twice", |b, x| {
        let one = b.given(F32, &[2, 1, 1, K], &[0.0, 0.0, LOW, 1.0]);
        let two = b.input(F32, &[1, 2, 5, K]);
        let x = b.binary("add.Tensor", x, &one);
        b.binary("sub.Tensor", &x, &two)
    });
    // What Hugging Face has for nothing at all: the second row has equal weights.
    let lowest: Vec<f32> = (0..35).map(|i| if i / 7 == 1 { f32::MIN } else { 0.0 }).collect();
    between(&mut b, "the lowest number", |b, x| {
        let mask = b.given(F32, &[5, K], &lowest);
        b.binary("add.Tensor", &mask, x)
    });
    b.check(1e-5);
}

#[test]
fn masks_choose() {
    let mut b = Bench::default();
    // The second row is hidden altogether.
    let hidden: Vec<f32> = (0..35).map(|i| f32::from(i / 7 == 1 || i % 3 == 0)).collect();
    for (name, value) in [
        ("nothing", f64::NEG_INFINITY),
        ("the lowest number", f64::from(f32::MIN)),
        ("a low number", -1e4),
        ("no low number", -1.0),
    ] {
        between(&mut b, name, |b, x| {
            let mask = b.given(Bool, &[5, K], &hidden);
            b.fill(x, &mask, value)
        });
    }
    between(&mut b, "kept ones", |b, x| {
        let mask = b.given(Bool, &[2, 1, 1, K], &[1.0, 0.0, 1.0]);
        let other = [("other", Argument::Float(-1e30))];
        let tensors = [("condition", &mask), ("self", x)];
        b.op("where.ScalarOther", &tensors, &other, (F32, &x.shape))
    });
    between(&mut b, "one after the other", |b, x| {
        let one = b.given(Bool, &[5, K], &hidden);
        let two = b.given(Bool, &[2, 1, 1, K], &[1.0, 0.0, 0.0]);
        let x = b.fill(x, &one, -1e9);
        b.fill(&x, &two, -1e9)
    });
    between(&mut b, "all of several", |b, x| {
        let one = b.given(Bool, &[5, K], &hidden);
        let two = b.given(Bool, &[2, 1, 1, K], &[1.0, 0.0, 0.0]);
        let sides = [("self", &two), ("other", &one)];
        let or = b.op("logical_or.default", &sides, &[], (Bool, &[2, 1, 5, K]));
        b.fill(x, &or, f64::NEG_INFINITY)
    });
    b.check(1e-5);
}

#[test]
fn causal_masks_are_known() {
    let mut b = Bench::default();
    between(&mut b, "positions", |b, x| {
        let keep = b.causal(5, K);
        let not = b.op("logical_not.default", &[("self", &keep)], &[], (Bool, &[5, K]));
        b.fill(x, &not, f64::NEG_INFINITY)
    });
    between(&mut b, "a triangle", |b, x| {
        let args = [("size", Argument::Ints(vec![5, 7])), ("fill_value", Argument::Bool(true))];
        let all = b.op("full.default", &[], &args, (Bool, &[5, K]));
        let keep = b.op("tril.default", &[("self", &all)], &[], (Bool, &[5, K]));
        let not = b.op("bitwise_not.default", &[("self", &keep)], &[], (Bool, &[5, K]));
        b.fill(x, &not, f64::NEG_INFINITY)
    });
    between(&mut b, "numbers of a triangle, added", |b, x| {
        let keep = b.causal(5, K);
        let args = [("self", Argument::Float(0.0)), ("other", Argument::Float(-1e30))];
        let mask = b.op("where.Scalar", &[("condition", &keep)], &args, (F32, &[5, K]));
        b.binary("add.Tensor", x, &mask)
    });
    between(&mut b, "later positions, and a mask", |b, x| {
        let (rows, keys) = (b.positions(5, 0), b.positions(K, 1));
        let sides = [("self", &keys), ("other", &rows)];
        let later = b.op("gt.Tensor", &sides, &[], (Bool, &[5, K]));
        let x = b.fill(x, &later, f64::NEG_INFINITY);
        let mask = b.given(F32, &[2, 1, 1, K], &[0.0, 0.0, LOW, 1.0]);
        b.binary("add.Tensor", &x, &mask)
    });
    let causal = b.attentions();
    assert!(causal.iter().all(|(causal, _)| *causal), "{causal:?}");
    assert_eq!(causal.iter().map(|(_, reads)| reads.len()).collect::<Vec<_>>(), [3, 3, 3, 4]);
    b.check(1e-5);
}

#[test]
fn what_is_nearly_causal_stays_a_mask() {
    let mut b = Bench::default();
    for (name, op, offset) in
        [("before", "lt.Tensor", 0), ("one more", "le.Tensor", 1), ("later", "ge.Tensor", 0)]
    {
        between(&mut b, name, |b, x| {
            let (rows, keys) = (b.positions(5, 0), b.positions(K, 1));
            let by = [("other", Argument::Int(offset))];
            let rows = b.op("add.Tensor", &[("self", &rows)], &by, (DType::I64, &[5, 1]));
            let sides = [("self", &keys), ("other", &rows)];
            let keep = b.op(op, &sides, &[], (Bool, &[5, K]));
            let not = b.op("logical_not.default", &[("self", &keep)], &[], (Bool, &[5, K]));
            b.fill(x, &not, f64::NEG_INFINITY)
        });
    }
    // Rows that are hidden altogether look at later keys.
    between(&mut b, "a low number, twice", |b, x| {
        let keep = b.causal(5, K);
        let not = b.op("logical_not.default", &[("self", &keep)], &[], (Bool, &[5, K]));
        let x = b.fill(x, &not, -1e30);
        let first = b.given(Bool, &[5, K], &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        b.fill(&x, &first, -1e30)
    });
    between(&mut b, "a number that is not that low", |b, x| {
        let keep = b.causal(5, K);
        let not = b.op("logical_not.default", &[("self", &keep)], &[], (Bool, &[5, K]));
        b.fill(x, &not, -1.0)
    });
    assert!(b.attentions().iter().all(|(causal, _)| !causal));
    b.check(1e-5);
}

#[test]
fn a_safe_softmax_has_zeros_where_a_plain_one_has_no_numbers() {
    let mut b = Bench::default();
    let low: Vec<f32> = (0..35).map(|i| if i / 7 == 2 { LOW } else { i as f32 * 0.1 }).collect();
    for (name, op) in [("plain", "_softmax.default"), ("safe", "_safe_softmax.default")] {
        for masked in [false, true] {
            // Without a mask it is the third query that sees nothing.
            let data: Vec<f32> = (0..40).map(|i| if i / 8 == 2 { LOW } else { 0.5 }).collect();
            let q = b.given(F32, &[1, 2, 5, 8], if masked { &data[..8] } else { &data });
            let k = b.given(F32, &[1, 2, K, 8], &[0.25, 0.5, 1.0]);
            let v = b.input(F32, &[1, 2, K, 4]);
            let mut scores = b.products(&q, &k);
            if masked {
                let mask = b.given(F32, &[5, K], &low);
                scores = b.binary("add.Tensor", &scores, &mask);
            }
            let weights = b.softmax_of(&scores, op, -1);
            let out = b.matmul(&weights, &v);
            b.output(name, &out);
        }
    }
    b.check(1e-5);
}

#[test]
fn batches_may_have_any_rank() {
    // What a caller gets of five dimensions is a copy.
    let mut b = Bench::default();
    b.others = 1;
    for lead in [&[][..], &[3], &[2, 3, 2]] {
        let [q, k, v] = three(&mut b, F32, lead);
        let scores = b.products(&q, &k);
        let scores = b.scaled(&scores, 0.4);
        let mask = b.given(F32, &[5, K], &[0.0, 0.5, LOW]);
        let scores = b.binary("add.Tensor", &scores, &mask);
        let weights = b.softmax(&scores);
        let out = b.matmul(&weights, &v);
        b.output("a batch", &out);
    }
    // Flat for the products, with heads for the mask.
    let [q, k, v] = three(&mut b, F32, &[2, 3]);
    let (q, k, v) = (b.view(&q, &[6, 5, 8]), b.view(&k, &[6, K, 8]), b.view(&v, &[6, K, 4]));
    let flat = b.products(&q, &k);
    let scores = b.view(&flat, &[2, 3, 5, K]);
    let mask = b.given(F32, &[2, 1, 1, K], &[0.0, 0.5, LOW, 0.0]);
    let scores = b.binary("add.Tensor", &scores, &mask);
    let scores = b.view(&scores, &[6, 5, K]);
    let own = b.input(F32, &[6, 1, K]);
    let scores = b.binary("add.Tensor", &scores, &own);
    let weights = b.softmax(&scores);
    let out = b.matmul(&weights, &v);
    let out = b.view(&out, &[2, 3, 5, 4]);
    b.output("flat", &out);
    b.check(1e-5);
}

#[test]
fn heads_share_keys() {
    let mut b = Bench::default();
    let q = b.input(BF16, &[2, 6, 5, 16]);
    let kv = [b.input(BF16, &[2, 2, K, 16]), b.input(BF16, &[2, 2, K, 8])];
    let [k, v] = kv.map(|x| {
        let width = x.shape[3];
        let one = b.view(&x, &[2, 2, 1, K, width]);
        let many = b.expand(&one, &[2, 2, 3, K, width]);
        b.view(&many, &[2, 6, K, width])
    });
    let scores = b.products(&q, &k);
    let weights = b.softmax(&scores);
    let out = b.matmul(&weights, &v);
    b.output("repeated", &out);
    b.check(1e-2);
}

#[test]
fn types_are_those_that_lose_nothing() {
    // Three inputs and two results are in another type.
    let mut b = Bench::default();
    b.others = 5;
    // Scores in f32, weights as the values are: what models do for softmax.
    let [q, k, v] = three(&mut b, BF16, &[2, 2]);
    let scores = b.products(&q, &k);
    let scores = b.scaled(&scores, 0.4);
    let wide = b.cast(&scores, F32);
    let weights = b.softmax(&wide);
    let weights = b.cast(&weights, BF16);
    let out = b.matmul(&weights, &v);
    b.output("softmax in f32", &out);
    // Products in f32 as well: those of bf16 are exact.
    let [q, k, v] = three(&mut b, BF16, &[2, 2]);
    let (q, k) = (b.cast(&q, F32), b.cast(&k, F32));
    let scores = b.products(&q, &k);
    let weights = b.softmax(&scores);
    let weights = b.cast(&weights, BF16);
    let out = b.matmul(&weights, &v);
    b.output("products in f32", &out);
    // All in f32, as `scaled_dot_product_attention` is decomposed.
    for (name, op) in [("decomposed", "_safe_softmax.default"), ("f32", "_softmax.default")] {
        let [q, k, v] = three(&mut b, BF16, &[2, 2]);
        let (q, k, v) = (b.cast(&q, F32), b.cast(&k, F32), b.cast(&v, F32));
        let (q, k) = (b.scaled(&q, 0.5), b.scaled(&k, 0.5));
        let scores = b.products(&q, &k);
        let weights = b.softmax_of(&scores, op, -1);
        let out = b.matmul(&weights, &v);
        let out = b.cast(&out, BF16);
        b.output(name, &out);
    }
    let types: Vec<DType> = b.attentions().iter().map(|(_, reads)| reads[0]).collect();
    assert_eq!(types, [BF16, BF16, BF16, F32]);
    b.check(1e-2);
}
