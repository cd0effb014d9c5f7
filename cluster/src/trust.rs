//! What the cluster's root says: which keys may sign, of which namespaces.
//!
//! Invariant: each statement in a [`Trust`] was signed by its root, for this cluster, whoever wrote it into the
//! index or a snapshot; and pure: the caller says what time it is.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use kiln_proto::{
    NodeId,
    root::{Says, SignedStatement, SignerCertificate, Unbelieved},
};

use crate::{
    command::{Command, NewNode},
    error::ClusterError,
    signing::{KeyChange, Verified},
    table::{CertificateRecord, NextRootRecord, RootRecord},
    watch::Nodes,
};

/// The root, and what it says of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    root: Option<Root>,
    certificates: BTreeMap<[u8; 32], Certificate>,
    /// The key that is to be the root, and what that says of keys.
    next: Option<(VerifyingKey, BTreeMap<[u8; 32], Certificate>)>,
}

/// The root of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its public key.
    pub key: VerifyingKey,
    /// Whether a signer without a certificate is not believed.
    pub required: bool,
    /// The statement that says so.
    pub signed: SignedStatement,
}

/// What the root says of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What it may.
    pub says: SignerCertificate,
    /// Of several for one key, the highest counts.
    pub serial: u64,
    /// The statement that says so.
    pub signed: SignedStatement,
}

impl Trust {
    /// What of the records the root has signed, for `cluster`.
    pub(crate) fn of(
        cluster: u64,
        root: Option<RootRecord>,
        certificates: impl IntoIterator<Item = CertificateRecord>,
    ) -> Self {
        let root = root.and_then(|RootRecord { key, statement, .. }| {
            let key = VerifyingKey::from_bytes(&key).ok()?;
            let read = statement.verify(&key).ok().filter(|read| read.cluster == cluster)?;
            let Says::Root { required } = read.says else { return None };
            Some(Root { key, required, signed: statement })
        });
        let Some(root) = root else { return Self::default() };
        let certificates = signed_by(&root.key, cluster, certificates);
        Self { root: Some(root), certificates, next: None }
    }

    /// The same with what is known of the next root, if the present one has named that.
    pub(crate) fn with_next(
        self,
        cluster: u64,
        next: Option<NextRootRecord>,
        certificates: impl IntoIterator<Item = CertificateRecord>,
    ) -> Self {
        let next = next.zip(self.root.as_ref()).and_then(|(next, root)| {
            let read = next.statement.verify(&root.key).ok();
            let read = read.filter(|read| read.cluster == cluster)?;
            let named = read.says == Says::Next { key: next.key };
            let is_another = next.key != root.key.to_bytes();
            let key = VerifyingKey::from_bytes(&next.key).ok().filter(|_| named && is_another)?;
            Some((key, signed_by(&key, cluster, certificates)))
        });
        Self { next, ..self }
    }

    /// The key that is to be the root.
    pub fn next_root(&self) -> Option<&VerifyingKey> {
        self.next.as_ref().map(|(key, _)| key)
    }

    /// What is believed as soon as the next root is the root; for another one than that, nothing.
    pub fn after(&self, root: &VerifyingKey) -> Self {
        let next = self.next.as_ref().filter(|(key, _)| key == root);
        let certificates = next.map(|(_, certificates)| certificates.clone()).unwrap_or_default();
        Self { root: None, certificates, next: None }
    }

    /// The root, where the cluster has one.
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// Whether a signer without a certificate is not believed.
    pub fn is_required(&self) -> bool {
        self.root.as_ref().is_some_and(|root| root.required)
    }

    /// What the root says of a key.
    pub fn certificate(&self, key: &VerifyingKey) -> Option<&Certificate> {
        self.certificates.get(key.as_bytes())
    }

