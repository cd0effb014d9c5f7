//! How to split.
//!
//! Invariant: equal settings and an equal graph give equal pieces; settings are
//! no part of a piece's key.

use serde::{Deserialize, Serialize};

use super::Coefficients;

/// Whether to compile a graph in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Piecewise {
    /// As the graph suggests.
    #[default]
    Auto,
    /// Yes; a graph that cannot be split is refused.
    Always,
    /// No.
    Never,
}

impl std::str::FromStr for Piecewise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(format!("{text:?} is none of auto, always and never")),
        }
    }
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether to.
    pub piecewise: Piecewise,
    /// Operations that become pieces of their own: those whose names contain one
    /// of these. What attention is in a decomposed program is found too.
    pub at: Vec<String>,
    /// Cut between equal layers.
    pub layers: bool,
    /// Least nodes of a layer: what repeats in less is a loop within one.
    pub least_layer: usize,
    /// What one piece may take.
    pub budget: Budget,
    /// What a whole may take before [`Piecewise::Auto`] splits it.
    pub whole: Budget,
    /// What compiles cost.
    pub coefficients: Coefficients,
    /// What a symbolic size is taken to be where estimates need a number.
    pub assumed_size: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            piecewise: Piecewise::Auto,
            at: vec!["scaled_dot_product".to_owned()],
            layers: true,
            least_layer: 8,
            budget: Budget::default(),
            whole: Budget { most_seconds: 4.0, most_operations: 400, ..Budget::default() },
            coefficients: Coefficients::default(),
            assumed_size: 512,
        }
    }
}

/// Most of one compile; zero: any. The defaults are rules of thumb.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Estimated seconds.
    pub most_seconds: f64,
    /// Estimated memory of the compiler.
    pub most_bytes: u64,
    /// Core operations.
    pub most_operations: usize,
}

impl Default for Budget {
    /// Ten seconds, 4 GiB, two thousand operations.
    fn default() -> Self {
        Self { most_seconds: 10.0, most_bytes: 4 << 30, most_operations: 2000 }
    }
}
