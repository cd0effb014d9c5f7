//! The toolchain part of a key.
//!
//! Invariant: two equal fingerprints produce equal bytes from equal sources.

use std::{collections::BTreeMap, fmt};

/// A compiler and every version that can change its output.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Fingerprint {
    /// The compiler's name: `cuda`, `native`.
    pub compiler: String,
    /// Version by tool: `nvrtc` -> `13.0.88`.
    pub versions: BTreeMap<String, String>,
}

impl Fingerprint {
    /// A fingerprint of `compiler` with its tool versions.
    pub fn new<K: Into<String>, V: Into<String>>(
        compiler: impl Into<String>,
        versions: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            compiler: compiler.into(),
            versions: versions.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.compiler)?;
        for (tool, version) in &self.versions {
            write!(f, " {tool}={version}")?;
        }
        Ok(())
    }
}
