//! The monitor on the wire.
//!
//! Invariant: translates, and decides nothing.

use kiln_proto::pb;
use tonic::Status;

use crate::{
    emergency::{Cause, Mode, System},
    error::Error,
    monitor::{
        Alert, Anomaly, Decision, Evidence, Gpu, Metric, Monitor, Recommendation, Report, Usual,
    },
};

/// Longest reason that a person may give.
const LONGEST_REASON: usize = 1024;

/// A report.
pub(super) fn report(report: &Report) -> pb::MonitorResponse {
    let gpu = |gpu: &Gpu| pb::GpuUse {
        index: gpu.index,
        busy: gpu.busy,
        memory_bytes: gpu.memory_bytes,
        memory_used: gpu.memory_used,
    };
    pb::MonitorResponse {
        node: report.node,
        unix_ms: report.unix_ms,
        cycle: report.cycle,
        every_seconds: report.every_seconds,
        fresh: report.fresh,
        metrics: report.metrics.iter().map(metric).collect(),
        gpus: report.resources.gpus.iter().map(gpu).collect(),
        anomalies: report.anomalies.iter().map(anomaly).collect(),
        recommendations: report.recommendations.iter().map(recommendation).collect(),
        decisions: report.decisions.iter().map(decision).collect(),
        alerts: report.alerts.iter().map(alert).collect(),
    }
}

/// Turns systems off or on, as a person asks.
pub(super) async fn turn(monitor: &Monitor, request: pb::EmergencyRequest) -> Result<(), Status> {
    if request.reason.len() > LONGEST_REASON {
        let why = format!("a reason has at most {LONGEST_REASON} bytes");
        return Err(Error::Invalid(why).into());
    }
    let systems: &[System] = match request.system() {
        pb::EmergencySystem::Unspecified => &System::ALL,
        pb::EmergencySystem::Compilers => &[System::Compilers],
        pb::EmergencySystem::Cache => &[System::Cache],
    };
    for system in systems {
        match request.turn() {
            pb::EmergencyTurn::Unspecified => {}
            pb::EmergencyTurn::Begin => {
                let why = match &*request.reason {
                    "" => "turned off by hand".to_owned(),
                    reason => reason.to_owned(),
                };
                monitor.turn_off(*system, why);
            }
            pb::EmergencyTurn::End => {
                monitor.turn_on(*system).await.map_err(Status::failed_precondition)?;
            }
        }
    }
    Ok(())
}

impl From<&Mode> for pb::EmergencyMode {
    fn from(mode: &Mode) -> Self {
        let cause = |cause: &Cause| pb::EmergencyCause {
            by: cause.by.name().into(),
            why: cause.why.clone(),
            since_unix_ms: cause.since_unix_ms,
        };
        Self {
            compilers: mode.compilers.as_ref().map(cause),
            cache: mode.cache.as_ref().map(cause),
        }
    }
}

fn usual(usual: &Usual) -> pb::UsualValue {
    pb::UsualValue { median: usual.median, sigma: usual.sigma, cycles: usual.cycles as u64 }
}

fn metric(metric: &Metric) -> pb::MonitorMetric {
    pb::MonitorMetric {
        name: metric.figure.to_string(),
        unit: metric.figure.unit().into(),
        now: metric.now,
        usual: metric.usual.as_ref().map(usual),
    }
}

fn anomaly(anomaly: &Anomaly) -> pb::Anomaly {
    pb::Anomaly {
        kind: anomaly.subject.kind.name().into(),
        of: anomaly.subject.of.clone(),
        severity: anomaly.severity.name().into(),
        text: anomaly.finding.text.clone(),
        metric: anomaly.finding.figure.to_string(),
        now: anomaly.finding.now,
        usual: anomaly.finding.usual.as_ref().map(usual),
        since_unix_ms: anomaly.since_unix_ms,
        cycles: anomaly.cycles,
    }
}

fn evidence(evidence: &Evidence) -> pb::Evidence {
    pb::Evidence {
        metric: evidence.figure.to_string(),
        unit: evidence.figure.unit().into(),
        value: evidence.value,
    }
}

fn recommendation(of: &Recommendation) -> pb::Recommendation {
    pb::Recommendation {
        knob: of.knob.name().into(),
        from: of.knob.show(of.from),
        to: of.knob.show(of.to),
        why: of.why.clone(),
        evidence: of.evidence.iter().map(evidence).collect(),
    }
}

fn decision(of: &Decision) -> pb::Decision {
    pb::Decision {
        id: of.id,
        unix_ms: of.unix_ms,
        knob: of.knob.name().into(),
        from: of.knob.show(of.from),
        to: of.knob.show(of.to),
        why: of.why.clone(),
        evidence: of.evidence.iter().map(evidence).collect(),
        metric: of.figure.as_ref().map(ToString::to_string).unwrap_or_default(),
        before: of.before.as_ref().map(usual),
        after: of.after,
        state: of.state.name().into(),
        note: of.note.clone(),
    }
}

fn alert(alert: &Alert) -> pb::Alert {
    pb::Alert {
        fingerprint: alert.fingerprint.clone(),
        name: alert.name.clone(),
        severity: alert.severity.clone(),
        of: alert.of.clone(),
        node: alert.node,
        summary: alert.summary.clone(),
        starts_unix_ms: alert.starts_unix_ms,
        ends_unix_ms: alert.ends_unix_ms,
    }
}
