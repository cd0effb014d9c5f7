//! What the monitor says, for the page.
//!
//! Invariant: an alert that is over is none; a decision shows what became of it.

use super::view::{AlertView, DecisionView};
use crate::monitor::{Alert, Decision, Report};

/// Alerts that last, and decisions.
pub(super) fn watched(report: &Report) -> (Vec<AlertView>, Vec<DecisionView>) {
    let lasting = report.alerts.iter().filter(|alert| !alert.is_resolved());
    let decisions = report.decisions.iter().map(|decision| decided(report.node, decision));
    (lasting.map(alert).collect(), decisions.collect())
}

fn alert(alert: &Alert) -> AlertView {
    AlertView {
        node: alert.node,
        name: alert.name.clone(),
        severity: alert.severity.clone(),
        since_unix_ms: alert.starts_unix_ms,
        summary: alert.summary.clone(),
    }
}

fn decided(node: u64, decision: &Decision) -> DecisionView {
    let Decision { knob, from, to, why, evidence, note, .. } = decision;
    let figures = evidence.iter().map(|one| format!("{} {:.3}", one.figure, one.value));
    let figures = figures.collect::<Vec<_>>().join(", ");
    let parts = [why.as_str(), &figures, note].into_iter().filter(|part| !part.is_empty());
    DecisionView {
        node,
        id: decision.id.to_string(),
        at_unix_ms: decision.unix_ms,
        action: format!("{} from {} to {}", knob.name(), knob.show(*from), knob.show(*to)),
        evidence: parts.collect::<Vec<_>>().join("; "),
        state: decision.state.name().into(),
    }
}
