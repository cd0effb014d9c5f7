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
    command::{Change, Command, NewNode, OrderedWrite, Publication},
    error::ClusterError,
    table::{CertificateRecord, RootRecord},
    watch::Nodes,
};

/// The root, and what it says of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    root: Option<Root>,
    certificates: BTreeMap<[u8; 32], Certificate>,
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
        let certificate = |CertificateRecord { statement, .. }: CertificateRecord| {
            let read = statement.verify(&root.key).ok().filter(|read| read.cluster == cluster)?;
            let Says::Signer(says) = read.says else { return None };
            let (key, serial) = (says.key, read.serial);
            Some((key, Certificate { says, serial, signed: statement }))
        };
        let certificates = certificates.into_iter().filter_map(certificate).collect();
        Self { root: Some(root), certificates }
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
                self.judge(node, &info.key, None, unix_ms).map_err(ClusterError::invalid)
            }
            _ => Ok(()),
        }
    }

    /// Whether a leader may propose `command`: what it publishes is of a signer with a right
    /// to its namespace.
    pub(crate) fn check(
        &self,
        nodes: &Nodes,
        command: &Command,
        unix_ms: u64,
    ) -> Result<(), ClusterError> {
        if !self.is_required() {
            return Ok(());
        }
        let Some(publication) = publication(command) else { return Ok(()) };
        let signed = &publication.manifest;
        let Some(signer) = nodes.get(&signed.signer) else { return Ok(()) };
        let manifest = signed.read_unverified().map_err(ClusterError::invalid)?;
        let judged = self.judge(signed.signer, &signer.key, Some(&manifest.namespace), unix_ms);
        judged.map_err(ClusterError::invalid)
    }
}

fn publication(command: &Command) -> Option<&Publication> {
    match command {
        Command::Commit { publication, .. }
        | Command::CommitWhole { publication, .. }
        | Command::Write(OrderedWrite { change: Change::Put { publication, .. }, .. }) => {
            Some(publication)
        }
        _ => None,
    }
}
