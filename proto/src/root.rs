//! What a root key says: which keys sign artifacts, of which namespaces, and whether any
//! other one is believed.
//!
//! The root key is kept off the nodes. What it signs is carried to them as a file, and each
//! of them checks it by itself: no node can name a key.
//!
//! Invariant: a [`RootStatement`] obtained from [`SignedStatement::verify`] was signed by that
//! root, is whole, and is for no other use of the key.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::{NodeId, is_pattern, namespace_matches, pb};

/// What is signed: it keeps a statement's signature from being valid for anything else.
pub const ROOT_FORMAT: &str = "kiln-root-v1";
/// Most patterns of namespaces in one certificate.
pub const MOST_PATTERNS: usize = 64;
/// Longest name in a certificate, in bytes.
const LONGEST_NAME: usize = 256;
/// Longest encoded statement, in bytes.
const LONGEST: usize = 8192;

/// One statement of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootStatement {
    /// Of two statements about the same thing the one with the higher number counts.
    pub serial: u64,
    /// The cluster that it is for: what is said of another one counts for nothing here.
    pub cluster: u64,
    /// What it says.
    pub says: Says,
}

/// What a root can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// That it is the root, and whether signers without a certificate are believed.
    Root {
        /// Whether each signer needs a certificate.
        required: bool,
    },
    /// That a key may sign.
    Signer(SignerCertificate),
    /// That another key is to be the root in its place; its own: that none is.
    Next {
        /// The ed25519 public key.
        key: [u8; 32],
    },
}

/// A key's right to sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerCertificate {
    /// The ed25519 public key.
    pub key: [u8; 32],
    /// Only as this node; `None`: whichever node has the key.
    pub node: Option<NodeId>,
    /// For people.
    pub name: String,
    /// Of which namespaces: see [`is_pattern`]. At least one.
    pub namespaces: Vec<String>,
    /// From when on, in milliseconds since the Unix epoch.
    pub not_before_unix_ms: u64,
    /// Until when, in the same; `None`: without end.
    pub not_after_unix_ms: Option<u64>,
}

/// A statement as it was signed: these exact bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedStatement {
    /// The encoded [`RootStatement`].
    pub bytes: Vec<u8>,
    /// ed25519 over a context and `bytes`.
    pub signature: Vec<u8>,
}

/// Why a statement is refused.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Signed by another key, or changed since.
    #[error("the statement is not signed by that root")]
    Signature,
    /// The bytes are no statement, or say what none may say.
    #[error("the statement of the root is invalid: {0}")]
    Invalid(String),
}

/// Why a signer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbelieved {
    /// Its key has no certificate.
    #[error("its signer, node {node}, has no certificate of the root (kiln signer issue)")]
    NoCertificate {
        /// The signer.
        node: NodeId,
    },
    /// The certificate is for another node.
    #[error("the certificate of node {node}'s key is for node {of}")]
    OtherNode {
        /// The signer.
        node: NodeId,
        /// Whom the certificate names.
        of: NodeId,
    },
    /// It may not sign in this namespace.
    #[error("the certificate of node {node} is not for the namespace {namespace:?}")]
    Namespace {
        /// The signer.
        node: NodeId,
        /// The namespace.
        namespace: String,
    },
    /// The certificate is not valid yet, or not any more.
    #[error("the certificate of node {node} is not valid at this time (kiln signer issue)")]
    Time {
        /// The signer.
        node: NodeId,
    },
}

