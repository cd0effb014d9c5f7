//! What looks like attention in pieces and is not, or has no kernel.

use kiln_proto::graph::{Argument, DType, Dim, Symbol};

use super::bench::{Bench, T};
use crate::{Options, decompose::decompose, lower_graph, tests::EMULATED};
use DType::{BF16, Bool, F32};

fn three(b: &mut Bench, width: usize) -> [T; 3] {
    [5, 5, 5].map(|rows| b.input(F32, &[2, 2, rows, width]))
}

/// Attention whose scores go through `scores` and whose weights through `weights`.
fn refused(
    scores: impl Fn(&mut Bench, &T) -> T,
    softmax: (&str, i64),
    weights: impl Fn(&mut Bench, &T) -> T,
) {
    let mut b = Bench::default();
    let [q, k, v] = three(&mut b, 8);
    let x = b.products(&q, &k);
    let x = scores(&mut b, &x);
    let x = b.softmax_of(&x, softmax.0, softmax.1);
    let x = weights(&mut b, &x);
    let x = b.matmul(&x, &v);
    b.output("out", &x);
    assert_eq!(b.rewritten().1, 0);
}

fn same(_: &mut Bench, x: &T) -> T {
    x.clone()
}

const SOFTMAX: (&str, i64) = ("softmax.int", -1);

#[test]
fn scores_that_are_more_than_scaled_and_masked() {
    refused(|b, x| b.op("tanh.default", &[("self", x)], &[], (F32, &x.shape)), SOFTMAX, same);
    refused(
        |b, x| {
            let y = b.input(F32, &x.shape);
            b.binary("mul.Tensor", x, &y)
        },
        SOFTMAX,
        same,
    );
    // A factor of the mask as well.
    refused(
        |b, x| {
            let mask = b.input(F32, &[5, 5]);
            let x = b.binary("add.Tensor", x, &mask);
            b.scaled(&x, 0.5)
        },
        SOFTMAX,
        same,
    );
    // No one mask is both.
    refused(
        |b, x| {
            let (one, two) = (b.input(F32, &[5, 5]), b.given(Bool, &[5, 5], &[1.0, 0.0, 0.0]));
            let x = b.binary("add.Tensor", x, &one);
            b.fill(&x, &two, f64::NEG_INFINITY)
        },
        SOFTMAX,
        same,
    );
    refused(
        |b, x| {
            let mask = b.given(Bool, &[5, 5], &[1.0, 0.0, 0.0]);
            let x = b.fill(x, &mask, f64::NEG_INFINITY);
            let mask = b.given(Bool, &[5, 1], &[0.0, 1.0, 0.0]);
            b.fill(&x, &mask, -5.0)
        },
        SOFTMAX,
        same,
    );
    refused(|b, x| b.scaled(x, 0.0), SOFTMAX, same);
}

#[test]
fn weights_that_are_no_softmax_of_rows() {
    refused(same, ("softmax.int", -2), same);
    refused(same, ("log_softmax.int", -1), same);
    refused(same, SOFTMAX, |b, x| b.scaled(x, 0.9));
    refused(same, SOFTMAX, |b, x| b.transposed(x));
    refused(same, SOFTMAX, |b, x| {
        let mask = b.given(Bool, &[5, 5], &[1.0, 0.0, 0.0]);
        b.fill(x, &mask, 0.0)
    });
}

#[test]
fn what_somebody_else_reads() {
    for what in 0..4 {
        let mut b = Bench::default();
        let [q, k, v] = three(&mut b, 8);
        let products = b.products(&q, &k);
        let scores = b.scaled(&products, 0.5);
        let weights = b.softmax(&scores);
        let out = b.matmul(&weights, &v);
        b.output("out", &out);
        match what {
            0 => b.output("products", &products),
            1 => b.output("scores", &scores),
            2 => b.output("weights", &weights),
            _ => {
                let mean = [("dim", Argument::Ints(vec![1]))];
                let tensors = [("self", &weights)];
                let mean = b.op("mean.dim", &tensors, &mean, (F32, &[2, 5, 5]));
                b.output("mean", &mean);
            }
        }
        assert_eq!(b.rewritten().1, 0, "{what}");
    }
}

#[test]
fn types_of_which_one_would_lose_something() {
    // Scores of f32, values of bf16.
    let mut b = Bench::default();
    let (q, k) = (b.input(F32, &[2, 2, 5, 8]), b.input(F32, &[2, 2, 5, 8]));
    let v = b.input(BF16, &[2, 2, 5, 8]);
    let scores = b.products(&q, &k);
    let weights = b.softmax(&scores);
    let weights = b.cast(&weights, BF16);
    let out = b.matmul(&weights, &v);
    b.output("out", &out);
    assert_eq!(b.rewritten().1, 0);
}

#[test]
fn heads_wider_than_kernels_are_made_for() {
    for (width, count) in [(256, 1), (264, 0)] {
        let mut b = Bench::default();
        let [q, k, v] = three(&mut b, width);
        let scores = b.products(&q, &k);
        let weights = b.softmax(&scores);
        let out = b.matmul(&weights, &v);
        b.output("out", &out);
        assert_eq!(b.rewritten().1, count, "{width}");
    }
}

#[test]
fn heads_of_no_fixed_size() {
    for (symbolic, count) in [(2, 1), (3, 0)] {
        let mut b = Bench::default();
        let [q, k, v] = three(&mut b, 8);
        let scores = b.products(&q, &k);
        let weights = b.softmax(&scores);
        let out = b.matmul(&weights, &v);
        b.output("out", &out);
        let graph = b.graph();
        let symbol = Symbol { name: "s0".to_owned(), min: Some(2), max: Some(64) };
        graph.symbols = vec![symbol];
        // Those that were rows or the size of a head are unknown now.
        let size = if symbolic == 2 { 5 } else { 8 };
        for value in &mut graph.values {
            for dim in value.ty.shape.iter_mut().filter(|dim| dim.known() == Some(size)) {
                *dim = Dim::Symbolic("s0".to_owned());
            }
        }
        assert_eq!(b.rewritten().1, count, "{size}");
    }
}

#[test]
fn nothing_is_rewritten_without_fusion() {
    let mut b = Bench::default();
    let [q, k, v] = three(&mut b, 8);
    let scores = b.products(&q, &k);
    let weights = b.softmax(&scores);
    let out = b.matmul(&weights, &v);
    b.output("out", &out);
    let kinds = |fuse| {
        let options = Options { fuse, fast_math: false, parallel: true };
        let graph = b.graph_ref();
        let lowered = lower_graph(graph, String::new(), options, EMULATED).unwrap();
        let names = lowered.plan.kernels.into_iter().map(|kernel| kernel.name);
        names.filter(|name| name.ends_with("_attention")).count()
    };
    assert_eq!((kinds(true), kinds(false)), (1, 0));
    assert!(decompose(b.graph_ref()).unwrap().nodes.len() > 5);
}
