//! What was wanted is compiled while a fallback is used.

use std::{sync::Arc, time::Duration};

use kiln_proto::pb::Outcome;
use rustix::process::{Signal, kill_process};
use tokio::{sync::Notify, time::timeout};

use super::{is_eagers_own, program, rung, tried, wanted};
use crate::{
    harness::{SOON, TestCluster, eventually},
    pieces::workers::children,
};

const BLOCK: &str = "block_f32.new.pt2";

/// Ends every compiler of a node as soon as it is seen, until it is dropped.
struct Killer {
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Killer {
    fn of(node: u32) -> Self {
        let stop = Arc::<Notify>::default();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            loop {
                for pid in children(node, "worker") {
                    let _ = kill_process(pid, Signal::KILL);
                }
                if timeout(Duration::from_millis(2), stopped.notified()).await.is_ok() {
                    return;
                }
            }
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.notify_one();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_compile_for_all_nodes_replaces_a_fallback() {
    let cluster = TestCluster::start(3).await;
    for node in &cluster.nodes {
        eventually("its compiler", async || {
            let compilers = node.status().await.ok()?.compilers;
            compilers.iter().any(|found| found.compiler == "native").then_some(())
        })
        .await;
    }
    let killers: Vec<_> = cluster.nodes.iter().map(|node| Killer::of(node.pid())).collect();
    let asked = cluster.nodes.iter().map(|node| node.compile(program(BLOCK)));
    let fell = timeout(SOON, futures::future::join_all(asked)).await.expect("all are answered");
    let fell: Vec<_> = fell.into_iter().map(Result::unwrap).collect();
    for (node, fell) in cluster.nodes.iter().zip(&fell) {
        is_eagers_own(node, &program(BLOCK), fell).await;
        let all = tried(fell);
        assert_eq!(all[0], ("wanted".into(), "crashed"));
        let rungs: Vec<&str> = all.iter().map(|(rung, _)| rung.as_str()).collect();
        assert_eq!(rungs, ["wanted", "again", "fewer", "pieces", "other"], "{all:?}");
    }
    let wanted = wanted(&fell[0]);
    for killer in killers {
        killer.stop().await;
    }
    for node in &cluster.nodes {
        eventually("what was wanted", async || {
            (node.counter("fallbacks_replaced").await == 1).then_some(())
        })
        .await;
        let real = node.compile(program(BLOCK)).await.unwrap();
        assert_eq!((rung(&real), real.key, real.outcome), ("wanted", wanted, Outcome::Hit));
    }
    let mut made = 0;
    for node in &cluster.nodes {
        let page = crate::harness::metrics(node).await;
        let ran = |line: &&str| {
            line.starts_with("kiln_compiler_runs_total")
                && line.contains(r#"compiler="native""#)
                && line.contains(r#"ok="true""#)
        };
        made += page
            .lines()
            .filter(ran)
            .map(|line| line.rsplit(' ').next().unwrap())
            .fold(0u64, |sum, count| sum + count.parse::<u64>().unwrap());
    }
    assert_eq!(made, 1, "one compile for three nodes");
}
