//! The envelope of an attestation, as JSON.
//!
//! Invariant: a payload that is read was signed by one of the keys that its reader believes.

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::VerifyingKey;
use kiln_proto::{NodeIdentity, dsse};
use serde::{Deserialize, Serialize};

use super::AttestError;

/// The media type of in-toto's statements.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Signatures that one envelope is searched for at most.
const MOST_SIGNATURES: usize = 16;

/// An envelope, by the names that the standard gives its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// In base64.
    pub payload: String,
    /// At least one.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeSignature {
    /// A hint: the public key in hexadecimal.
    #[serde(default)]
    pub keyid: String,
    /// In base64.
    pub sig: String,
}

impl Envelope {
    /// Signs a statement as `node`.
    pub fn sign(node: &NodeIdentity, statement: &[u8]) -> Self {
        let signature = node.sign_envelope(PAYLOAD_TYPE, statement);
        let keyid = hex::encode(node.verifying_key().as_bytes());
        Self {
            payload_type: PAYLOAD_TYPE.into(),
            payload: STANDARD.encode(statement),
            signatures: vec![EnvelopeSignature { keyid, sig: STANDARD.encode(signature) }],
        }
    }

    /// The payload, and the first of `keys` that signed it.
    pub fn open(&self, keys: &[VerifyingKey]) -> Result<(Vec<u8>, VerifyingKey), AttestError> {
        if self.payload_type != PAYLOAD_TYPE {
            let found = self.payload_type.clone();
            return Err(AttestError::Malformed(format!("its payload is {found:?}")));
        }
        let decode = |text: &str| {
            STANDARD.decode(text).map_err(|e| AttestError::Malformed(format!("base64: {e}")))
        };
        let payload = decode(&self.payload)?;
        for signature in self.signatures.iter().take(MOST_SIGNATURES) {
            let bytes = decode(&signature.sig)?;
            let by =
                |key: &&VerifyingKey| dsse::is_signed_by(key, &self.payload_type, &payload, &bytes);
            if let Some(key) = keys.iter().find(by) {
                return Ok((payload, *key));
            }
        }
        Err(AttestError::Signature)
    }
}
