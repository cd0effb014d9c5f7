//! What the monitor tells: the last cycle, as one value.
//!
//! Invariant: a report is whole and of one cycle; whoever reads it holds up nothing.

use serde::{Deserialize, Serialize};

use super::{
    alert::Alert, anomaly::Anomaly, figure::Figure, optimizer::Decision, recommend::Recommendation,
    sample::Resources, usual::Usual,
};

/// The state of the monitor after a cycle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whose.
    pub node: u64,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Cycles since the start; 0: none has ended.
    pub cycle: u64,
    /// Seconds between two cycles.
    pub every_seconds: f64,
    /// Too little was seen since the start to call anything usual.
    pub fresh: bool,
    /// Each figure of the cycle.
    pub metrics: Vec<Metric>,
    /// The machine.
    pub resources: Resources,
    /// What is out of the ordinary.
    pub anomalies: Vec<Anomaly>,
    /// What the optimizer would do.
    pub recommendations: Vec<Recommendation>,
    /// What it did, the latest last.
    pub decisions: Vec<Decision>,
    /// What lasts, and what ended lately, the latest last.
    pub alerts: Vec<Alert>,
}

/// A figure with what is usual of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Which.
    pub figure: Figure,
    /// In this cycle.
    pub now: f64,
    /// Over the window; absent where too little was seen.
    pub usual: Option<Usual>,
}
