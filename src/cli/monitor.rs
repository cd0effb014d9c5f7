//! `kiln monitor`: what a node sees of itself, and what it does about it.

use clap::{Args, Subcommand};
use kiln_proto::pb;
use serde::Serialize;

use super::{CliError, ClientArgs, emergency::time, output};

const EXAMPLES: &str = "\
Examples:
  kiln monitor
  kiln monitor --endpoint http://10.0.0.2:7400 --json
  kiln monitor undo 7";

/// Show what a node sees of itself: figures and what is usual of them, anomalies,
/// recommendations, and what the optimizer decided.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = false)]
pub(crate) struct Monitor {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take a decision of the optimizer back, and leave its knob alone from then on.
    Undo {
        /// Its number; see kiln monitor.
        decision: u64,
    },
}

impl Monitor {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        if let Some(Action::Undo { decision }) = self.action {
            // Connected once: decisions are one node's.
            let mut client = self.client.endpoints.connect().await?;
            let undone = client.undo(pb::UndoRequest { decision }).await;
            let done = undone.map_err(|e| CliError::from_status(&e))?.into_inner().done;
            return match self.client.json {
                true => output::json(&serde_json::json!({ "undone": decision, "done": done })),
                false => output::line(done),
            };
        }
        let asked = self.client.endpoints.attempt(async |mut client| {
            client.monitor(pb::MonitorRequest {}).await.map_err(|e| CliError::from_status(&e))
        });
        let report = asked.await?.into_inner();
        match self.client.json {
            true => output::json(&ReportView::from(report)),
            false => output::line(for_people(&report)),
        }
    }
}

/// `kiln monitor --json`.
#[derive(Debug, Serialize)]
struct ReportView {
    node: u64,
    unix_ms: u64,
    cycle: u64,
    every_seconds: f64,
    fresh: bool,
    metrics: Vec<MetricView>,
    gpus: Vec<GpuView>,
    anomalies: Vec<AnomalyView>,
    recommendations: Vec<RecommendationView>,
    decisions: Vec<DecisionView>,
    alerts: Vec<AlertView>,
}

#[derive(Debug, Serialize)]
struct MetricView {
    name: String,
    unit: String,
    now: f64,
    usual: Option<UsualView>,
}

#[derive(Debug, Serialize)]
struct UsualView {
    median: f64,
    sigma: f64,
    cycles: u64,
}

#[derive(Debug, Serialize)]
struct GpuView {
    index: u32,
    busy: f64,
    memory_bytes: u64,
    memory_used: u64,
}

#[derive(Debug, Serialize)]
struct AnomalyView {
    kind: String,
    of: String,
    severity: String,
    text: String,
    metric: String,
    now: f64,
    usual: Option<UsualView>,
    since_unix_ms: u64,
    cycles: u32,
}

#[derive(Debug, Serialize)]
struct EvidenceView {
    metric: String,
    unit: String,
    value: f64,
}

#[derive(Debug, Serialize)]
struct RecommendationView {
    knob: String,
    from: String,
    to: String,
    why: String,
    evidence: Vec<EvidenceView>,
}

#[derive(Debug, Serialize)]
struct DecisionView {
    id: u64,
    unix_ms: u64,
    knob: String,
    from: String,
    to: String,
    why: String,
    evidence: Vec<EvidenceView>,
    metric: String,
    before: Option<UsualView>,
    after: Option<f64>,
    state: String,
    note: String,
}

#[derive(Debug, Serialize)]
struct AlertView {
    fingerprint: String,
    name: String,
    severity: String,
    of: String,
    node: u64,
    summary: String,
    starts_unix_ms: u64,
    ends_unix_ms: Option<u64>,
}

