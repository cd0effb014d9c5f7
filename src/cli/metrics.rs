//! `kiln metrics`: what nodes count and measure.

use std::collections::BTreeMap;

use clap::Args;
use kiln::telemetry::{
    compilation::Compilation,
    exposition::{Family, Value},
};
use kiln_proto::pb;
use serde::Serialize;

use super::{
    CliError, ClientArgs,
    output::{self, seconds, size, table},
};

const EXAMPLES: &str = "\
Examples:
  kiln metrics
  kiln metrics --cluster
  kiln metrics --json | jq '.nodes[0].metrics.kiln_requests_total'

What each metric says is in deploy/METRICS.md, and in the field `help`.";

/// Show what a node, or all of them, count and measure.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Metrics {
    /// Ask all nodes.
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `kiln metrics --json`.
#[derive(Debug, Serialize)]
struct MetricsView {
    nodes: Vec<NodeView>,
    /// Of all nodes that answered.
    compilation: Compilation,
}

#[derive(Debug, Serialize)]
struct NodeView {
    node: u64,
    /// Why there is nothing of it.
    error: Option<String>,
    compilation: Option<Compilation>,
    metrics: BTreeMap<String, MetricView>,
}

#[derive(Debug, Serialize)]
struct MetricView {
    kind: String,
    unit: String,
    help: String,
    series: Vec<SeriesView>,
}

#[derive(Debug, Serialize)]
struct SeriesView {
    labels: BTreeMap<String, String>,
    #[serde(flatten)]
    value: ValueView,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ValueView {
    Number { value: f64 },
    Histogram { count: u64, sum: f64, mean: f64, p50: f64, p90: f64, p99: f64, buckets: Ends },
}

/// How many values are at or below each end, which is text as Prometheus has it: `+Inf`.
type Ends = Vec<(String, u64)>;

impl Metrics {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let request = pb::MetricsRequest { cluster: self.cluster };
        let answer = self.client.endpoints.attempt(async |mut client| {
            client.metrics(request).await.map_err(|e| CliError::from_status(&e))
        });
        let view = MetricsView::from(answer.await?.into_inner());
        match self.client.json {
            true => output::json(&view),
            false => output::line(for_people(&view)),
        }
    }
}

impl From<pb::MetricsResponse> for MetricsView {
    fn from(wire: pb::MetricsResponse) -> Self {
        let compilation = wire.compilation.as_ref().map(Into::into).unwrap_or_default();
        Self { nodes: wire.nodes.into_iter().map(Into::into).collect(), compilation }
    }
}

impl From<pb::NodeMetrics> for NodeView {
    fn from(wire: pb::NodeMetrics) -> Self {
        let metrics = wire.metrics.into_iter().map(|metric| (metric.name.clone(), metric.into()));
        Self {
            node: wire.node,
            error: Some(wire.error).filter(|why| !why.is_empty()),
            compilation: wire.compilation.as_ref().map(Into::into),
            metrics: metrics.collect(),
        }
    }
}

impl From<pb::Metric> for MetricView {
    fn from(wire: pb::Metric) -> Self {
        let series = Family::from(&wire).series.into_iter().map(|(labels, value)| {
            let value = match value {
                Value::Number(value) => ValueView::Number { value },
                Value::Histogram(histogram) => ValueView::Histogram {
                    count: histogram.count,
                    sum: histogram.sum,
                    mean: histogram.mean(),
                    p50: histogram.quantile(0.5),
                    p90: histogram.quantile(0.9),
                    p99: histogram.quantile(0.99),
                    buckets: histogram.buckets.iter().map(|(end, n)| (le(*end), *n)).collect(),
                },
            };
            SeriesView { labels, value }
        });
        let series = series.collect();
        Self { kind: wire.kind, unit: wire.unit, help: wire.help, series }
    }
}

fn le(end: f64) -> String {
    if end.is_infinite() { "+Inf".to_owned() } else { end.to_string() }
}

fn for_people(view: &MetricsView) -> String {
    let row = |name: String, figures: &Compilation| {
        let Compilation { compilation_stats: stats, performance, resources } = figures;
        [
            name,
            stats.cache_hits.to_string(),
            stats.coalesced.to_string(),
            stats.cache_misses.to_string(),
            format!("{:.1}%", 100.0 * performance.cache_hit_rate),
            stats.total_compilations.to_string(),
            seconds(performance.p50_compilation_time),
            seconds(performance.p99_compilation_time),
            seconds(performance.total_compilation_time),
            seconds(performance.compilation_time_saved),
            seconds(performance.p99_cache_load_time),
            size(resources.cache_disk_usage),
        ]
    };
    let mut rows: Vec<_> = view
        .nodes
        .iter()
        .filter_map(|node| Some(row(node.node.to_string(), node.compilation.as_ref()?)))
        .collect();
    if view.nodes.len() > 1 {
        rows.push(row("all".to_owned(), &view.compilation));
    }
    let heading = [
        "NODE",
        "HITS",
        "COALESCED",
        "MISSES",
        "HIT RATE",
        "COMPILES",
        "P50",
        "P99",
        "COMPILED",
        "SAVED",
        "LOAD P99",
        "DISK",
    ];
    let mut text = table(heading, &rows);
    for node in &view.nodes {
        if let Some(why) = &node.error {
            text.push_str(&format!("\nnode {}: {why}", node.node));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::MetricsResponse {
        let series = pb::MetricSeries {
            labels: vec![pb::Field { name: "compiler".into(), value: "cuda".into() }],
            value: Some(pb::metric_series::Value::Histogram(pb::HistogramValue {
                count: 2,
                sum: 3.0,
                ends: vec![1.0, f64::INFINITY],
                counts: vec![1, 2],
            })),
        };
        let metric = pb::Metric {
            name: "kiln_compile_seconds".into(),
            kind: "histogram".into(),
            unit: "seconds".into(),
            help: "h".into(),
            series: vec![series],
        };
        let figures = pb::CompilationMetrics { cache_hits: 4, ..Default::default() };
        let here = pb::NodeMetrics {
            node: 1,
            error: String::new(),
            metrics: vec![metric],
            compilation: Some(figures),
        };
        let gone = pb::NodeMetrics { node: 2, error: "no answer".into(), ..Default::default() };
        pb::MetricsResponse { nodes: vec![here, gone], compilation: Some(figures) }
    }

    #[test]
    fn the_json_shape_holds() {
        let view = serde_json::to_value(MetricsView::from(answer())).unwrap();
        assert_eq!(
            view["nodes"][0]["metrics"]["kiln_compile_seconds"],
            serde_json::json!({
                "kind": "histogram", "unit": "seconds", "help": "h",
                "series": [{"labels": {"compiler": "cuda"}, "count": 2, "sum": 3.0, "mean": 1.5,
                    "p50": 1.0, "p90": 1.0, "p99": 1.0, "buckets": [["1", 1], ["+Inf", 2]]}],
            })
        );
        assert_eq!(view["nodes"][1]["error"], "no answer");
        let stats = &view["compilation"]["compilation_stats"];
        assert_eq!((&stats["cache_hits"], &stats["cache_misses"]), (&4.into(), &0.into()));
        for part in ["performance", "resources"] {
            assert!(view["compilation"][part].is_object(), "{part}");
        }
    }

    #[test]
    fn a_node_that_does_not_answer_is_named() {
        let text = for_people(&MetricsView::from(answer()));
        assert!(text.ends_with("node 2: no answer"), "{text}");
    }
}
