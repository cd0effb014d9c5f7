//! What an output runs on.
//!
//! Invariant: `Target::from_str(t.to_string()) == t` for targets without a
//! least driver.

use std::{fmt, str::FromStr};

/// The form of the compiled code.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum BinaryKind {
    /// Text that the driver finishes compiling: runs on newer devices too.
    Ptx,
    /// Machine code of one architecture.
    Cubin,
}

/// Device architecture, form of code, and least driver.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Target {
    /// Compute capability times ten: 90 for sm_90.
    pub compute: u32,
    /// Uses features of this one architecture: `sm_90a`.
    pub arch_specific: bool,
    /// PTX or CUBIN.
    pub kind: BinaryKind,
    /// Least driver as CUDA counts it (12080 for 12.8); 0: any.
    pub min_driver: u32,
}

/// The text names no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a target: {0:?}; write sm_90 or sm_90a for machine code, compute_90 for PTX")]
pub struct ParseTargetError(pub String);

impl Target {
    /// Machine code for compute capability `compute` / 10.
    pub const fn cubin(compute: u32) -> Self {
        Self { compute, arch_specific: false, kind: BinaryKind::Cubin, min_driver: 0 }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.kind {
            BinaryKind::Ptx => "compute",
            BinaryKind::Cubin => "sm",
        };
        write!(f, "{prefix}_{}{}", self.compute, if self.arch_specific { "a" } else { "" })
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseTargetError(text.chars().take(40).collect());
        let (prefix, rest) = text.split_once('_').ok_or_else(refused)?;
        let kind = match prefix {
            "sm" => BinaryKind::Cubin,
            "compute" => BinaryKind::Ptx,
            _ => return Err(refused()),
        };
        let (digits, arch_specific) = match rest.strip_suffix('a') {
            Some(digits) => (digits, true),
            None => (rest, false),
        };
        let plain = matches!(digits.len(), 2 | 3) && digits.bytes().all(|b| b.is_ascii_digit());
        let compute = plain.then(|| digits.parse().ok()).flatten().ok_or_else(refused)?;
        if !(50..=200).contains(&compute) {
            return Err(refused());
        }
        Ok(Self { compute, arch_specific, kind, min_driver: 0 })
    }
}
