//! A compiler that hangs.

use std::time::Duration;

use kiln_proto::pb::Outcome;
use tokio::time::Instant;

use super::{is_eagers_own, program, rung, tried, wanted};
use crate::{
    harness::{TestCluster, eventually},
    pieces::workers::{Workers, children},
};

const BLOCK: &str = "block_f32.new.pt2";
/// Of the caller.
const DEADLINE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn within_the_callers_deadline_the_graph_answers_and_later_the_compile() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let mut request = program(BLOCK);
    request.deadline_ms = DEADLINE.as_millis() as u64;
    let began = Instant::now();
    let fell = node.compile(request.clone()).await.unwrap();
    assert!(began.elapsed() < DEADLINE + Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(tried(&fell)[0], ("wanted".into(), "timeout"));
    is_eagers_own(node, &program(BLOCK), &fell).await;
    // What the caller did not wait for goes on, and is there for the next one.
    workers.resume();
    let wanted = wanted(&fell);
    eventually("what was wanted", async || node.lookup(&wanted).await.unwrap()).await;
    let real = node.compile(request).await.unwrap();
    assert_eq!((rung(&real), real.key, real.outcome), ("wanted", wanted, Outcome::Hit));
    assert_eq!(node.counter("compiler_runs").await, 2, "eager, and what was wanted, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_the_nodes_limit_is_ended_and_comes_in_pieces() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.concurrency = 1;
        config.compile.time_limit = Duration::from_secs(20);
    })
    .await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let before = children(node.pid(), "worker");
    let fell = node.compile(program(BLOCK)).await.unwrap();
    assert_eq!(tried(&fell), [("wanted".into(), "timeout")]);
    assert_eq!(rung(&fell), "pieces");
    assert!(!fell.manifest.read_unverified().unwrap().pieces.is_empty());
    assert!(node.lookup(&wanted(&fell)).await.unwrap().is_none(), "nothing fills its key");
    let after = children(node.pid(), "worker");
    assert!(before.iter().all(|pid| !after.contains(pid)), "its process is ended: {after:?}");
    drop(workers);
    let log = node.log();
    assert!(log.contains("a compile timed out"), "{log}");
}
