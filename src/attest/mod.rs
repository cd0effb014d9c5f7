//! Attestations: what an artifact is, in the form that other tools read.
//!
//! An in-toto Statement of version 1 (<https://in-toto.io/Statement/v1>) with the SLSA provenance
//! of version 1 (<https://slsa.dev/provenance/v1>) in a DSSE envelope. Its subjects are the
//! artifact's files by SHA-256; what decided the artifact's key are its parameters; the builder is the
//! node that compiled it.
//!
//! Invariant: it says nothing that the signed manifest does not, but for the SHA-256 of bytes
//! that were checked against it.

mod envelope;

use std::time::{Duration, UNIX_EPOCH};

use ed25519_dalek::VerifyingKey;
use kiln_proto::{Components, Manifest, SignedManifest};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use envelope::{Envelope, EnvelopeSignature, PAYLOAD_TYPE};

use crate::artifact::{self, ArtifactError};

/// What kind of statement it is.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What its predicate is.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// How the parameters are to be read: a compile by Kiln, of the components of its key.
pub const BUILD_TYPE: &str = "urn:kiln:compile:v1";

/// Why there is no attestation, or one is not believed.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// Nobody who is believed signed it.
    #[error("the attestation has no signature of a key that is believed")]
    Signature,
    /// It is no attestation in this form.
    #[error("the attestation cannot be read: {0}")]
    Malformed(String),
    /// A file is not what the attestation says.
    #[error("the attestation is not of these files: {0}")]
    OtherFiles(String),
    /// The pack is not what its manifest says.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// The statement about an artifact. `pack` holds its files, `key` is the public key that its
/// producer signed with.
pub fn statement(
    signed: &SignedManifest,
    manifest: &Manifest,
    pack: &[u8],
    key: &VerifyingKey,
) -> Result<Value, AttestError> {
    let mut subjects = Vec::with_capacity(manifest.files.len());
    for file in &manifest.files {
        let bytes = artifact::file(manifest, pack, &file.path)?;
        subjects.push(json!({ "name": file.path, "digest": { "sha256": sha256(bytes) } }));
    }
    let pieces = manifest.pieces.iter().enumerate().map(|(n, piece)| {
        json!({
            "name": format!("piece {n}"),
            "uri": format!("kiln:{}", piece.key),
            "digest": { "blake3": piece.pack.to_string() },
        })
    });
    let builder = format!("kiln://node/{}/{}", manifest.producer, hex::encode(key.as_bytes()));
    let made = UNIX_EPOCH + Duration::from_millis(manifest.created_unix_ms.min(LATEST_MS));
    Ok(json!({
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "key": manifest.key.to_string(),
                    "label": manifest.label,
                    "namespace": manifest.namespace,
                    "target": manifest.target.to_string(),
                    "components": components(&manifest.components),
                },
                "internalParameters": {
                    "compiler": manifest.fingerprint.compiler,
                    "versions": manifest.fingerprint.versions,
                },
                "resolvedDependencies": pieces.collect::<Vec<_>>(),
            },
            "runDetails": {
                "builder": { "id": builder },
                "metadata": {
                    "invocationId": format!("{}@{}", manifest.key, manifest.created_unix_ms),
                    "finishedOn": humantime::format_rfc3339_millis(made).to_string(),
                },
                "byproducts": [
                    { "name": "pack", "digest": { "blake3": manifest.pack_digest.to_string() } },
                    { "name": "manifest", "digest": { "sha256": sha256(&signed.bytes) } },
                ],
            },
        },
    }))
}

/// The last millisecond that RFC 3339 has a form for.
const LATEST_MS: u64 = 253_402_300_799_999;

/// What decided the key, part by part and field by field.
fn components(all: &Components) -> Value {
    let parts = all.iter().map(|part| {
        let fields = part.fields.iter().map(|of| (of.name.clone(), Value::from(of.value.clone())));
        (part.name.clone(), Value::Object(fields.collect::<Map<_, _>>()))
    });
    Value::Object(parts.collect())
}

/// What an attestation says, to who believes one of `keys`; also the key that signed it.
pub fn read(
    envelope: &Envelope,
    keys: &[VerifyingKey],
) -> Result<(Value, VerifyingKey), AttestError> {
    let (payload, key) = envelope.open(keys)?;
    let malformed = |why: String| AttestError::Malformed(why);
    let statement: Value =
        serde_json::from_slice(&payload).map_err(|e| malformed(e.to_string()))?;
    for (field, wanted) in [("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)] {
        if statement[field] != wanted {
            return Err(malformed(format!("its {field} is {}, not {wanted}", statement[field])));
        }
    }
    let subjects = statement["subject"].as_array();
    if subjects.is_none_or(Vec::is_empty) {
        return Err(malformed("it is about nothing".into()));
    }
    Ok((statement, key))
}

/// Whether `bytes` of each subject are what the statement says. `bytes` reads a file by its
/// path in the artifact.
pub fn check_files(
    statement: &Value,
    mut bytes: impl FnMut(&str) -> std::io::Result<Vec<u8>>,
) -> Result<usize, AttestError> {
    let other = |why: String| AttestError::OtherFiles(why);
    let subjects = statement["subject"].as_array().map_or(&[][..], Vec::as_slice);
    for subject in subjects {
        let name = subject["name"].as_str().unwrap_or_default();
        // Whoever signed it may not name files outside of the folder.
        kiln_proto::check_path(name).map_err(|why| other(format!("{name:?}: {why}")))?;
        let bytes = bytes(name).map_err(|e| other(format!("{name}: {e}")))?;
        let found = sha256(&bytes);
        if subject["digest"]["sha256"] != found.as_str() {
            return Err(other(format!("{name} has the SHA-256 {found}")));
        }
    }
    Ok(subjects.len())
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
