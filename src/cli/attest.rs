//! `kiln attest`: what an artifact is, as an attestation that other tools read.
//!
//! Invariant: exit code 0 of `--verify` says that somebody who is believed signed it, and
//! that it is of the files that were given.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use ed25519_dalek::VerifyingKey;
use kiln::attest::{self, AttestError, Envelope};
use kiln_proto::{FailureKind, pb};

use super::{CliError, ClientArgs, NamespaceArgs, keys::KeyArg, output};

/// Longest attestation that is read, in bytes: an artifact may have thousands of files.
const LONGEST: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  kiln attest 3f2a91c0 --out kernel.intoto.json
  kiln attest --verify kernel.intoto.json
  kiln attest --verify kernel.intoto.json --signer KEY --files out/";

/// Write an attestation of an artifact, or check one.
///
/// An in-toto statement with SLSA provenance in a DSSE envelope: subjects are the artifact's
/// files by SHA-256, parameters are what decided its key. The node that is asked signs it
/// with the key with which it signs manifests, once it has checked the artifact.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AttestArgs {
    /// The key, or its first digits.
    #[arg(required_unless_present = "verify")]
    key: Option<KeyArg>,
    /// Write it to this new file; without, to stdout.
    #[arg(long, value_name = "FILE", conflicts_with = "verify")]
    out: Option<PathBuf>,
    /// Check this attestation.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    verify: Option<PathBuf>,
    /// A public key in hexadecimal that is believed; again for more. Without one, those of
    /// the node that is asked (kiln signer list) that were not revoked.
    #[arg(long = "signer", value_name = "KEY", requires = "verify")]
    signers: Vec<String>,
    /// A folder that has to hold the files that it is about (kiln get --output).
    #[arg(long, value_name = "DIR", requires = "verify")]
    files: Option<PathBuf>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl AttestArgs {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        match (&self.verify, &self.key) {
            (Some(file), _) => self.check(file).await,
            (None, Some(key)) => self.attest(key).await,
            (None, None) => Err(CliError::Usage("name a key, or a file with --verify".into())),
        }
    }

    async fn attest(&self, key: &KeyArg) -> Result<(), CliError> {
        let mut client = self.client.endpoints.connect().await?;
        let namespace = self.namespace.namespace.clone();
        let key = key.resolve(&mut client, &namespace).await?;
        let request = pb::AttestRequest { key: key.as_bytes().to_vec().into(), namespace };
        let answer = client.attest(request).await.map_err(|e| CliError::from_status(&e))?;
        let text = answer.into_inner().envelope;
        let Some(path) = &self.out else { return output::line(text) };
        let shown = || format!("write {}", path.display());
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).open(path).with_context(shown)?;
        writeln!(file, "{text}").with_context(shown)?;
        let written = path.display().to_string();
        match self.client.json {
            true => {
                output::json(&serde_json::json!({ "key": key.to_string(), "written": written }))
            }
            false => output::line(format_args!("wrote {written}")),
        }
    }

    async fn check(&self, path: &Path) -> Result<(), CliError> {
        let shown = || format!("read {}", path.display());
        if fs::metadata(path).with_context(shown)?.len() > LONGEST {
            return Err(CliError::Usage(format!("{}: no attestation is so long", path.display())));
        }
        let text = fs::read(path).with_context(shown)?;
        let envelope: Envelope = serde_json::from_slice(&text).map_err(|e| {
            CliError::Usage(format!("{}: it is no DSSE envelope: {e}", path.display()))
        })?;
        let keys = self.believed().await?;
        let wrong = |e: AttestError| CliError::failed(FailureKind::Corrupt, e.to_string());
        let (statement, by) = attest::read(&envelope, &keys).map_err(wrong)?;
        let checked = match &self.files {
            Some(folder) => {
                let read = |name: &str| fs::read(folder.join(name));
                Some(attest::check_files(&statement, read).map_err(wrong)?)
            }
            None => None,
        };
        let by = hex::encode(by.as_bytes());
        let builder = &statement["predicate"]["runDetails"]["builder"]["id"];
        if self.client.json {
            return output::json(&serde_json::json!({
                "signer": by, "files": checked, "statement": statement
            }));
        }
        let parameters = &statement["predicate"]["buildDefinition"]["externalParameters"];
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        output::line(format_args!("signed by {by}"))?;
        output::line(format_args!(
            "{} for {}",
            text(&parameters["key"]),
            text(&parameters["target"])
        ))?;
        output::line(format_args!("made by {}", text(builder)))?;
        match checked {
            Some(files) => output::line(format_args!("{files} files are what it says")),
            None => output::line("no files were compared: --files DIR"),
        }
    }

    async fn believed(&self) -> Result<Vec<VerifyingKey>, CliError> {
        if !self.signers.is_empty() {
            let read = |text: &String| super::signer::public_key(text).map_err(CliError::Usage);
            return self.signers.iter().map(read).collect();
        }
        let mut client = self.client.endpoints.connect().await?;
        let answer = client.signers(pb::SignersRequest {}).await;
        let answer = answer.map_err(|e| CliError::from_status(&e))?.into_inner();
        let good = answer.signers.into_iter().filter(|of| {
            of.unbelieved.is_empty() && of.revocation.as_ref().is_none_or(|revoked| revoked.keep)
        });
        let key = |of: pb::SignerStatus| {
            VerifyingKey::from_bytes(&<[u8; 32]>::try_from(&*of.key).ok()?).ok()
        };
        Ok(good.filter_map(key).collect())
    }
}
