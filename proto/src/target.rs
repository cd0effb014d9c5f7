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
    /// Files of another tool, which knows what they run on.
    Files,
}

/// Device architecture, form of code, and least driver.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Target {
    /// Compute capability times ten: 90 for sm_90; 0, with [`BinaryKind::Files`]
    /// alone, for what is bound to no GPU.
    pub compute: u32,
    /// Uses features of this one architecture: `sm_90a`.
    pub arch_specific: bool,
    /// Form of the code.
    pub kind: BinaryKind,
    /// Least driver as CUDA counts it (12080 for 12.8); 0: any.
    pub min_driver: u32,
}

/// The text names no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a target: {0:?}; write sm_90 or sm_90a for machine code, compute_90 for PTX, \
         gpu_90 or any for files of another tool"
)]
pub struct ParseTargetError(pub String);

impl Target {
    /// Machine code for compute capability `compute` / 10.
    pub const fn cubin(compute: u32) -> Self {
        Self { compute, arch_specific: false, kind: BinaryKind::Cubin, min_driver: 0 }
    }

    /// Files that are bound to no GPU.
    pub const fn any() -> Self {
        Self { compute: 0, arch_specific: false, kind: BinaryKind::Files, min_driver: 0 }
    }

    /// Whether the code may have the instructions that Hopper alone has.
    pub const fn is_hopper_alone(&self) -> bool {
        self.compute == 90 && self.arch_specific
    }

    /// Whether there is such a GPU, or none is meant.
    pub const fn is_plausible(&self) -> bool {
        let any = self.compute == 0 && !self.arch_specific;
        matches!(self.compute, 50..=200) || (any && matches!(self.kind, BinaryKind::Files))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.kind {
            BinaryKind::Files if self.compute == 0 => return f.write_str("any"),
            BinaryKind::Ptx => "compute",
            BinaryKind::Cubin => "sm",
            BinaryKind::Files => "gpu",
        };
        write!(f, "{prefix}_{}{}", self.compute, if self.arch_specific { "a" } else { "" })
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseTargetError(text.chars().take(40).collect());
        // What runs on a CPU is bound to no GPU.
        if matches!(text, "any" | "cpu") {
            return Ok(Self::any());
        }
        let (prefix, rest) = text.split_once('_').ok_or_else(refused)?;
        let kind = match prefix {
            "sm" => BinaryKind::Cubin,
            "compute" => BinaryKind::Ptx,
            "gpu" => BinaryKind::Files,
            _ => return Err(refused()),
        };
        let (digits, arch_specific) = match rest.strip_suffix('a') {
            Some(digits) => (digits, true),
            None => (rest, false),
        };
        let plain = matches!(digits.len(), 2 | 3) && digits.bytes().all(|b| b.is_ascii_digit());
        let compute = plain.then(|| digits.parse().ok()).flatten().ok_or_else(refused)?;
        let target = Self { compute, arch_specific, kind, min_driver: 0 };
        if compute != 0 && target.is_plausible() { Ok(target) } else { Err(refused()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_is_shown() {
        for text in ["sm_90", "sm_90a", "compute_120", "gpu_90", "any"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["", "sm_", "sm_00", "gpu_00", "sm_9", "sm_300", "anya", "cpu_90"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
