//! What the monitor looks at, what it may change, and whom it tells.
//!
//! Invariant: by default it watches, recommends, and writes to the log: it changes nothing
//! and calls nobody.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, units};

/// How the node watches itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Between two looks; 0: the node does not watch itself. Default: 1 min.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Looks over which it is known what is usual. Default: 60, an hour.
    pub window: usize,
    /// Looks from which on something can be usual. Default: 15.
    pub enough: usize,
    /// Turn compilers or cache off where they do not work at all, and on again when they
    /// do. Default: true.
    pub emergency: bool,
}

/// What the monitor may change while the node runs. A restart begins with what is
/// configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Carry recommendations out; else they are only told. Default: false.
    pub apply: bool,
    /// Looks after which a change is judged, and taken back if its figure got worse.
    /// Default: 5.
    pub judged_after: u64,
    /// Looks for which what did not help is not tried again. Default: 60.
    pub rest: u64,
    /// Least compiles at once. Default: 1.
    pub workers_min: usize,
    /// Most compiles at once; 0: twice `compile.concurrency`. Default: 0.
    pub workers_max: usize,
    /// Least bytes of the memory tier, whose most are `memory.bytes`; 0: a quarter of
    /// these. Default: 0.
    #[serde(with = "units::bytes")]
    pub memory_min: u64,
    /// Least bytes of the disk tier; 0: half of `disk.bytes`. Default: 0.
    #[serde(with = "units::bytes")]
    pub disk_min: u64,
    /// Most bytes of the disk tier; 0: `disk.bytes`. Default: 0.
    #[serde(with = "units::bytes")]
    pub disk_max: u64,
    /// Whether `disk.policy` may be changed. Default: true.
    pub policy: bool,
    /// Least that a GET waits for another client, of at most `resp.wait`. Default: 5 s.
    #[serde(with = "humantime_serde")]
    pub wait_min: Duration,
    /// Most bytes of memory of one compile, of at least `compile.memory_limit`; 0: twice
    /// these. Default: 0.
    #[serde(with = "units::bytes")]
    pub compile_memory_max: u64,
}

/// Who is told of what is wrong, besides the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsConfig {
    /// Gets each alert, and its end, as Alertmanager would send them: an `http://` or
    /// `https://` URL. Default: none.
    pub webhook: Option<String>,
    /// An Alertmanager, without `/api/v2/alerts`. Default: none.
    pub alertmanager: Option<String>,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self { every: Duration::from_secs(60), window: 60, enough: 15, emergency: true }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            apply: false,
            judged_after: 5,
            rest: 60,
            workers_min: 1,
            workers_max: 0,
            memory_min: 0,
            disk_min: 0,
            disk_max: 0,
            policy: true,
            wait_min: Duration::from_secs(5),
            compile_memory_max: 0,
        }
    }
}

/// A node that looks more often does nothing else.
const SHORTEST: Duration = Duration::from_millis(100);

impl Config {
    pub(super) fn check_monitor(&self, wrong: &mut Vec<String>) {
        let monitor = &self.monitor;
        if !monitor.every.is_zero() && monitor.every < SHORTEST {
            wrong.push(format!("monitor.every is below {SHORTEST:?}; 0 turns it off"));
        }
        if monitor.enough < 4 || monitor.window < monitor.enough || monitor.window > 10_000 {
            wrong.push(
                "monitor.enough must be at least 4, and monitor.window between that and 10000"
                    .into(),
            );
        }
        let optimizer = &self.optimizer;
        if optimizer.judged_after == 0 || optimizer.judged_after as usize > monitor.window {
            wrong.push("optimizer.judged_after must be between 1 and monitor.window".into());
        }
        if optimizer.workers_min == 0 {
            wrong.push(
                "optimizer.workers_min is 0: a node that compiles nothing helps nobody".into(),
            );
        }
        if optimizer.memory_min > self.memory.bytes {
            wrong.push("optimizer.memory_min is above memory.bytes, which is the most".into());
        }
        let urls = [("webhook", &self.alerts.webhook), ("alertmanager", &self.alerts.alertmanager)];
        for (name, text) in urls.into_iter().filter_map(|(n, url)| Some((n, url.as_ref()?))) {
            let url = url::Url::parse(text);
            if !url.is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
                // Not the text: it may have a password in it.
                wrong.push(format!("alerts.{name} is no http:// or https:// URL"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_and_a_secret_is_not_told() {
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 6] = [
            (|c| c.monitor.every = Duration::from_millis(1), "monitor.every is below"),
            (|c| c.monitor.enough = 61, "monitor.window"),
            (|c| c.optimizer.judged_after = 0, "judged_after"),
            (|c| c.optimizer.workers_min = 0, "workers_min"),
            (|c| c.optimizer.memory_min = u64::MAX, "memory_min"),
            (|c| c.alerts.webhook = Some("ftp://me:secret@x".into()), "alerts.webhook is no"),
        ];
        for (change, told) in cases {
            let mut config = Config::default();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains("secret"), "{told}: {error}");
        }
        let mut off = Config::default();
        off.monitor.every = Duration::ZERO;
        off.validate().unwrap();
    }
}