impl From<pb::MonitorResponse> for ReportView {
    fn from(of: pb::MonitorResponse) -> Self {
        let recommendation = |of: pb::Recommendation| RecommendationView {
            knob: of.knob,
            from: of.from,
            to: of.to,
            why: of.why,
            evidence: evidence(of.evidence),
        };
        let metric = |of: pb::MonitorMetric| MetricView {
            name: of.name,
            unit: of.unit,
            now: of.now,
            usual: of.usual.map(Into::into),
        };
        let gpu = |of: pb::GpuUse| GpuView {
            index: of.index,
            busy: of.busy,
            memory_bytes: of.memory_bytes,
            memory_used: of.memory_used,
        };
        Self {
            node: of.node,
            unix_ms: of.unix_ms,
            cycle: of.cycle,
            every_seconds: of.every_seconds,
            fresh: of.fresh,
            metrics: of.metrics.into_iter().map(metric).collect(),
            gpus: of.gpus.into_iter().map(gpu).collect(),
            anomalies: of.anomalies.into_iter().map(Into::into).collect(),
            recommendations: of.recommendations.into_iter().map(recommendation).collect(),
            decisions: of.decisions.into_iter().map(Into::into).collect(),
            alerts: of.alerts.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::UsualValue> for UsualView {
    fn from(of: pb::UsualValue) -> Self {
        Self { median: of.median, sigma: of.sigma, cycles: of.cycles }
    }
}

impl From<pb::Anomaly> for AnomalyView {
    fn from(of: pb::Anomaly) -> Self {
        Self {
            kind: of.kind,
            of: of.of,
            severity: of.severity,
            text: of.text,
            metric: of.metric,
            now: of.now,
            usual: of.usual.map(Into::into),
            since_unix_ms: of.since_unix_ms,
            cycles: of.cycles,
        }
    }
}

impl From<pb::Decision> for DecisionView {
    fn from(of: pb::Decision) -> Self {
        Self {
            id: of.id,
            unix_ms: of.unix_ms,
            knob: of.knob,
            from: of.from,
            to: of.to,
            why: of.why,
            evidence: evidence(of.evidence),
            metric: of.metric,
            before: of.before.map(Into::into),
            after: of.after,
            state: of.state,
            note: of.note,
        }
    }
}

impl From<pb::Alert> for AlertView {
    fn from(of: pb::Alert) -> Self {
        Self {
            fingerprint: of.fingerprint,
            name: of.name,
            severity: of.severity,
            of: of.of,
            node: of.node,
            summary: of.summary,
            starts_unix_ms: of.starts_unix_ms,
            ends_unix_ms: of.ends_unix_ms,
        }
    }
}

fn evidence(all: Vec<pb::Evidence>) -> Vec<EvidenceView> {
    let view =
        |of: pb::Evidence| EvidenceView { metric: of.metric, unit: of.unit, value: of.value };
    all.into_iter().map(view).collect()
}

fn for_people(report: &pb::MonitorResponse) -> String {
    let every = format!("every {} s", report.every_seconds);
    let state = match (report.cycle, report.fresh) {
        (0, _) if report.every_seconds == 0.0 => "no cycle has ended".to_owned(),
        (cycle, true) => format!("cycle {cycle}, {every}; too early to say what is usual"),
        (cycle, false) => format!("cycle {cycle}, {every}"),
    };
    let mut parts = vec![format!("node {}: {state}", report.node)];
    let rows: Vec<_> = report
        .metrics
        .iter()
        .map(|of| {
            let usual = of.usual.as_ref();
            let usual = usual.map_or("-".to_owned(), |usual| value(&of.unit, usual.median));
            [of.name.clone(), value(&of.unit, of.now), usual]
        })
        .collect();
    parts.push(output::table(["FIGURE", "NOW", "USUALLY"], &rows));
    for gpu in &report.gpus {
        let (used, all) = (output::size(gpu.memory_used), output::size(gpu.memory_bytes));
        parts.push(format!("GPU {}: {:.0}% busy, {used} of {all}", gpu.index, gpu.busy * 100.0));
    }
    match report.anomalies.is_empty() {
        true => parts.push("nothing is out of the ordinary".into()),
        false => {
            let row = |of: &pb::Anomaly| {
                let what = if of.of.is_empty() {
                    of.kind.clone()
                } else {
                    format!("{}({})", of.kind, of.of)
                };
                [what, of.severity.clone(), time(of.since_unix_ms), of.text.clone()]
            };
            let rows: Vec<_> = report.anomalies.iter().map(row).collect();
            parts.push(output::table(["ANOMALY", "SEVERITY", "SINCE", "WHAT"], &rows));
        }
    }
    if !report.recommendations.is_empty() {
        let row = |of: &pb::Recommendation| {
            [of.knob.clone(), of.from.clone(), of.to.clone(), of.why.clone()]
        };
        let rows: Vec<_> = report.recommendations.iter().map(row).collect();
        parts.push(output::table(["RECOMMENDED", "FROM", "TO", "WHY"], &rows));
    }
    if !report.decisions.is_empty() {
        let rows: Vec<_> = report.decisions.iter().map(decision).collect();
        parts.push(output::table(["DECISION", "AT", "KNOB", "FROM", "TO", "STATE", "WHY"], &rows));
    }
    parts.join("\n\n")
}

fn decision(of: &pb::Decision) -> [String; 7] {
    let seen = of.evidence.iter().map(|of| format!("{} {}", of.metric, value(&of.unit, of.value)));
    let seen: Vec<String> = seen.collect();
    let note = if of.note.is_empty() { String::new() } else { format!("; {}", of.note) };
    [
        of.id.to_string(),
        time(of.unix_ms),
        of.knob.clone(),
        of.from.clone(),
        of.to.clone(),
        of.state.clone(),
        format!("{} ({}){note}", of.why, seen.join(", ")),
    ]
}

/// A value in its unit.
fn value(unit: &str, value: f64) -> String {
    match unit {
        "s" => output::seconds(value),
        "share" => format!("{:.1}%", value * 100.0),
        // Sizes are never negative, and what is no number is none.
        "bytes" => output::size(value.max(0.0) as u64),
        "bytes/s" => format!("{}/s", output::size(value.max(0.0) as u64)),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> pb::MonitorResponse {
        let usual = pb::UsualValue { median: 0.25, sigma: 0.5, cycles: 40 };
        let evidence =
            vec![pb::Evidence { metric: "cpu".into(), unit: "share".into(), value: 0.5 }];
        pb::MonitorResponse {
            node: 2,
            cycle: 41,
            every_seconds: 60.0,
            metrics: vec![pb::MonitorMetric {
                name: "disk_seconds".into(),
                unit: "s".into(),
                now: 0.5,
                usual: Some(usual),
            }],
            anomalies: vec![pb::Anomaly {
                kind: "slow_compiles".into(),
                of: "cuda".into(),
                severity: "warning".into(),
                text: "compiles take 9.000 s".into(),
                usual: Some(usual),
                ..pb::Anomaly::default()
            }],
            decisions: vec![pb::Decision {
                id: 7,
                knob: "compile_workers".into(),
                from: "4".into(),
                to: "5".into(),
                why: "3 compiles wait".into(),
                evidence,
                state: "rolled_back".into(),
                note: "its figure got worse".into(),
                ..pb::Decision::default()
            }],
            ..pb::MonitorResponse::default()
        }
    }

    #[test]
    fn people_see_what_is_wrong_and_what_was_done_about_it() {
        let text = for_people(&report());
        for told in [
            "cycle 41, every 60 s",
            "disk_seconds  500.0 ms  250.0 ms",
            "slow_compiles(cuda)",
            "rolled_back  3 compiles wait (cpu 50.0%); its figure got worse",
        ] {
            assert!(text.contains(told), "{told}: {text}");
        }
        let calm = for_people(&pb::MonitorResponse { fresh: true, ..report_without() });
        assert!(calm.contains("too early to say") && calm.contains("nothing is out of"), "{calm}");
    }

    fn report_without() -> pb::MonitorResponse {
        pb::MonitorResponse { cycle: 1, every_seconds: 60.0, ..pb::MonitorResponse::default() }
    }

    #[test]
    fn the_json_shape_holds() {
        let json = serde_json::to_value(ReportView::from(report())).unwrap();
        assert_eq!(json["metrics"][0]["usual"]["cycles"], 40);
        assert_eq!(json["anomalies"][0]["of"], "cuda");
        let decision = &json["decisions"][0];
        assert_eq!(decision["evidence"][0]["metric"], "cpu");
        assert_eq!(
            (&decision["after"], &decision["state"]),
            (&serde_json::Value::Null, &"rolled_back".into())
        );
        assert_eq!(json["alerts"], serde_json::json!([]));
    }
}
