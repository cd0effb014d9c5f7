//! Artifacts that a change of a toolchain makes miss.
//!
//! Invariant: a version is meant with all that begins with its parts: 13.1 is 13.1.80, and not
//! 13.10.

use std::collections::BTreeMap;

use kiln_proto::{ArtifactKey, Fingerprint, convert, pb};
use serde::Serialize;

use super::CliError;

/// A tool and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Reads `TOOL=VERSION`.
pub(crate) fn tool(text: &str) -> Result<Tool, String> {
    let parts = text.split_once('=').filter(|(name, version)| {
        let plain = |part: &str| !part.is_empty() && !part.contains(char::is_whitespace);
        plain(name) && plain(version)
    });
    let (name, version) = parts.ok_or("a tool and its version, such as cuda=13.1")?;
    Ok(Tool { name: name.to_owned(), version: version.to_owned() })
}

impl Tool {
    /// Whether a node's compiler is of this version.
    pub(crate) fn is_in(&self, fingerprint: &Fingerprint) -> bool {
        let name = if self.name == "cuda" { "nvrtc" } else { &self.name };
        let has = fingerprint.versions.get(name);
        let rest = has.and_then(|has| has.strip_prefix(self.version.as_str()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// `kiln plan --json`: one for each artifact that will miss.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MissView {
    pub(crate) key: String,
    pub(crate) label: String,
    pub(crate) target: String,
    pub(crate) compiler: String,
    /// Of the toolchain that it was compiled by.
    versions: BTreeMap<String, String>,
    pub(crate) compile_seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) hits: u64,
    /// What it is stitched of.
    pieces: u32,
    /// Whether the cluster has what it was compiled of.
    pub(crate) kept: bool,
}

impl MissView {
    /// As a node tells it.
    pub(crate) fn read(miss: pb::PlannedMiss) -> Result<Self, CliError> {
        let unreadable = |e: convert::InvalidField| anyhow::anyhow!("the node's answer: {e}");
        let key: ArtifactKey = convert::key("key", &miss.key).map_err(unreadable)?;
        let target = convert::target(&miss.target.unwrap_or_default()).map_err(unreadable)?;
        let fingerprint = miss.fingerprint.unwrap_or_default();
        let versions = fingerprint.versions.into_iter().map(|field| (field.name, field.value));
        Ok(Self {
            key: key.to_string(),
            label: miss.label,
            target: target.to_string(),
            compiler: fingerprint.compiler,
            versions: versions.collect(),
            compile_seconds: miss.compile_seconds,
            bytes: miss.pack_size,
            hits: miss.hits,
            pieces: miss.pieces,
            kept: miss.kept,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_named_with_their_versions() {
        for bad in ["", "cuda", "cuda=", "=13", "cuda= 13", "cu da=13"] {
            assert!(tool(bad).is_err(), "{bad:?}");
        }
        let nvrtc = |version: &str| Fingerprint::new("cuda", [("nvrtc", version)]);
        let wanted = tool("cuda=13.1").unwrap();
        for (has, is_it) in [("13.1", true), ("13.1.80", true), ("13.10", false), ("12.8", false)] {
            assert_eq!(wanted.is_in(&nvrtc(has)), is_it, "{has}");
        }
        assert!(!wanted.is_in(&Fingerprint::new("inductor", [("torch", "13.1")])));
    }
}
