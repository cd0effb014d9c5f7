//! `kiln version`: what this program is, and which formats it reads and writes.
//!
//! Invariant: no node is asked; what `--json` prints has the same fields in every version
//! from this one on.

use clap::Args;
use kiln_proto::{KEY_FORMAT, MANIFEST_FORMAT};
use serde::Serialize;

use super::{CliError, backup, output};

const EXAMPLES: &str = "\
Examples:
  kiln version
  kiln version --json | jq -r .formats.key";

/// Say which version this is, and which formats it reads and writes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Version {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
struct VersionView {
    version: &'static str,
    /// Null: the build was not told.
    commit: Option<&'static str>,
    formats: Formats,
}

#[derive(Debug, Serialize)]
struct Formats {
    /// Package of the gRPC services.
    api: &'static str,
    key: &'static str,
    manifest: &'static str,
    /// Of an index's backup.
    backup: &'static str,
}

impl VersionView {
    const fn new() -> Self {
        let formats = Formats {
            api: "kiln.v1",
            key: KEY_FORMAT,
            manifest: MANIFEST_FORMAT,
            backup: backup::FORMAT,
        };
        Self { version: kiln::VERSION, commit: kiln::COMMIT, formats }
    }

    fn for_people(&self) -> String {
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        let Formats { api, key, manifest, backup } = &self.formats;
        format!(
            "kiln {}{commit}\nformats: api {api}, keys {key}, manifests {manifest}, backups {backup}",
            self.version,
        )
    }
}

impl Version {
    pub(crate) fn run(self) -> Result<(), CliError> {
        let view = VersionView::new();
        if self.json { output::json(&view) } else { output::line(view.for_people()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_formats() {
        let json = serde_json::to_value(VersionView::new()).unwrap();
        assert_eq!(json["version"], kiln::VERSION);
        let formats = json["formats"].as_object().unwrap();
        let said = VersionView::new().for_people();
        for format in formats.values() {
            assert!(said.contains(format.as_str().unwrap()), "{format} is not in {said}");
        }
    }
}
