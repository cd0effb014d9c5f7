//! Dead Simple Signing Envelope: what is signed is a payload with its type.
//!
//! The form is the standard's (<https://github.com/secure-systems-lab/dsse>), so that tools
//! which know nothing of Kiln check what Kiln signs.
//!
//! Invariant: no signature of an envelope is one of a manifest or of a root's statement: what
//! is signed begins otherwise.

use ed25519_dalek::{Signature, VerifyingKey};

/// The standard's pre-authentication encoding: what is signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Whether `signature` is that of `key` over the payload with its type.
pub fn is_signed_by(
    key: &VerifyingKey,
    payload_type: &str,
    payload: &[u8],
    signature: &[u8],
) -> bool {
    let signature = Signature::from_slice(signature);
    signature
        .is_ok_and(|signature| key.verify_strict(&pae(payload_type, payload), &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::{MANIFEST_FORMAT, NodeIdentity, root::ROOT_FORMAT};

    /// The standard's own example.
    #[test]
    fn what_is_signed_is_what_the_standard_says() {
        let encoded = pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    }

    #[test]
    fn a_signature_is_of_one_payload_of_one_type() {
        let node = NodeIdentity::new(1, SigningKey::from_bytes(&[1; 32]));
        let (key, signature) = (node.verifying_key(), node.sign_envelope("a/b", b"payload"));
        assert!(is_signed_by(&key, "a/b", b"payload", &signature));
        assert!(!is_signed_by(&key, "a/c", b"payload", &signature));
        assert!(!is_signed_by(&key, "a/b", b"payloae", &signature));
        assert!(!is_signed_by(&key, "a/b p", b"ayload", &signature));
        assert!(!is_signed_by(&key, "a/b", b"payload", &signature[1..]));
        let other = SigningKey::from_bytes(&[2; 32]).verifying_key();
        assert!(!is_signed_by(&other, "a/b", b"payload", &signature));
        for other in [MANIFEST_FORMAT, ROOT_FORMAT] {
            assert!(!pae("", b"").starts_with(&other.as_bytes()[..4]));
        }
    }
}
