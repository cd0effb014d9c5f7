//! The table of what was done and found.
//!
//! Invariant: it has a row for each nemesis that ran, and one for all of them; a number
//! in it was counted or timed in this very run.

use std::path::Path;

use serde::Serialize;

use crate::check::Violation;

/// All runs of one nemesis.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) nemesis: String,
    pub(crate) runs: usize,
    pub(crate) strikes: usize,
    pub(crate) histories: usize,
    pub(crate) operations: usize,
    pub(crate) succeeded: usize,
    /// Of these, while a fault held.
    pub(crate) during: usize,
    pub(crate) violations: Vec<Violation>,
    /// Seconds from the end of each fault to the first write that succeeded.
    pub(crate) recoveries: Vec<f64>,
    pub(crate) lost: usize,
    pub(crate) wrong: usize,
    /// Why a run was none: its fault never struck, or it could not be carried out.
    pub(crate) failed: Vec<String>,
    pub(crate) seconds: f64,
}

impl Row {
    pub(crate) fn passed(&self) -> bool {
        self.violations.is_empty() && self.failed.is_empty()
    }

    pub(crate) fn add(&mut self, other: Row) {
        self.runs += other.runs;
        self.strikes += other.strikes;
        self.histories += other.histories;
        self.operations += other.operations;
        self.succeeded += other.succeeded;
        self.during += other.during;
        self.violations.extend(other.violations);
        self.recoveries.extend(other.recoveries);
        self.lost += other.lost;
        self.wrong += other.wrong;
        self.failed.extend(other.failed);
        self.seconds += other.seconds;
    }

    fn cells(&self) -> [String; 12] {
        let recovery = |share| percentile(&self.recoveries, share);
        [
            self.nemesis.clone(),
            self.runs.to_string(),
            self.strikes.to_string(),
            self.histories.to_string(),
            self.operations.to_string(),
            self.during.to_string(),
            self.violations.len().to_string(),
            recovery(50),
            recovery(99),
            self.lost.to_string(),
            self.wrong.to_string(),
            self.failed.len().to_string(),
        ]
    }
}

const HEAD: [&str; 12] = [
    "nemesis",
    "runs",
    "strikes",
    "histories",
    "operations",
    "ok during it",
    "violations",
    "recovery p50",
    "p99",
    "acknowledged lost",
    "wrong bytes",
    "failed runs",
];

fn percentile(seconds: &[f64], share: usize) -> String {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * share).div_ceil(100).saturating_sub(1);
    sorted.get(at).map_or("-".into(), |seconds| format!("{seconds:.2} s"))
}

/// The table as text, and as JSON where a file is named.
pub(crate) fn show(rows: &[Row], seed: u64, json: Option<&Path>) -> anyhow::Result<()> {
    let mut all = Row { nemesis: "all".into(), ..Row::default() };
    println!("| {} |", HEAD.join(" | "));
    println!("|{}", "---|".repeat(HEAD.len()));
    for row in rows {
        println!("| {} |", row.cells().join(" | "));
    }
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let text = serde_json::json!({ "seed": seed, "profile": profile, "rows": rows });
    for row in rows {
        all.add(row.clone());
    }
    println!("| {} |", all.cells().join(" | "));
    println!("seed {seed}, profile {profile}, {:.1} minutes of runs", all.seconds / 60.0);
    for row in rows {
        for why in &row.failed {
            println!("{}: FAILED: {why}", row.nemesis);
        }
        for Violation { check, key, what } in &row.violations {
            println!("{}: VIOLATION of {check}, key {key}: {what}", row.nemesis);
        }
    }
    if let Some(file) = json {
        std::fs::write(file, serde_json::to_string_pretty(&text)?)?;
    }
    Ok(())
}
