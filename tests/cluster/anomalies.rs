//! Anomalies of a real node that follow from compiles and from what the optimizer does.

use std::time::Duration;

use kiln_proto::pb::{self, FallbackPolicy, Outcome};
use tokio::time::timeout;

use crate::{
    harness::{SOON, TestCluster, TestNode, eventually, kind, saxpy},
    pieces::workers::Workers,
    redis::Redis,
    watching::{anomaly, knows, telling, watchful, working_until},
};

/// A kernel of which the caller wants the error at once.
fn alone(name: &str) -> pb::CompileRequest {
    pb::CompileRequest { fallback: FallbackPolicy::None.into(), ..saxpy(name) }
}

#[tokio::test(flavor = "multi_thread")]
async fn compiles_that_begin_to_fail_are_found() {
    let cluster = TestCluster::start_with(1, |i, config| {
        watchful(i, config);
        // Else they would be turned off some looks later.
        config.monitor.emergency = false;
    })
    .await;
    let node = &cluster.nodes[0];
    let compile = async |n: u64| {
        assert_eq!(node.compile(alone(&format!("k{n}"))).await.unwrap().outcome, Outcome::Compiled);
    };
    let usual = |report: &pb::MonitorResponse| knows(report, "failure_rate");
    working_until("what is usual", node, compile, usual).await;
    let before = node.report().await;
    assert_eq!(anomaly(&before, "failing_compiles"), None, "{:?}", before.anomalies);

    // Where each of its processes begins: without it none starts.
    let workers = node.data().join("workers");
    std::fs::rename(&workers, node.data().join("aside")).unwrap();
    let fail = async |n: u64| drop(node.compile(alone(&format!("broken{n}"))).await);
    let of = |report: &pb::MonitorResponse| anomaly(report, "failing_compiles");
    let found = working_until("failing compiles", node, fail, of).await;
    // It was planted in the middle of a cycle, and is asked for after one.
    let planted = before.cycle;
    assert!(found <= planted + 4, "planted in {planted}, found in {found}");
}

/// Compiles something that does not come to an end in its time.
async fn time_out(node: &TestNode, name: &str) {
    let request = pb::CompileRequest { deadline_ms: 200, ..alone(name) };
    let late = timeout(SOON, node.compile(request)).await.unwrap().unwrap_err();
    assert_eq!(kind(&late), Some("timeout"), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_outs_are_one_alert_that_ends() {
    let (cluster, mut webhook) = telling(|i, config| {
        watchful(i, config);
        config.monitor.every = Duration::from_secs(1);
        config.compile.concurrency = 1;
    })
    .await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let mut n = 0;
    let lasting = eventually("time-outs in several looks", async || {
        n += 1;
        time_out(node, &format!("late{n}")).await;
        let report = node.report().await;
        report.anomalies.into_iter().find(|of| of.kind == "time_outs" && of.cycles >= 3)
    })
    .await;
    assert!(lasting.text.contains("test.cu (") && lasting.text.contains("deadline"), "{lasting:?}");
    workers.resume();

    let told = webhook.until_resolved("KilnCompileTimeOuts").await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((&*told[0].0, &told[0].1), ("firing", &told[1].1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_after_which_its_figure_is_worse_is_taken_back() {
    let cluster = TestCluster::start_with(1, |i, config| {
        watchful(i, config);
        config.optimizer.apply = true;
        // Long enough that what follows it decides, however late it is seen.
        config.optimizer.judged_after = 25;
        config.resp.wait = Duration::from_millis(40);
        // Whatever is learned of these keys: clients wait for each other's SET.
        config.resp.families = vec!["vain:*=40ms".into()];
        config.optimizer.wait_min = Duration::from_millis(5);
    })
    .await;
    let node = &cluster.nodes[0];
    let (mut first, mut second) = (Redis::connect(node).await, Redis::connect(node).await);
    first.set("known", b"value").await;
    let decision = |report: &pb::MonitorResponse, state: &str| {
        let mut all = report.decisions.iter().rev();
        all.find(|of| of.knob == "resp_wait" && of.state == state).cloned()
    };
    // One client misses and does not SET, another waits for it in vain.
    let wait_in_vain = async |n: u64| {
        assert_eq!(first.get(&format!("vain:{n}")).await, None);
        assert_eq!(second.get(&format!("vain:{n}")).await, None);
        for _ in 0..8 {
            assert!(first.get("known").await.is_some());
        }
    };
    let applied = |report: &pb::MonitorResponse| decision(report, "applied");
    let applied = working_until("a decision", node, wait_in_vain, applied).await;
    assert_eq!(applied.metric, "value_hit_rate");

    // What it is judged by gets worse.
    let miss = async |n: u64| assert_eq!(first.get(&format!("nowhere:{n}")).await, None);
    let taken_back = |report: &pb::MonitorResponse| decision(report, "rolled_back");
    let taken_back = working_until("its end", node, miss, taken_back).await;
    assert_eq!(taken_back.id, applied.id);
    assert!(taken_back.after.unwrap() < taken_back.before.unwrap().median);
    let turned = |level: &str| {
        let log = node.log();
        log.lines().any(|line| line.contains("resp_wait") && line.contains(level))
    };
    assert!(turned(&applied.to) && turned(&applied.from), "{}", node.log());
}
