//! Alerts: anomalies as they are told to people and to other systems.
//!
//! Invariant: an alert is the same for as long as its subject is wrong: its fingerprint and
//! its start do not change, and it ends once.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{anomaly::Anomaly, watchlist::Turn};

/// An alert of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// The same for the same subject of the same node.
    pub fingerprint: String,
    /// Its name, such as `KilnSlowDisk`.
    pub name: String,
    /// `warning` or `critical`.
    pub severity: String,
    /// The compiler or door that it is about; empty: the node.
    pub of: String,
    /// Who tells.
    pub node: u64,
    /// For people.
    pub summary: String,
    /// Milliseconds since the Unix epoch.
    pub starts_unix_ms: u64,
    /// Absent while it lasts.
    pub ends_unix_ms: Option<u64>,
}

impl Alert {
    /// Of an anomaly that lasts.
    pub fn of(anomaly: &Anomaly, node: u64) -> Self {
        let kind = anomaly.subject.kind;
        let named = format!("{node}/{}", anomaly.subject);
        Self {
            fingerprint: kiln_proto::Digest::of(named.as_bytes()).to_string()[..16].to_owned(),
            name: kind.alert().to_owned(),
            severity: kind.severity().name().to_owned(),
            of: anomaly.subject.of.clone(),
            node,
            summary: anomaly.finding.text.clone(),
            starts_unix_ms: anomaly.since_unix_ms,
            ends_unix_ms: None,
        }
    }

    /// Of what changed at a time.
    pub fn at(turn: &Turn, node: u64, unix_ms: u64) -> Self {
        match turn {
            Turn::Began(anomaly) => Self::of(anomaly, node),
            Turn::Ended(anomaly) => Self { ends_unix_ms: Some(unix_ms), ..Self::of(anomaly, node) },
        }
    }

    /// Whether it is over.
    pub fn is_resolved(&self) -> bool {
        self.ends_unix_ms.is_some()
    }
}

/// As RFC 3339 has it.
pub(super) fn rfc3339(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    humantime::format_rfc3339_millis(time.unwrap_or(SystemTime::UNIX_EPOCH)).to_string()
}
