//! What a node does before anybody asks.
//!
//! Invariant: none of it takes more than the bytes given here, nor a place of a request.

use serde::{Deserialize, Serialize};

use super::{Config, units};

/// What is fetched, and compiled, before anybody asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrewarmConfig {
    /// Whether artifacts that will be asked for are fetched at start, and then each hour for
    /// the next. Default: true.
    pub fetch: bool,
    /// Most bytes that are fetched at once; 0: half of `memory.bytes`. Default: 0.
    #[serde(with = "units::bytes")]
    pub bytes: u64,
    /// Whether what no node's toolchain makes any more, and is still used, is compiled
    /// again by the present one, where its request was kept. Default: true.
    pub refresh: bool,
}

impl Default for PrewarmConfig {
    fn default() -> Self {
        Self { fetch: true, bytes: 0, refresh: true }
    }
}

impl Config {
    /// Bytes that are fetched before anybody asks, with 0 resolved.
    pub fn prewarm_bytes(&self) -> u64 {
        match self.prewarm {
            PrewarmConfig { fetch: false, .. } => 0,
            PrewarmConfig { bytes: 0, .. } => self.memory.bytes / 2,
            PrewarmConfig { bytes, .. } => bytes,
        }
    }
}
