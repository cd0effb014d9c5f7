//! What `kiln run` tells when it is done: `--json`, `--report` and a line for people.
//!
//! Invariant: a field printed once is never renamed or dropped. What was restored and
//! what COMMAND then opened are told apart, and where the file system does not tell, so
//! does the report.

use serde::Serialize;

use crate::cli::output::{seconds, size};

/// One JSON object for a run.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    /// COMMAND's, and so that of `kiln run`.
    pub(crate) exit_code: u8,
    /// From its start to its end.
    pub(crate) command_seconds: f64,
    /// Before its start: look-up, waiting, restore.
    pub(crate) before_seconds: f64,
    /// After its end: the last capture.
    pub(crate) after_seconds: f64,
    pub(crate) folders: Vec<FolderReport>,
}

/// How it went before COMMAND started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// The cluster had it.
    Hit,
    /// Another process filled it meanwhile, and it was restored.
    Waited,
    /// This process fills it.
    Miss,
    /// Nothing was restored, and this process is not the one that fills it.
    #[default]
    Cold,
}

/// One folder of a run.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct FolderReport {
    pub(crate) label: String,
    pub(crate) directory: String,
    pub(crate) key: String,
    pub(crate) target: String,
    pub(crate) outcome: Outcome,
    /// Why it is cold, or why nothing was published.
    pub(crate) why: Option<String>,
    /// Waiting for another process.
    pub(crate) waited_seconds: f64,
    /// Another process began to fill it and ended before it was done: this one goes on.
    pub(crate) takes_over: bool,
    pub(crate) restored: Restored,
    pub(crate) published: Published,
}

/// Files that came from the cluster.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Restored {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// There already, equal.
    pub(crate) same: usize,
    /// There already, different: kept as they were.
    pub(crate) kept: usize,
    /// Where the bytes came from: `memory`, `disk`, `peer`, `object`; null for nowhere.
    pub(crate) tier: Option<&'static str>,
    pub(crate) seconds: f64,
    /// Files that others published while COMMAND ran, and their bytes.
    pub(crate) live_files: usize,
    pub(crate) live_bytes: u64,
    /// Left out: a build made them from other files than are here.
    pub(crate) outdated: usize,
    /// One of those files that differ.
    pub(crate) differs: Option<String>,
    /// Of all that were restored, those that COMMAND opened; null where the file system
    /// keeps no times of access.
    pub(crate) used: Option<usize>,
    pub(crate) used_bytes: Option<u64>,
    /// Whether all of it was of no use; null where that is not known.
    pub(crate) unused: Option<bool>,
    /// What moved, where it was of no use and that can be seen.
    pub(crate) moved: Option<String>,
}

/// Files that went to the cluster.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Published {
    /// How often.
    pub(crate) captures: usize,
    /// New or changed, over all captures.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// The whole pack of the last one.
    pub(crate) pack_files: usize,
    pub(crate) pack_bytes: u64,
    /// Left out of the last one because they kept changing.
    pub(crate) changing: usize,
    /// Left out because of `--max-bytes` or the most files that an artifact has.
    pub(crate) beyond_limits: usize,
    /// Links, sockets and the like, never taken.
    pub(crate) unfit: usize,
    pub(crate) seconds: f64,
}

impl FolderReport {
    /// What happened before COMMAND, for people.
    pub(crate) fn opening(&self) -> String {
        let Self { label, restored, .. } = self;
        let kept = match restored.kept {
            0 => String::new(),
            kept => format!(", kept {kept} that differ"),
        };
        let outdated = match (restored.outdated, &restored.differs) {
            (0, _) => String::new(),
            (left, Some(input)) => format!(", left {left} out that were made from another {input}"),
            (left, None) => {
                format!(", left {left} out of which nobody knows what they are made of")
            }
        };
        let from = restored.tier.map(|tier| format!(" from {tier}")).unwrap_or_default();
        match self.outcome {
            Outcome::Hit | Outcome::Waited => format!(
                "{label}: restored {} files, {}{from} in {}; {} were there{kept}{outdated}{}",
                restored.files,
                size(restored.bytes),
                seconds(restored.seconds),
                restored.same,
                match (self.takes_over, &self.why) {
                    (true, _) => "; its filler ended early: this run fills it".into(),
                    (false, Some(why)) => format!("; {why}"),
                    (false, None) => String::new(),
                },
            ),
            Outcome::Miss => format!("{label}: not in the cluster yet; this run fills it"),
            Outcome::Cold => {
                let why = self.why.as_deref().unwrap_or("nothing to restore");
                format!("{label}: starts cold: {why}")
            }
        }
    }

    /// What COMMAND made of what was restored, for people.
    pub(crate) fn using(&self) -> Option<String> {
        let Self { label, restored, published, .. } = self;
        let all = restored.files + restored.live_files;
        let used = restored.used?;
        if restored.unused != Some(true) {
            return Some(format!("{label}: opened {used} of {all} restored files"));
        }
        let instead = match published.files {
            0 => String::new(),
            new => format!(", {new} new ones were published"),
        };
        let why = restored.moved.as_ref().map(|moved| format!(": {moved}")).unwrap_or_default();
        Some(format!("{label}: none of {all} restored files was opened{instead}{why}"))
    }

    /// What happened after COMMAND, for people, if anything did.
    pub(crate) fn closing(&self) -> Option<String> {
        let Self { label, published, .. } = self;
        if published.captures > 0 {
            return Some(format!(
                "{label}: published {} new files, {} (pack: {} files, {}) in {}",
                published.files,
                size(published.bytes),
                published.pack_files,
                size(published.pack_bytes),
                seconds(published.seconds),
            ));
        }
        let why = self.why.as_ref().filter(|_| self.outcome != Outcome::Cold)?;
        Some(format!("{label}: nothing published: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_shape_holds() {
        let folder = FolderReport { label: "triton".into(), ..FolderReport::default() };
        let report = RunReport {
            exit_code: 3,
            command_seconds: 1.0,
            before_seconds: 0.5,
            after_seconds: 0.25,
            folders: vec![folder],
        };
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "exit_code": 3, "command_seconds": 1.0, "before_seconds": 0.5,
                "after_seconds": 0.25,
                "folders": [{
                    "label": "triton", "directory": "", "key": "", "target": "",
                    "outcome": "cold", "why": null, "waited_seconds": 0.0,
                    "takes_over": false,
                    "restored": {"files": 0, "bytes": 0, "same": 0, "kept": 0, "tier": null,
                        "seconds": 0.0, "live_files": 0, "live_bytes": 0,
                        "outdated": 0, "differs": null,
                        "used": null, "used_bytes": null, "unused": null, "moved": null},
                    "published": {"captures": 0, "files": 0, "bytes": 0, "pack_files": 0,
                        "pack_bytes": 0, "changing": 0, "beyond_limits": 0, "unfit": 0,
                        "seconds": 0.0},
                }],
            })
        );
    }
}
