//! Pieces that are run before anybody is given them, and checks that end badly.

use std::time::Duration;

use futures::future::join_all;
use kiln_proto::pb::{self, Outcome, PieceStage, Verify, compile_event::Event};
use tokio::time::timeout;
use tonic::Status;

use super::{
    model::{self, HEAD, PIECES, archive, changed, eager},
    outcomes,
    workers::Workers,
};
use crate::harness::{Compiled, Configure, SOON, TestCluster, TestNode, code, kind};

const MODEL: &str = "qwen3_lm_f32_static.new";
/// A check takes less by far, unless it hangs.
const SHORT_CHECKS: Configure = |_, config| config.compile.check_limit = Duration::from_secs(20);

fn verified(compiled: &Compiled) -> Vec<bool> {
    let pieces = compiled.pieces.iter().map(|piece| piece.check.as_ref().unwrap());
    pieces.chain([&compiled.check]).map(|check| check.unchecked.is_empty()).collect()
}

/// Compiles what fails, and what became of each piece.
pub(super) async fn failing(
    node: &TestNode,
    request: pb::CompileRequest,
) -> (Status, Vec<pb::Piece>) {
    let mut last: Vec<Option<pb::Piece>> = vec![None; PIECES];
    let failed = node.compile_watching(request, |event| {
        if let Event::Piece(pb::PieceNews { piece: Some(piece), .. }) = event {
            last[piece.index as usize] = Some(piece.clone());
        }
    });
    let failed = timeout(3 * SOON, failed).await.expect("it ends").unwrap_err();
    (failed, last.into_iter().flatten().collect())
}

/// The one that failed; all others are there.
pub(super) fn the_bad_one(pieces: &[pb::Piece]) -> &pb::Piece {
    let bad: Vec<_> = pieces.iter().filter(|piece| piece.stage() == PieceStage::Failed).collect();
    let done = pieces.iter().filter(|piece| piece.stage() == PieceStage::Done).count();
    assert_eq!((bad.len(), done), (1, PIECES - 1), "{pieces:?}");
    bad[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_is_verified_once_and_says_so() {
    let cluster = TestCluster::start(3).await;
    let never = eager(archive(MODEL), Verify::Never);
    let unchecked = cluster.nodes[0].compile(never).await.unwrap();
    assert_eq!(verified(&unchecked), [false; PIECES + 1]);
    assert_eq!(cluster.counter("checks_passed").await, 0);

    // Who asks for a check decides nothing of the key, and is given what is there.
    let always = || eager(archive(MODEL), Verify::Always);
    let checked = cluster.nodes[1].compile(always()).await.unwrap();
    assert_eq!((checked.key, checked.outcome), (unchecked.key, Outcome::Hit));
    assert_eq!(verified(&checked), [true; PIECES + 1], "{:?} {:?}", checked.pieces, checked.check);
    let all = PIECES as u64 + 1;
    assert_eq!(cluster.counter("checks_passed").await, all);
    // Once by each node.
    cluster.nodes[1].compile(always()).await.unwrap();
    assert_eq!(cluster.counter("checks_passed").await, all);

    // What is compiled for such a request is checked before it is published, and whoever
    // asks for it then is told so.
    let other = || eager(changed(HEAD), Verify::Always);
    let compiled = cluster.nodes[2].compile(other()).await.unwrap();
    assert_eq!(verified(&compiled), [true; PIECES + 1]);
    assert_eq!(outcomes(&compiled).iter().filter(|o| **o == Outcome::Compiled).count(), 1);
    let passed = cluster.counter("checks_passed").await;
    let sampled = eager(changed(HEAD), Verify::Unspecified);
    let told = cluster.nodes[2].compile(sampled).await.unwrap();
    let (mut pieces, whole) = (told.pieces.iter().zip(&compiled.pieces), &told.check);
    assert!(pieces.any(|(told, made)| {
        made.outcome() == Outcome::Compiled && told.check.as_ref().unwrap().unchecked.is_empty()
    }));
    assert!(whole.unchecked.is_empty(), "{whole:?}");
    assert!(cluster.counter("checks_passed").await - passed < PIECES as u64, "by their producers");
    assert_eq!(cluster.counter("checks_failed").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_device_nothing_passes_silently() {
    let cluster = TestCluster::start(1).await;
    let request = pb::CompileRequest { verify: Verify::Always.into(), ..model::whole() };
    let compiled = cluster.nodes[0].compile(request).await.unwrap();
    for check in compiled.pieces.iter().map(|p| p.check.as_ref().unwrap()).chain([&compiled.check])
    {
        // On a machine with such a GPU it is run.
        let why = &check.unchecked;
        assert!(why.is_empty() || why.contains("CUDA") || why.contains("sm_"), "{why}");
    }
    let counters = ["checks_passed", "checks_not_run"];
    let [passed, not_run] = counters.map(|name| cluster.counter(name));
    assert_eq!(passed.await + not_run.await, PIECES as u64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_hangs_fails_its_piece_alone() {
    let cluster = TestCluster::start_with(3, SHORT_CHECKS).await;
    ends_badly(&cluster, false, ("C004", "timeout"), "the check was ended after 20s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_crashes_fails_its_piece_alone() {
    let cluster = TestCluster::start(3).await;
    ends_badly(&cluster, true, ("C005", "crashed"), "its check failed").await;
}

/// The next check of each node never ends, or is killed when it has begun.
async fn ends_badly(cluster: &TestCluster, killed: bool, expected: (&str, &str), said: &str) {
    // Each node has checked something, so one child waits warm for the next.
    let mut paused = Vec::new();
    for node in &cluster.nodes {
        node.compile(eager(archive(MODEL), Verify::Always)).await.unwrap();
        paused.push(Workers::pause_checker(node).await);
    }
    let request = || eager(changed(HEAD), Verify::Always);
    let killing = async {
        if killed {
            join_all(paused.iter().map(Workers::kill_at_work)).await;
        }
        std::future::pending::<()>().await
    };
    let (failed, pieces) = tokio::select! {
        failed = failing(&cluster.nodes[0], request()) => failed,
        () = killing => unreachable!(),
    };
    assert_eq!((code(&failed), kind(&failed)), (Some(expected.0), Some(expected.1)), "{failed}");
    let bad = the_bad_one(&pieces);
    let key = kiln_proto::ArtifactKey::try_from(&bad.key[..]).unwrap();
    for part in [format!("piece {} ({key})", bad.index), "on node ".into(), said.to_owned()] {
        assert!(failed.message().contains(&part), "{part:?} in {failed}");
    }
    for node in &cluster.nodes {
        assert!(node.lookup(&key).await.unwrap().is_none(), "it is not published");
    }
    let index = bad.index as usize;
    drop(paused);

    // It was no verdict on the request: another node may have taken it up meanwhile.
    let again = cluster.nodes[0].compile(request()).await.unwrap();
    let mut outcomes = outcomes(&again);
    let its = outcomes.remove(index);
    assert!(matches!(its, Outcome::Compiled | Outcome::Coalesced | Outcome::Hit), "{its:?}");
    assert_eq!(outcomes, [Outcome::Hit; PIECES - 1], "what was kept is kept");
    assert_eq!(verified(&again), [true; PIECES + 1]);
}
