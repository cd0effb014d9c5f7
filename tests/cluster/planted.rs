//! What the monitor of a real node finds where a machine or its clients really misbehave: a
//! disk that is slow, memory that grows.
//!
//! `found` counts looks: the first one that saw all of what was planted is the second after it,
//! as it was planted in the middle of one.

use std::{process::Stdio, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use kiln::config::Config;
use kiln_proto::pb::{self, FallbackPolicy};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    harness::{SOON, TestCluster, TestNode, cuda, eventually},
    pieces::workers::Workers,
    watching::{knows, watchful},
};

/// Looks in which something is found, that was planted in the middle of one: two whole ones.
const WITHIN: u64 = 3;
/// A request that nobody answers holds that much.
const HELD: usize = 15 << 20;
/// Such requests at once.
const MOST_HELD: usize = 80;

/// Looks that are long enough for several probes of a slow disk.
fn slowly(i: usize, config: &mut Config) {
    watchful(i, config);
    config.monitor.every = Duration::from_secs(1);
}

/// The look in which an anomaly was confirmed that is found twice in a row or at once.
fn confirmed(report: &pb::MonitorResponse, kind: &str, confirm: u64) -> Option<u64> {
    let found = report.anomalies.iter().find(|of| of.kind == kind)?;
    Some(report.cycle + confirm - u64::from(found.cycles))
}

async fn knows_what_is_usual(node: &TestNode, figure: &str) -> pb::MonitorResponse {
    eventually("what is usual", async || {
        let report = node.report().await;
        knows(&report, figure).map(|()| report)
    })
    .await
}

/// Every durable write of a process takes that much longer, while this lives.
struct SlowDisk(Child);

impl SlowDisk {
    async fn of(node: &TestNode, longer: Duration) -> Self {
        let calls = "fsync,fdatasync";
        let mut strace = Command::new("strace");
        strace.args(["-f", "-p", &node.pid().to_string(), "-e", &format!("trace={calls}")]);
        let inject = format!("inject={calls}:delay_enter={}", longer.as_micros());
        strace.args(["-e", &inject, "-o", "/dev/null"]).stderr(Stdio::piped());
        let mut strace = strace.kill_on_drop(true).spawn().expect("strace is installed");
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines();
        let line = timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap_or_default();
        assert!(line.contains("attached"), "{line}");
        // What it says later shall not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self(strace)
    }

    async fn mend(mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        timeout(SOON, self.0.wait()).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "strace must be able to attach to a node: make faults runs it"]
async fn a_disk_that_becomes_slow_is_found_in_two_looks_and_its_end_too() {
    let cluster = TestCluster::start_with(1, slowly).await;
    let node = &cluster.nodes[0];
    let before = knows_what_is_usual(node, "disk_seconds").await;
    assert_eq!(confirmed(&before, "slow_disk", 2), None, "{:?}", before.anomalies);
    let disk = SlowDisk::of(node, Duration::from_millis(250)).await;
    let planted = node.report().await.cycle;
    let found =
        eventually("a slow disk", async || confirmed(&node.report().await, "slow_disk", 2)).await;
    assert!(found <= planted + WITHIN, "planted in {planted}, found in {found}");
    disk.mend().await;
    eventually("its end", async || {
        confirmed(&node.report().await, "slow_disk", 2).is_none().then_some(())
    })
    .await;
}

/// Compiles that never end, of callers that wait for them: what they hold is no cache.
#[tokio::test(flavor = "multi_thread")]
async fn memory_that_grows_and_is_no_cache_is_found_in_two_looks() {
    let cluster = TestCluster::start_with(1, |i, config| {
        slowly(i, config);
        config.compile.concurrency = 1;
    })
    .await;
    let node = &cluster.nodes[0];
    let _workers = Workers::pause(node).await;
    let before = knows_what_is_usual(node, "own_memory").await;
    assert_eq!(confirmed(&before, "memory_growth", 1), None, "{:?}", before.anomalies);

    let mut held = FuturesUnordered::new();
    let padding = "/".repeat(HELD);
    let hold = |n: usize| {
        let source = format!("extern \"C\" __global__ void k{n}() {{}}\n//{padding}\n");
        let request = pb::CompileRequest { fallback: FallbackPolicy::None.into(), ..cuda(source) };
        async move { node.compile(request).await.map(drop) }
    };
    let planted = before.cycle;
    let found = eventually("growing memory", async || {
        // Bounded, for a monitor that finds nothing.
        let more = held.len()..(held.len() + 2).min(MOST_HELD);
        more.for_each(|n| held.push(hold(n)));
        // They go on only while somebody waits for them.
        let none_ends = timeout(Duration::from_millis(100), held.next()).await;
        assert!(none_ends.is_err(), "{none_ends:?}");
        confirmed(&node.report().await, "memory_growth", 1)
    })
    .await;
    assert!(found <= planted + WITHIN, "planted in {planted}, found in {found}");
    // People see the same.
    let mut monitor = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let endpoint = format!("http://{}", node.config.grpc_listen);
    let told = monitor.args(["monitor", "--json", "--endpoint", &endpoint]).output().await.unwrap();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let kinds = told["anomalies"].as_array().unwrap().iter().map(|of| &of["kind"]);
    assert!(kinds.into_iter().any(|kind| kind == "memory_growth"), "{told}");
}
