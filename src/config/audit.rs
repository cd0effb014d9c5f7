//! The audit log.
//!
//! Invariant: its files are bounded.

use serde::{Deserialize, Serialize};

use super::{Config, MIB, units};
use crate::audit::{Settings, folder};

/// Who did what, in files below `data_dir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// Whether the node writes it. Default: true.
    pub enabled: bool,
    /// Also each SET and DEL of Redis clients, of which there may be thousands a second.
    /// Default: false.
    pub values: bool,
    /// A file that is as long is followed by another one. Default: 8 MiB.
    #[serde(with = "units::bytes")]
    pub file_bytes: u64,
    /// Files that are kept; the oldest is deleted. Default: 8.
    pub files: usize,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { enabled: true, values: false, file_bytes: 8 * MIB, files: 8 }
    }
}

impl Config {
    /// What the log is told; `None`: there is none.
    pub fn audit_settings(&self) -> Option<Settings> {
        let AuditConfig { enabled, file_bytes, files, .. } = self.audit;
        let folder = folder(&self.data_dir);
        enabled.then_some(Settings { folder, file_bytes, files })
    }

    /// What is wrong with it.
    pub(super) fn check_audit(&self, wrong: &mut Vec<String>) {
        if self.audit.file_bytes < 4096 || self.audit.files == 0 {
            wrong.push("audit.file_bytes is at least 4096, and audit.files at least 1".into());
        }
    }
}