    /// All that the root says of keys.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.values()
    }

    /// Whether the root lets `node`, whose key is `key`, sign in `namespace` (`None`: in any
    /// at all) at that time, in milliseconds since the Unix epoch; whether or not that is
    /// required.
    pub fn judge(
        &self,
        node: NodeId,
        key: &VerifyingKey,
        namespace: Option<&str>,
        unix_ms: u64,
    ) -> Result<(), Unbelieved> {
        let certificate = self.certificate(key).ok_or(Unbelieved::NoCertificate { node })?;
        certificate.says.allows(node, namespace, unix_ms)
    }

    /// Whether a leader may register a node: it has a key that may sign something.
    pub(crate) fn check_newcomer(&self, node: &NewNode, unix_ms: u64) -> Result<(), ClusterError> {
        if !self.is_required() {
            return Ok(());
        }
        let certificate = self.certificates.get(&node.key);
        // Which node it will be is not known before it is one.
        let judged = certificate.map(|of| of.says.allows(of.says.node.unwrap_or(0), None, unix_ms));
        match judged {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(ClusterError::invalid(why)),
            None => {
                let key = hex::encode(node.key);
                Err(ClusterError::invalid(format!(
                    "this cluster's root has no certificate for the key {key} of this node: kiln \
                     signer issue {key}, then kiln signer add"
                )))
            }
        }
    }

    /// Whether a leader may grant `node` a lease: it could publish something.
    pub(crate) fn check_signer(
        &self,
        nodes: &Nodes,
        node: NodeId,
        unix_ms: u64,
    ) -> Result<(), ClusterError> {
        match nodes.get(&node) {
            Some(info) if self.is_required() => {
                self.judge(node, &info.signing(), None, unix_ms).map_err(ClusterError::invalid)
            }
            _ => Ok(()),
        }
    }

    /// Whether a leader may propose `command`: what it publishes is of a signer with a right
    /// to its namespace. `verified`: what the leader has verified of it.
    pub(crate) fn check(
        &self,
        command: &Command,
        verified: Option<&Verified>,
        unix_ms: u64,
    ) -> Result<(), ClusterError> {
        if !self.is_required() {
            return Ok(());
        }
        if let Command::Keys(KeyChange::Rotate { node, key, .. }) = command {
            let key = VerifyingKey::from_bytes(key).map_err(ClusterError::invalid)?;
            return self.judge(*node, &key, None, unix_ms).map_err(ClusterError::invalid);
        }
        match verified {
            None => Ok(()),
            Some(Verified { manifest, key }) => self
                .judge(manifest.producer, key, Some(&manifest.namespace), unix_ms)
                .map_err(ClusterError::invalid),
        }
    }
}

