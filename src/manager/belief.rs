//! Whose signature counts: what the cluster's root says, and this node's own setting.
//!
//! Invariant: judged each time that something is given out, never once for all: a certificate
//! ends, and another one comes.

use std::sync::Arc;

use ed25519_dalek::VerifyingKey;
use kiln_cluster::Entry;
use kiln_proto::{Manifest, NodeId};

use super::Manager;
use crate::{clock, error::Error};

impl Manager {
    /// Whether what `signer` signed in `namespace` (`None`: in any at all) is believed; why not.
    pub fn believes(&self, signer: NodeId, namespace: Option<&str>) -> Result<(), String> {
        let trust = self.index.trust();
        match (&self.settings.root, trust.root()) {
            (None, _) if !trust.is_required() => return Ok(()),
            (Some(ours), Some(root)) if *ours != root.key => {
                return Err("the cluster's root is not that of trust.root".into());
            }
            (Some(_), None) => {
                return Err("the cluster has no root, and trust.root names one".into());
            }
            _ => {}
        }
        let Some(node) = self.index.node(signer) else {
            return Err(format!("there was never a node {signer}"));
        };
        let judged = trust.judge(signer, &node.key, namespace, clock::unix_ms());
        judged.map_err(|why| why.to_string())
    }

    /// The same of a key that a backup says is the signer's.
    pub fn believes_key(&self, signer: NodeId, key: &VerifyingKey, namespace: &str) -> bool {
        let trust = self.index.trust();
        let is_root = |ours: &VerifyingKey| trust.root().is_some_and(|root| root.key == *ours);
        match &self.settings.root {
            None if !trust.is_required() => true,
            Some(ours) if !is_root(ours) => false,
            _ => trust.judge(signer, key, Some(namespace), clock::unix_ms()).is_ok(),
        }
    }

    /// The keys of those whose signatures count: that were not revoked, and may sign something.
    pub fn signers(&self) -> Vec<(NodeId, VerifyingKey)> {
        let all = self.index.signers().into_iter();
        all.filter(|(node, _)| self.believes(*node, None).is_ok()).collect()
    }

    /// The manifest of an entry, whose signature holds, and whose signer is believed.
    pub(super) fn verify_believed(&self, entry: &Entry) -> Result<Arc<Manifest>, Error> {
        let manifest = self.verify(entry)?;
        match self.believes(manifest.producer, Some(&manifest.namespace)) {
            Ok(()) => Ok(manifest),
            Err(why) => {
                self.counters.unbelieved();
                tracing::debug!(key = %entry.key, why, "an artifact is not believed");
                Err(Error::Unreachable(why))
            }
        }
    }
}
