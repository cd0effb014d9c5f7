//! What nodes tell of what they did.

use std::collections::BTreeMap;

use kiln::telemetry::table;
use kiln_proto::pb::{self, metric_series::Value};

use super::harness::{TestCluster, cuda, eventually, metrics, saxpy};

/// A number, or a histogram's count, summed over the series with these labels.
pub(crate) fn sum(metrics: &[pb::Metric], name: &str, labels: &[(&str, &str)]) -> f64 {
    let family = metrics.iter().find(|metric| metric.name == name);
    let series = family.into_iter().flat_map(|metric| &metric.series);
    let wanted = series.filter(|series| {
        let has: BTreeMap<_, _> =
            series.labels.iter().map(|l| (l.name.as_str(), l.value.as_str())).collect();
        labels.iter().all(|(name, value)| has.get(name) == Some(value))
    });
    let values = wanted.map(|series| match series.value.as_ref().unwrap() {
        Value::Number(number) => *number,
        Value::Histogram(histogram) => histogram.count as f64,
    });
    values.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_and_the_cluster_tell_what_was_compiled_and_saved() {
    let mut cluster = TestCluster::start(3).await;
    let [first, second] = [0, 1];
    cluster.nodes[first].compile(saxpy("counted")).await.unwrap();
    cluster.nodes[second].compile(saxpy("counted")).await.unwrap();
    cluster.nodes[first].compile(cuda("no CUDA at all")).await.unwrap_err();
    let ask = async |node: usize, cluster_too| {
        let request = pb::MetricsRequest { cluster: cluster_too };
        let mut client = cluster.nodes[node].client().await;
        client.metrics(request).await.unwrap().into_inner()
    };
    let of_first = ask(first, false).await;
    let [node] = &of_first.nodes[..] else { panic!("{of_first:?}") };
    assert_eq!(node.node, cluster.nodes[first].id);
    let of = |name, labels: &[(&str, &str)]| sum(&node.metrics, name, labels);
    assert_eq!(of("kiln_requests_total", &[("outcome", "compiled")]), 1.0);
    assert_eq!(of("kiln_requests_total", &[("outcome", "failed")]), 1.0);
    assert_eq!(of("kiln_compile_seconds", &[("compiler", "cuda")]), 1.0);
    assert_eq!(of("kiln_saved_total", &[]), 1.0);
    assert_eq!(of("kiln_grpc_requests_total", &[("method", "Compile"), ("code", "ok")]), 1.0);
    let refused = [("method", "Compile"), ("code", "invalid_argument")];
    assert_eq!(of("kiln_grpc_requests_total", &refused), 1.0);
    assert!(of("kiln_raft_fsync_seconds", &[]) > 0.0 && of("kiln_raft_log_entries", &[]) > 0.0);
    assert!(of("kiln_tier_capacity_bytes", &[("tier", "disk")]) > 0.0);
    let described = table::find("kiln_raft_fsync_seconds").unwrap();
    let fsync = node.metrics.iter().find(|m| m.name == described.name).unwrap();
    assert_eq!((fsync.kind.as_str(), fsync.unit.as_str()), ("histogram", "seconds"));
    assert_eq!(fsync.help, described.help);

    let of_second = ask(second, false).await.nodes.remove(0);
    let of = |name, labels: &[(&str, &str)]| sum(&of_second.metrics, name, labels);
    assert_eq!(of("kiln_requests_total", &[("outcome", "hit"), ("tier", "peer")]), 1.0);
    assert_eq!(of("kiln_load_seconds", &[("tier", "peer")]), 1.0);
    let saved = of_second.compilation.unwrap().compilation_time_saved;
    let compiled = of_first.nodes[0].compilation.as_ref().unwrap().total_compilation_time;
    assert!(saved > 0.0 && saved <= compiled * 1.5, "{saved} of {compiled}");

    let all = ask(second, true).await;
    let ids: Vec<u64> = all.nodes.iter().map(|node| node.node).collect();
    assert_eq!((ids.len(), ids[0]), (3, cluster.nodes[second].id));
    let figures = all.compilation.unwrap();
    assert_eq!((figures.total_compilations, figures.cache_hits), (1, 1));
    assert_eq!((figures.cache_misses, figures.artifacts_saved), (2, 1));
    assert!((figures.cache_hit_rate - 1.0 / 3.0).abs() < 1e-9);

    cluster.nodes[first].kill().await;
    let request = pb::MetricsRequest { cluster: true };
    let mut client = cluster.nodes[second].client().await;
    let rest = client.metrics(request).await.unwrap().into_inner();
    let gone = rest.nodes.iter().find(|node| node.node == cluster.nodes[first].id).unwrap();
    assert!(!gone.error.is_empty() && gone.metrics.is_empty(), "{gone:?}");
    assert_eq!(rest.compilation.unwrap().total_compilations, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_counted_by_the_part_of_its_key_that_differs() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let reason = async |name: &str| {
        let line = format!("kiln_misses_total{{reason=\"{name}\"}} 1");
        eventually(name, async || metrics(node).await.contains(&line).then_some(())).await;
    };
    node.compile(saxpy("first")).await.unwrap();
    reason("none").await;
    node.compile(saxpy("another")).await.unwrap();
    reason("graph").await;
    let mut other = saxpy("first");
    other.targets = vec![kiln_proto::Target::cubin(80).into()];
    node.compile(other).await.unwrap();
    reason("target").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_tells_how_far_each_node_is_behind_and_forgets_it_with_its_office() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    let behind = (leader + 1) % 3;
    let gone = cluster.nodes[behind].id;
    cluster.nodes[behind].kill().await;
    let lag = |page: &str| -> Option<f64> {
        let series = format!("kiln_raft_replication_lag_entries{{node=\"{gone}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
    };
    cluster.nodes[leader].compile(saxpy("behind")).await.unwrap();
    let node = &cluster.nodes[leader];
    eventually("a lag", async || lag(&metrics(node).await).filter(|lag| *lag > 0.0)).await;
    cluster.nodes[behind].restart().await;
    let node = &cluster.nodes[leader];
    eventually("no lag", async || lag(&metrics(node).await).filter(|lag| *lag == 0.0)).await;
}