/// Those certificates that `root` signed for `cluster`.
fn signed_by(
    root: &VerifyingKey,
    cluster: u64,
    certificates: impl IntoIterator<Item = CertificateRecord>,
) -> BTreeMap<[u8; 32], Certificate> {
    let certificate = |CertificateRecord { statement, .. }: CertificateRecord| {
        let read = statement.verify(root).ok().filter(|read| read.cluster == cluster)?;
        let Says::Signer(says) = read.says else { return None };
        let (key, serial) = (says.key, read.serial);
        Some((key, Certificate { says, serial, signed: statement }))
    };
    certificates.into_iter().filter_map(certificate).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ed25519_dalek::SigningKey;
    use kiln_proto::root::RootStatement;

    use super::*;
    use crate::{
        authorize::tests::{nodes, publication},
        command::{Change, NodeFacts, OrderedWrite, Publication},
        signing::Publishes,
    };

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    /// What the root, of seed 50, says; of each key of a seed, where it may sign and until when.
    fn trust(required: bool, of: &[(u8, &str, Option<u64>)]) -> Trust {
        let sign = |says| RootStatement { serial: 1, cluster: 5, says }.sign(&key(50)).unwrap();
        let root = RootRecord {
            key: key(50).verifying_key().to_bytes(),
            serial: 1,
            statement: sign(Says::Root { required }),
        };
        let certificate = |(seed, namespace, until): &(u8, &str, Option<u64>)| {
            let says = SignerCertificate {
                key: key(*seed).verifying_key().to_bytes(),
                node: None,
                name: String::new(),
                namespaces: vec![(*namespace).to_owned()],
                not_before_unix_ms: 10,
                not_after_unix_ms: *until,
            };
            CertificateRecord { serial: 1, statement: sign(Says::Signer(says)) }
        };
        Trust::of(5, Some(root), of.iter().map(certificate))
    }

    /// The leader looks again at what a node publishes: it may have lost the right since its lease.
    #[test]
    fn what_is_published_is_of_a_signer_that_has_the_right_to_its_namespace_then() {
        let commit = |namespace: &str| {
            let publication = publication(1, &key(1), namespace, Vec::new());
            Command::Commit { publication, also: Vec::new() }
        };
        let whole = |namespace: &str| {
            let publication = publication(1, &key(1), namespace, Vec::new());
            Command::CommitWhole { publication, also: Vec::new(), pieces: Vec::new() }
        };
        let put = |namespace: &str| {
            let publication = publication(1, &key(1), namespace, Vec::new());
            Command::Write(OrderedWrite {
                node: 1,
                session: kiln_proto::Token(5),
                sequence: 1,
                floor: 1,
                supersedes: Vec::new(),
                change: Change::Put { publication, create: false, also: Vec::new() },
            })
        };
        for command in [commit("team"), whole("team"), put("team")] {
            let of = Publishes::of(command.clone()).unwrap();
            let Publication { manifest, key, .. } = of.publication().unwrap();
            let (manifest, key) = nodes()[&1].verify(manifest, key).unwrap();
            let verified = Verified { manifest, key };
            let judge = |trust: &Trust, at| trust.check(&command, Some(&verified), at).is_ok();
            assert!(judge(&trust(true, &[(1, "team", None)]), 20), "{command}");
            for (bad, why) in [
                (trust(true, &[]), "it has none"),
                (trust(true, &[(2, "*", None)]), "another key's"),
                (trust(true, &[(1, "lab", None)]), "narrowed since"),
                (trust(true, &[(1, "team", Some(20))]), "over since"),
            ] {
                assert!(!judge(&bad, 20), "{command}: {why}");
            }
            assert!(!judge(&trust(true, &[(1, "team", None)]), 9), "not yet");
            assert!(judge(&trust(false, &[]), 20), "none is required");
            assert!(judge(&Trust::default(), 20), "there is no root");
        }
    }

    #[test]
    fn a_lease_a_place_and_a_new_key_are_for_who_may_sign_something() {
        let of = |seeds: &[u8]| {
            trust(true, &seeds.iter().map(|seed| (*seed, "team", None)).collect::<Vec<_>>())
        };
        assert!(of(&[1]).check_signer(&nodes(), 1, 20).is_ok());
        assert!(of(&[1]).check_signer(&nodes(), 2, 20).is_err());
        assert!(of(&[1]).check_signer(&nodes(), 1, 9).is_err(), "not yet");
        let newcomer = |seed: u8| NewNode {
            candidate: [9; 16],
            facts: NodeFacts::default(),
            key: key(seed).verifying_key().to_bytes(),
        };
        assert!(of(&[9]).check_newcomer(&newcomer(9), 20).is_ok());
        assert!(of(&[9]).check_newcomer(&newcomer(8), 20).is_err());
        assert!(of(&[9]).check_newcomer(&newcomer(9), 9).is_err(), "not yet");
        let rotate = |seed: u8| {
            let key = key(seed).verifying_key().to_bytes();
            Command::Keys(KeyChange::Rotate { node: 1, key, at_unix_ms: 0 })
        };
        assert!(of(&[1, 7]).check(&rotate(7), None, 20).is_ok());
        assert!(of(&[1]).check(&rotate(7), None, 20).is_err());
        assert!(of(&[1, 7]).check(&rotate(7), None, 9).is_err(), "not yet");
    }
}
