//! Estimates that learn from compiles, and what they leave as it is.

use kiln_proto::pb::{self, Outcome, Piecewise};

use super::{
    model::{self, HEAD, PIECES, changed},
    outcomes,
};
use crate::harness::{Compiled, TestCluster};

fn learned(compiled: &Compiled) -> Option<&str> {
    let mut reasons = compiled.strategy.reasons.iter();
    reasons.find_map(|why| why.split_once("learned from ")).map(|(_, from)| from)
}

fn expected(compiled: &Compiled) -> Vec<f64> {
    let seconds = |piece: &pb::Piece| piece.estimates.as_ref().unwrap().compile_seconds;
    compiled.pieces.iter().map(seconds).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compiles_took_corrects_what_is_expected_and_no_key() {
    let cluster = TestCluster::start(3).await;
    let (knows, knows_nothing) = (&cluster.nodes[0], &cluster.nodes[1]);
    let first = knows.compile(model::whole()).await.unwrap();
    assert_eq!(learned(&first), None);
    let other = || model::request(changed(HEAD), Piecewise::Always);
    let corrected = knows.compile(other()).await.unwrap();
    assert_eq!(learned(&corrected), Some("5 compiles"), "{:?}", corrected.strategy);
    // The median of what the pieces took, each over what it was thought to take.
    let mut ratios: Vec<f64> = first
        .pieces
        .iter()
        .zip(expected(&first))
        .map(|(piece, expected)| piece.compile_seconds / expected)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let factor = ratios[PIECES / 2];
    let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
    let (before, after) = (expected(&first), expected(&corrected));
    // All pieces but the head are those of the first.
    for (before, after) in before.iter().zip(&after).take(PIECES - 1) {
        assert!(close(before * factor, *after), "{before} times {factor} is not {after}");
    }

    // A node that asked for nothing gives the same request the same key, and the same pieces.
    let there = knows_nothing.compile(other()).await.unwrap();
    assert_eq!((there.key, there.outcome), (corrected.key, Outcome::Hit));
    assert_eq!(outcomes(&there), [Outcome::Hit; PIECES]);
    // What is in the index teaches it as well.
    let again = knows_nothing.compile(other()).await.unwrap();
    assert!(learned(&again).is_some(), "{:?}", again.strategy);
    assert_eq!((again.key, again.outcome), (corrected.key, Outcome::Hit));
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64 + 1);
}
