//! What the port is told.
//!
//! Invariant: plain values; what they follow from is the configuration's matter.

use std::{path::PathBuf, time::Duration};

/// Settings of [`serve`](super::Resp::serve).
#[derive(Debug, Clone)]
pub struct Settings {
    /// Longest wait of a GET for another client's SET; zero: none.
    pub wait: Duration,
    /// The same by pattern of the key; the first match counts.
    pub families: Vec<(String, Duration)>,
    /// Largest value.
    pub max_value: u64,
    /// Connections at once.
    pub max_connections: usize,
    /// Who may connect; `None`: anybody.
    pub users: Option<PathBuf>,
    /// What clients see that name no namespace.
    pub namespace: String,
    /// Whether SETs and DELs are in the audit log.
    pub audits_values: bool,
    /// In which a reader must take, and a sender of a long value give, 64 KiB.
    pub progress: Duration,
    /// What one command, or transaction, may take before it begins with no further key.
    pub longest: Duration,
}
