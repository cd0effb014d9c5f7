//! A compiler that dies: once, and each time.

use kiln_proto::pb::{FallbackPolicy as Policy, Outcome};

use super::{program, rung, tried, with};
use crate::{
    harness::{TestCluster, kind},
    pieces::workers::Workers,
};

const BLOCK: &str = "block_f32.new.pt2";

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_once_is_asked_once_more() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let (made, ()) = tokio::join!(node.compile(program(BLOCK)), workers.kill_at_work());
    let made = made.unwrap();
    assert_eq!(tried(&made), [("wanted".into(), "crashed")]);
    assert_eq!((rung(&made), made.outcome), ("wanted", Outcome::Compiled));
    assert_eq!(made.manifest.read_unverified().unwrap().fingerprint.compiler, "native");
    assert!(node.lookup(&made.key).await.unwrap().is_some(), "it is the real thing");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_the_error_has_the_first_one() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let asked = node.compile(with(program(BLOCK), Policy::None));
    let (refused, ()) = tokio::join!(asked, workers.kill_at_work());
    assert_eq!(kind(&refused.unwrap_err()), Some("crashed"));
    assert_eq!(node.counter("compiler_runs").await, 1);
}
