//! `kiln attest`: what an artifact is, as an attestation that other tools read.
//!
//! Invariant: exit code 0 of `--verify` says that somebody who is believed signed it, and
//! that it is of the files that were given. Where a root is pinned, whoever it did not certify is
//! not believed, whichever way the key was named.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use ed25519_dalek::VerifyingKey;
use kiln::attest::{self, Envelope};
use kiln_proto::{FailureKind, namespace_matches, pb};

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
    /// the node that is asked (kiln signer list) that were not revoked. Where a root is pinned
    /// (--trust-root), those of them that it certified.
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
        if self.client.endpoints.pinned.is_set() {
            let envelope: Envelope = serde_json::from_str(&text).map_err(|e| corrupt(&e))?;
            let (statement, _) = self.judge(&envelope).await?;
            if parameters(&statement)["key"] != *key.to_string() {
                return Err(corrupt(&format!("the node attests another key than {key}")));
            }
        }
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
        let (statement, by) = self.judge(&envelope).await?;
        let parameters = parameters(&statement);
        let checked = match &self.files {
            Some(folder) => {
                let read = |name: &str| fs::read(folder.join(name));
                Some(attest::check_files(&statement, read).map_err(|e| corrupt(&e))?)
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

    /// What the envelope says, and who signed it, if that is believed.
    async fn judge(
        &self,
        envelope: &Envelope,
    ) -> Result<(serde_json::Value, VerifyingKey), CliError> {
        let belief = self.client.endpoints.belief().await?;
        let mut believed = self.believed().await?;
        believed.retain(|of| belief.certifies(&of.key, None));
        let keys: Vec<VerifyingKey> = believed.iter().map(|of| of.key).collect();
        let (statement, by) = attest::read(envelope, &keys).map_err(|e| corrupt(&e))?;
        let namespace = parameters(&statement)["namespace"].as_str();
        // A pinned root certifies for namespaces: what names none is under none of them.
        let certified = match namespace {
            None => !belief.is_pinned(),
            Some(_) => belief.certifies(&by, namespace),
        };
        if certified && believed.iter().any(|of| of.key == by && of.may_sign(namespace)) {
            return Ok((statement, by));
        }
        Err(corrupt(&format!(
            "the attestation is of the namespace {:?}, in which the root does not let its signer {} \
             sign",
            namespace.unwrap_or_default(),
            hex::encode(by.as_bytes())
        )))
    }

    async fn believed(&self) -> Result<Vec<Believed>, CliError> {
        if !self.signers.is_empty() {
            let read = |text: &String| {
                let key = super::signer::public_key(text).map_err(CliError::Usage)?;
                Ok(Believed { key, namespaces: None })
            };
            return self.signers.iter().map(read).collect();
        }
        let mut client = self.client.endpoints.connect().await?;
        let answer = client.signers(pb::SignersRequest {}).await;
        let answer = answer.map_err(|e| CliError::from_status(&e))?.into_inner();
        Ok(counting(answer.signers))
    }
}

/// What decided the key of what is attested.
fn parameters(statement: &serde_json::Value) -> &serde_json::Value {
    &statement["predicate"]["buildDefinition"]["externalParameters"]
}

fn corrupt(why: &impl ToString) -> CliError {
    CliError::failed(FailureKind::Corrupt, why.to_string())
}

/// A key whose signature counts.
struct Believed {
    key: VerifyingKey,
    /// Where; `None`: nobody has said, so everywhere.
    namespaces: Option<Vec<String>>,
}

impl Believed {
    fn may_sign(&self, namespace: Option<&str>) -> bool {
        let Some(patterns) = &self.namespaces else { return true };
        namespace.is_some_and(|name| patterns.iter().any(|of| namespace_matches(of, name)))
    }
}

/// Those of `signers` whose word counts now. A revoked key signs no new statement, whatever
/// becomes of the artifacts that it signed before; nor does one that is revoked for some time: a
/// statement has no time but its signer's.
fn counting(signers: Vec<pb::SignerStatus>) -> Vec<Believed> {
    let revoked: Vec<_> =
        signers.iter().filter(|of| is_revoked(of)).map(|of| of.key.clone()).collect();
    let good =
        signers.into_iter().filter(|of| of.unbelieved.is_empty() && !revoked.contains(&of.key));
    let believed = |of: pb::SignerStatus| {
        let key = VerifyingKey::from_bytes(&<[u8; 32]>::try_from(&*of.key).ok()?).ok()?;
        Some(Believed { key, namespaces: of.certificate.map(|of| of.namespaces) })
    };
    good.filter_map(believed).collect()
}

fn is_revoked(signer: &pb::SignerStatus) -> bool {
    signer.revocation.is_some() || !signer.key_revocations.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::SigningKey;

    use super::*;

    fn signer(node: u64, seed: u8) -> pb::SignerStatus {
        let key = SigningKey::from_bytes(&[seed; 32]).verifying_key();
        pb::SignerStatus { node, key: key.to_bytes().to_vec().into(), ..Default::default() }
    }

    #[test]
    fn a_revoked_key_attests_nothing_also_where_what_it_signed_stays() {
        for keep in [false, true] {
            let revocation = Some(pb::SignerRevocation { keep, ..Default::default() });
            let revoked = pb::SignerStatus { revocation, ..signer(1, 1) };
            // The same key, of a node that came again.
            let again = signer(3, 1);
            let good = counting(vec![revoked, signer(2, 2), again]);
            assert_eq!(good.len(), 1);
            assert_eq!(good[0].key, SigningKey::from_bytes(&[2; 32]).verifying_key());
        }
        let key_revocations = vec![pb::KeyRevocation { after_unix_ms: 7, ..Default::default() }];
        let in_a_time = pb::SignerStatus { key_revocations, ..signer(1, 1) };
        assert_eq!(counting(vec![in_a_time, signer(1, 4)]).len(), 1);
        let unbelieved = pb::SignerStatus { unbelieved: "why".into(), ..signer(1, 1) };
        assert!(counting(vec![unbelieved]).is_empty());
    }

    #[test]
    fn a_certificate_is_for_its_namespaces_in_attestations_too() {
        let of = pb::SignerCertificate {
            namespaces: vec!["team".into(), "lab-*".into()],
            ..Default::default()
        };
        let certified = pb::SignerStatus { certificate: Some(of), ..signer(1, 1) };
        let good = counting(vec![certified, signer(2, 2)]);
        for (name, may) in [("team", true), ("lab-1", true), ("other", false), ("teams", false)] {
            assert_eq!(good[0].may_sign(Some(name)), may, "{name}");
            assert!(good[1].may_sign(Some(name)), "the root says nothing of it");
        }
        assert!(!good[0].may_sign(None), "a statement without a namespace");
    }
}
