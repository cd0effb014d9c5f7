//! A compiler that dies with a piece: the others are kept.

use kiln_proto::pb::{self, Outcome, PieceStage, compile_event::Event};
use tokio::time::timeout;

use super::{
    model::{self, PIECES},
    outcomes,
    workers::Workers,
};
use crate::harness::{SOON, TestCluster, code, eventually, kind};

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
    let workers = Workers::pause(helps).await;
    let killing = async {
        eventually("the node to take a piece", async || {
            (helps.counter("pieces_taken").await > 0).then_some(())
        })
        .await;
        workers.kill();
    };
    let (whole, ()) = tokio::join!(asks.compile(model::whole()), killing);
    assert_eq!(outcomes(&whole.unwrap()), [Outcome::Compiled; PIECES]);
    // One for nothing, unless the compiler was dead before it had the piece.
    let runs = cluster.counter("compiler_runs").await;
    assert!((PIECES as u64..=PIECES as u64 + 1).contains(&runs), "{runs}");
}
