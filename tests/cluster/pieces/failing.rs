//! A compiler that dies with a piece: the others are kept.

use std::time::Duration;

use kiln_proto::pb::{self, Outcome, PieceStage, compile_event::Event};
use tokio::time::timeout;

use super::{
    model::{self, PIECES},
    outcomes,
    verified::{failing, the_bad_one},
    workers::{Standing, Workers},
};
use crate::harness::{SOON, TestCluster, code, kind};

/// Of a compile that hangs: any other one of these takes less.
const LIMIT: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_fails_fails_alone() {
    let cluster = TestCluster::start_with(1, |_, config| config.compile.concurrency = 1).await;
    let node = &cluster.nodes[0];
    let mut workers = Some(Workers::pause(node).await);
    let mut last: Vec<Option<pb::Piece>> = vec![None; PIECES];
    let failed = node.compile_watching(model::whole(), |event| {
        let Event::Piece(pb::PieceNews { piece: Some(piece), .. }) = event else { return };
        // The one compiler that there is has the piece, and stands still.
        if piece.stage() == PieceStage::Compiling
            && let Some(workers) = workers.take()
        {
            workers.kill();
        }
        last[piece.index as usize] = Some(piece.clone());
    });
    let failed = timeout(SOON, failed).await.expect("it ends").unwrap_err();
    assert_eq!((code(&failed), kind(&failed)), (Some("C005"), Some("crashed")), "{failed}");
    let last: Vec<pb::Piece> = last.into_iter().map(Option::unwrap).collect();
    let bad: Vec<&pb::Piece> = last.iter().filter(|p| p.stage() == PieceStage::Failed).collect();
    let [bad] = bad[..] else { panic!("{last:?}") };
    let done = last.iter().filter(|piece| piece.stage() == PieceStage::Done);
    assert_eq!(done.count(), PIECES - 1, "the others were seen to their end: {last:?}");
    assert_eq!(bad.node, node.id);
    assert_eq!(bad.failure.as_ref().unwrap().kind(), pb::FailureKind::Crashed);
    // The error says which, on which node, and of what class.
    let key = kiln_proto::ArtifactKey::try_from(&bad.key[..]).unwrap();
    for part in [format!("piece {} ({key})", bad.index), format!("on node {}", node.id)] {
        assert!(failed.message().contains(&part), "{part:?} in {failed}");
    }
    assert!(failed.message().contains("1 of 5 pieces failed"), "{failed}");

    // What was kept is kept.
    let again = node.compile(model::whole()).await.unwrap();
    let mut expected = [Outcome::Hit; PIECES];
    expected[bad.index as usize] = Outcome::Compiled;
    assert_eq!(outcomes(&again), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_of_one_node_alone_another_one_compiles() {
    let cluster = TestCluster::start_with(3, |_, config| config.compile.concurrency = 1).await;
    let (asks, helps) = (&cluster.nodes[0], &cluster.nodes[1]);
    let standing = Standing::until_taken_by(1, &cluster).await;
    let killing = async { standing.taken(helps).await.kill() };
    let (whole, ()) = tokio::join!(asks.compile(model::whole()), killing);
    // A piece that others had ready before it was asked for is a hit.
    let own = |outcome: &Outcome| matches!(outcome, Outcome::Compiled | Outcome::Hit);
    let outcomes = outcomes(&whole.unwrap());
    assert!(outcomes.len() == PIECES && outcomes.iter().all(own), "{outcomes:?}");
    // One for nothing, unless the compiler was dead before it had the piece.
    let runs = cluster.counter("compiler_runs").await;
    assert!((PIECES as u64..=PIECES as u64 + 1).contains(&runs), "{runs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_in_a_compile_elsewhere_fails_alone_and_is_told_at_once() {
    let cluster = TestCluster::start_with(3, |_, config| {
        config.compile.concurrency = 1;
        config.compile.time_limit = LIMIT;
    })
    .await;
    let (asks, helps) = (&cluster.nodes[0], &cluster.nodes[1]);
    let standing = Standing::until_taken_by(1, &cluster).await;
    // Nobody looks again and again: it ends because the failure is told.
    let failing_elsewhere = failing(asks, model::whole());
    let ((failed, pieces), workers) = tokio::join!(failing_elsewhere, standing.taken(helps));
    drop(workers);
    assert_eq!((code(&failed), kind(&failed)), (Some("C004"), Some("timeout")), "{failed}");
    let why = format!("on node {}: the compile was ended after 25s", helps.id);
    assert!(failed.message().contains(&why), "{why:?} in {failed}");
    the_bad_one(&pieces);
    let runs = cluster.counter("compiler_runs").await;
    assert_eq!(runs, PIECES as u64, "one of them for nothing");

    // It follows from the request, so it is remembered for a while: nothing runs again.
    let (again, pieces) = failing(&cluster.nodes[2], model::whole()).await;
    assert_eq!(kind(&again), Some("timeout"), "{again}");
    assert!(pieces.is_empty() || the_bad_one(&pieces).node == 0, "{pieces:?}");
    assert_eq!(cluster.counter("compiler_runs").await, runs);
}
