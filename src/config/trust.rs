//! What is believed of what others sign.
//!
//! Invariant: nothing here makes a node believe more than the signatures that it checks.

use serde::{Deserialize, Serialize};

/// What is believed of what others sign.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustConfig {
    /// One in so many hits is compiled once more in the background, by the node that gives it
    /// out, where another node signed it and the compiler always gives the same bytes (cuda,
    /// native). What differs is removed from all nodes, with an alert. 1: each artifact, once
    /// a node; 0: none, for these compiles take time of the node's. Default: 0.
    pub spot_checks: u64,
}
