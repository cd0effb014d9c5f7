//! A node whose compilers are all at work, with as many requests waiting as may.

use std::time::Duration;

use kiln_proto::pb::{FallbackPolicy as Policy, Outcome};

use super::{is_eagers_own, program, rung, tried, with};
use crate::{
    harness::{Compiled, TestCluster, TestNode, eventually, saxpy},
    pieces::workers::Workers,
};

const BLOCK: &str = "block_f32.new.pt2";

/// Rungs, and what each failed of.
fn all(compiled: &Compiled) -> Vec<String> {
    tried(compiled).into_iter().map(|(rung, kind)| format!("{rung} {kind}")).collect()
}

/// How often `what` is in the node's log.
fn logged(node: &TestNode, what: &str) -> usize {
    node.log().matches(what).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_all_compilers_busy_asks_again_and_has_the_graph_at_last() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.concurrency = 1;
        config.compile.queue = 1;
        config.monitor.every = Duration::from_millis(200);
    })
    .await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let at_work = node.compile(with(saxpy("at_work"), Policy::None));
    let waits = node.compile(with(saxpy("waits"), Policy::None));
    let asks = async {
        eventually("a full queue", async || {
            let report = node.report().await;
            let waiting = report.metrics.iter().find(|of| of.name == "compiles_waiting.nvrtc")?;
            (waiting.now == 1.0).then_some(())
        })
        .await;
        // Nothing comes free: it is tried again some times, and ends at the graph.
        let fell = node.compile(program(BLOCK)).await.unwrap();
        assert_eq!(
            all(&fell),
            ["wanted busy", "again busy", "again busy", "again busy", "again busy"]
        );
        is_eagers_own(node, &program(BLOCK), &fell).await;

        // One comes free during the pauses.
        let before = logged(node, "no artifact: ");
        let other = node.compile(program("block_f32_1k.new.pt2"));
        let frees = async {
            let found_busy = async || (logged(node, "no artifact: ") > before).then_some(());
            eventually("it was found busy", found_busy).await;
            workers.resume();
        };
        let (made, ()) = tokio::join!(other, frees);
        let made = made.unwrap();
        assert_eq!((rung(&made), made.outcome), ("wanted", Outcome::Compiled));
        assert_eq!(all(&made)[0], "wanted busy");
        assert!(node.lookup(&made.key).await.unwrap().is_some(), "it is the real thing");
    };
    let (at_work, waits, ()) = tokio::join!(at_work, waits, asks);
    assert_eq!(at_work.unwrap().outcome, Outcome::Compiled);
    assert_eq!(waits.unwrap().outcome, Outcome::Compiled);
}