impl SignerCertificate {
    /// Whether it lets `node`, whose key it is of, sign in `namespace` (`None`: in any at
    /// all) at that time, in milliseconds since the Unix epoch.
    pub fn allows(
        &self,
        node: NodeId,
        namespace: Option<&str>,
        unix_ms: u64,
    ) -> Result<(), Unbelieved> {
        if let Some(of) = self.node.filter(|of| *of != node) {
            return Err(Unbelieved::OtherNode { node, of });
        }
        if unix_ms < self.not_before_unix_ms
            || self.not_after_unix_ms.is_some_and(|end| unix_ms >= end)
        {
            return Err(Unbelieved::Time { node });
        }
        match namespace {
            Some(namespace)
                if !self.namespaces.iter().any(|of| namespace_matches(of, namespace)) =>
            {
                Err(Unbelieved::Namespace { node, namespace: namespace.to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        VerifyingKey::from_bytes(&self.key).map_err(|_| "its key is no ed25519 public key")?;
        if self.name.len() > LONGEST_NAME || self.name.chars().any(char::is_control) {
            return Err(format!("a name has at most {LONGEST_NAME} bytes, none of control"));
        }
        if self.namespaces.is_empty() || self.namespaces.len() > MOST_PATTERNS {
            return Err(format!("it is for 1 to {MOST_PATTERNS} namespaces; \"*\" is all"));
        }
        if let Some(bad) = self.namespaces.iter().find(|pattern| !is_pattern(pattern)) {
            return Err(format!(
                "{bad:?} is no namespace: write a name, its beginning with * behind it, or *"
            ));
        }
        if self.node == Some(0) {
            return Err("there is no node 0".into());
        }
        match self.not_after_unix_ms.is_some_and(|end| end <= self.not_before_unix_ms) {
            true => Err("it ends before it begins".into()),
            false => Ok(()),
        }
    }
}

impl RootStatement {
    /// Signs it with the root's key.
    pub fn sign(&self, root: &SigningKey) -> Result<SignedStatement, StatementError> {
        self.check()?;
        let bytes = prost::Message::encode_to_vec(&pb::RootStatement::from(self));
        let signature = root.sign(&message(&bytes)).to_bytes().to_vec();
        Ok(SignedStatement { bytes, signature })
    }

    fn check(&self) -> Result<(), StatementError> {
        if self.cluster == 0 {
            return Err(StatementError::Invalid("it is for no cluster".into()));
        }
        match &self.says {
            Says::Signer(certificate) => certificate.check().map_err(StatementError::Invalid),
            Says::Root { .. } => Ok(()),
            Says::Next { key } => match VerifyingKey::from_bytes(key) {
                Ok(_) => Ok(()),
                Err(_) => {
                    Err(StatementError::Invalid("the next root is no ed25519 public key".into()))
                }
            },
        }
    }
}

impl SignedStatement {
    /// What `root` signed.
    pub fn verify(&self, root: &VerifyingKey) -> Result<RootStatement, StatementError> {
        if self.bytes.len() > LONGEST {
            return Err(StatementError::Invalid(format!("it has more than {LONGEST} bytes")));
        }
        let signature =
            Signature::from_slice(&self.signature).map_err(|_| StatementError::Signature)?;
        root.verify_strict(&message(&self.bytes), &signature)
            .map_err(|_| StatementError::Signature)?;
        let malformed = |e: prost::DecodeError| StatementError::Invalid(e.to_string());
        let wire: pb::RootStatement =
            prost::Message::decode(self.bytes.as_slice()).map_err(malformed)?;
        let statement = RootStatement::try_from(wire)?;
        statement.check()?;
        Ok(statement)
    }
}

impl fmt::Debug for SignedStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedStatement({} bytes)", self.bytes.len())
    }
}

impl From<&RootStatement> for pb::RootStatement {
    fn from(statement: &RootStatement) -> Self {
        use pb::root_statement::Says as Wire;
        let says = match &statement.says {
            Says::Root { required } => Wire::Root(pb::RootPolicy { required: *required }),
            Says::Next { key } => Wire::Next(pb::RootSuccessor { key: key.to_vec().into() }),
            Says::Signer(of) => Wire::Signer(pb::SignerCertificate {
                key: of.key.to_vec().into(),
                node: of.node.unwrap_or_default(),
                name: of.name.clone(),
                namespaces: of.namespaces.clone(),
                not_before_unix_ms: of.not_before_unix_ms,
                not_after_unix_ms: of.not_after_unix_ms.unwrap_or_default(),
            }),
        };
        let (serial, cluster) = (statement.serial, statement.cluster);
        Self { serial, cluster, says: Some(says) }
    }
}

impl TryFrom<pb::RootStatement> for RootStatement {
    type Error = StatementError;

    fn try_from(wire: pb::RootStatement) -> Result<Self, StatementError> {
        use pb::root_statement::Says as Wire;
        let invalid = |why: &str| StatementError::Invalid(why.into());
        // What a later version may say, this one does not act on.
        let says = match wire.says.ok_or_else(|| invalid("it says nothing that is known here"))? {
            Wire::Root(pb::RootPolicy { required }) => Says::Root { required },
            Wire::Next(of) => Says::Next {
                key: (&*of.key).try_into().map_err(|_| invalid("a key has 32 bytes"))?,
            },
            Wire::Signer(of) => Says::Signer(SignerCertificate {
                key: (&*of.key).try_into().map_err(|_| invalid("a key has 32 bytes"))?,
                node: Some(of.node).filter(|node| *node != 0),
                name: of.name,
                namespaces: of.namespaces,
                not_before_unix_ms: of.not_before_unix_ms,
                not_after_unix_ms: Some(of.not_after_unix_ms).filter(|end| *end != 0),
            }),
        };
        Ok(Self { serial: wire.serial, cluster: wire.cluster, says })
    }
}

fn message(bytes: &[u8]) -> Vec<u8> {
    [ROOT_FORMAT.as_bytes(), b"\0", bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn certificate(namespaces: &[&str]) -> SignerCertificate {
        SignerCertificate {
            key: root(9).verifying_key().to_bytes(),
            node: Some(3),
            name: "gpu-3".into(),
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            not_before_unix_ms: 1000,
            not_after_unix_ms: Some(2000),
        }
    }

    fn says(says: Says) -> RootStatement {
        RootStatement { serial: 7, cluster: 5, says }
    }

    #[test]
    fn what_was_signed_is_what_is_read_and_no_change_of_it_is_taken() {
        let next = Says::Next { key: root(4).verifying_key().to_bytes() };
        for statement in [
            says(Says::Root { required: true }),
            says(Says::Signer(certificate(&["a", "b-*"]))),
            says(next),
        ] {
            let signed = statement.sign(&root(1)).unwrap();
            assert_eq!(signed.verify(&root(1).verifying_key()).unwrap(), statement);
            let other = signed.verify(&root(2).verifying_key());
            assert!(matches!(other, Err(StatementError::Signature)));
            for at in 0..signed.bytes.len() {
                for bit in 0..8 {
                    let mut altered = signed.clone();
                    altered.bytes[at] ^= 1 << bit;
                    assert!(altered.verify(&root(1).verifying_key()).is_err(), "{at}.{bit}");
                }
            }
        }
    }

    /// A root's key that also signed manifests would otherwise have said things.
    #[test]
    fn what_the_key_signed_for_another_use_is_no_statement() {
        let statement = says(Says::Root { required: false });
        let SignedStatement { bytes, .. } = statement.sign(&root(1)).unwrap();
        for context in ["", "kiln-manifest-v1\0"] {
            let signed = root(1).sign(&[context.as_bytes(), &bytes].concat());
            let signature = signed.to_bytes().to_vec();
            let forged = SignedStatement { bytes: bytes.clone(), signature };
            assert!(forged.verify(&root(1).verifying_key()).is_err(), "{context:?}");
        }
    }

    #[test]
    fn a_certificate_is_for_its_node_its_namespaces_and_its_time() {
        let of = certificate(&["team", "lab-*"]);
        for (namespace, good) in [("team", true), ("lab-a", true), ("teams", false), ("", false)] {
            assert_eq!(of.allows(3, Some(namespace), 1500).is_ok(), good, "{namespace}");
        }
        assert_eq!(of.allows(3, None, 1000), Ok(()));
        assert_eq!(of.allows(4, None, 1000), Err(Unbelieved::OtherNode { node: 4, of: 3 }));
        for time in [0, 999, 2000, u64::MAX] {
            assert_eq!(of.allows(3, None, time), Err(Unbelieved::Time { node: 3 }), "{time}");
        }
        let any = SignerCertificate { node: None, not_after_unix_ms: None, ..of };
        assert_eq!(any.allows(8, Some("team"), u64::MAX), Ok(()));
    }

    #[test]
    fn what_says_too_much_or_too_little_is_not_signed_and_not_read() {
        let bad = [
            certificate(&[]),
            certificate(&["a b"]),
            certificate(&["x"; MOST_PATTERNS + 1]),
            SignerCertificate { name: "x".repeat(257), ..certificate(&["*"]) },
            SignerCertificate { name: "a\nb".into(), ..certificate(&["*"]) },
            SignerCertificate { node: Some(0), ..certificate(&["*"]) },
            SignerCertificate { not_after_unix_ms: Some(1000), ..certificate(&["*"]) },
        ];
        for certificate in bad {
            let statement = says(Says::Signer(certificate));
            assert!(statement.sign(&root(1)).is_err(), "{statement:?}");
            // A root of another program may have signed it all the same.
            let bytes = prost::Message::encode_to_vec(&pb::RootStatement::from(&statement));
            let signature = root(1).sign(&message(&bytes)).to_bytes().to_vec();
            let read = SignedStatement { bytes, signature }.verify(&root(1).verifying_key());
            // A node 0 is none on the wire.
            let none = matches!(&statement.says, Says::Signer(of) if of.node == Some(0));
            assert_eq!(read.is_ok(), none, "{statement:?}");
        }
        for bytes in [vec![], vec![0xff; 9], vec![8, 7]] {
            let signature = root(1).sign(&message(&bytes)).to_bytes().to_vec();
            let read = SignedStatement { bytes, signature }.verify(&root(1).verifying_key());
            assert!(matches!(read, Err(StatementError::Invalid(_))), "{read:?}");
        }
    }
}
