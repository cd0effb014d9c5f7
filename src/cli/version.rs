//! `kiln version`: what this program is, and which formats it reads and writes.
//!
//! Invariant: no node is asked, and a child alone loads NVRTC, for `--json`; what that prints
//! has the same fields in every version from this one on.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use kiln_proto::{KEY_FORMAT, MANIFEST_FORMAT};
use serde::Serialize;

use super::{CliError, backup, doctor, output};

/// What a look at NVRTC may take.
const LOOK: Duration = Duration::from_secs(20);

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
    /// What `kiln serve` would compile CUDA with; only with `--json`, as a look takes a moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    nvrtc: Option<NvrtcView>,
}

#[derive(Debug, Serialize)]
struct NvrtcView {
    /// Null: there is none, and `missing` says why.
    version: Option<String>,
    library: Option<PathBuf>,
    missing: Option<String>,
}

impl NvrtcView {
    async fn look() -> Self {
        let named = std::env::var_os("KILN_COMPILE_NVRTC").filter(|path| !path.is_empty());
        let looked = tokio::time::timeout(LOOK, doctor::nvrtc_found(named.map(Into::into))).await;
        let found =
            looked.unwrap_or_else(|_| Err(format!("no answer within {} s", LOOK.as_secs())));
        match found {
            Ok(found) => {
                Self { version: Some(found.version), library: Some(found.library), missing: None }
            }
            Err(why) => Self { version: None, library: None, missing: Some(why) },
        }
    }
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
        Self { version: kiln::VERSION, commit: kiln::COMMIT, formats, nvrtc: None }
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
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let view = VersionView::new();
        if !self.json {
            return output::line(view.for_people());
        }
        let nvrtc = Some(NvrtcView::look().await);
        output::json(&VersionView { nvrtc, ..view })
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
