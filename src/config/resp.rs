//! The port for Redis clients.
//!
//! Invariant: a pattern that is read has a time, and the first that matches counts.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{MIB, units};

/// What Redis clients may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RespConfig {
    /// A GET waits at most this long for the SET of another client that missed
    /// the same key before it; 0: no GET ever waits. Default: 2 min.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
    /// The same for the keys that match a pattern, whatever was learned about
    /// them; the first match counts: `pt2:fx-graph-v1::*=5m`. Default: none.
    pub families: Vec<String>,
    /// Largest value that is stored. Default: 512 MiB.
    #[serde(with = "units::bytes")]
    pub max_value: u64,
    /// Connections at once. Default: 4096.
    pub max_connections: usize,
    /// File with a `NAMESPACE PASSWORD` in each line. Then clients must
    /// authenticate, and see that namespace. Default: none, anybody may connect.
    pub users: Option<PathBuf>,
}

impl Default for RespConfig {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(120),
            families: Vec::new(),
            max_value: 512 * MIB,
            max_connections: 4096,
            users: None,
        }
    }
}

impl RespConfig {
    /// Patterns of keys with the longest that a GET of them waits, in order.
    pub fn family_waits(&self) -> Result<Vec<(String, Duration)>, String> {
        let parse = |text: &String| {
            let (pattern, wait) =
                text.rsplit_once('=').filter(|(pattern, _)| !pattern.is_empty())?;
            Some((pattern.trim().to_owned(), humantime::parse_duration(wait.trim()).ok()?))
        };
        let wrong = |text| {
            format!("resp.families: {text:?} is no PATTERN=DURATION, such as pt2:fx-graph-v1::*=5m")
        };
        self.families.iter().map(|text| parse(text).ok_or_else(|| wrong(text))).collect()
    }
}
