//! Whose signature counts: what the cluster's root says, and this node's own setting.
//!
//! Invariant: judged each time that something is given out, never once for all: a certificate
//! ends, and another one comes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::VerifyingKey;
use kiln_cluster::Entry;
use kiln_proto::{ArtifactKey, Manifest, NodeId};
use parking_lot::Mutex;

use super::Manager;
use crate::{clock, error::Error};

/// Between two warnings that this node does not believe itself.
const PAUSE: Duration = Duration::from_secs(60);

/// When it was last told that this node does not believe itself.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is told now.
    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Manager {
    /// Whether what `signer` signed with `key` in `namespace` (`None`: in any at all) is believed;
    /// why not.
    pub fn believes(
        &self,
        signer: NodeId,
        key: &VerifyingKey,
        namespace: Option<&str>,
    ) -> Result<(), String> {
        let trust = self.index.trust();
        match (&*self.settings.roots, trust.root()) {
            ([], _) if !trust.is_required() => return Ok(()),
            ([_, ..], Some(root)) if !self.settings.roots.contains(&root.key) => {
                return Err("the cluster's root is not that of trust.root".into());
            }
            ([_, ..], None) => {
                return Err("the cluster has no root, and trust.root names one".into());
            }
            _ => {}
        }
        let judged = trust.judge(signer, key, namespace, clock::unix_ms());
        judged.map_err(|why| why.to_string())
    }

    /// Whether all that `signer` ever signed in `namespace` is believed, whichever of its keys it
    /// was.
    pub fn believes_all_of(&self, signer: NodeId, namespace: &str) -> bool {
        if !self.judges() {
            return true;
        }
        let Some(node) = self.index.node(signer) else { return false };
        node.keys.iter().all(|of| self.believes(signer, &of.key, Some(namespace)).is_ok())
    }

    /// The same of a key that a backup says is the signer's.
    pub fn believes_key(&self, signer: NodeId, key: &VerifyingKey, namespace: &str) -> bool {
        self.believes(signer, key, Some(namespace)).is_ok()
    }

    /// The keys of those whose signatures count: that were not revoked, and may sign something.
    pub fn signers(&self) -> Vec<(NodeId, VerifyingKey)> {
        let all = self.index.signers().into_iter();
        all.filter(|(node, key)| self.believes(*node, key, None).is_ok()).collect()
    }

    /// Whether signers are judged at all.
    pub fn judges(&self) -> bool {
        !self.settings.roots.is_empty() || self.index.trust().is_required()
    }

    /// Whether who signed an entry is believed there; one that is not is counted.
    pub fn believes_entry(&self, entry: &Entry) -> bool {
        !self.judges() || self.verify_believed(entry).is_ok()
    }

    /// Why nobody here would believe what this node signs in `namespace`: it takes no lease of
    /// that, for each such artifact would be one more that is compiled anew, by itself too.
    pub(super) async fn unbelieved_here(&self, namespace: &str) -> Option<String> {
        self.doubts_itself(namespace)?;
        // A replica that has just started may not have come to this node's present key, or to its
        // certificate.
        self.catch_up_once().await;
        let why = self.doubts_itself(namespace)?;
        if self.told.is_due(Instant::now()) {
            tracing::warn!(
                namespace,
                why,
                "this node does not believe what it signs itself, and publishes nothing there: see \
                 its certificate, its clock, trust.root and the cluster's root (kiln signer list)"
            );
        }
        Some(why)
    }

    /// Waits, where this node's replica does not know the signer of an entry or what the root says
    /// of it, until it does: an entry that the leader told may come before what it hangs on.
    pub async fn know_signer(&self, entry: &Entry) {
        let known = self
            .check_signature(entry)
            .is_ok_and(|(of, by)| self.believes(of.producer, &by, Some(&of.namespace)).is_ok());
        if !known {
            self.catch_up().await;
        }
    }

    /// Why, as far as this node's replica knows, nobody would believe it.
    fn doubts_itself(&self, namespace: &str) -> Option<String> {
        match self.identity.current() {
            Ok(by) => {
                let key = by.verifying_key();
                self.believes(self.identity.node, &key, Some(namespace)).err()
            }
            Err(why) => Some(why.to_string()),
        }
    }

    /// Refuses where nobody here would believe what this node signs in `namespace`.
    pub async fn may_sign(&self, namespace: &str) -> Result<(), Error> {
        match self.unbelieved_here(namespace).await {
            None => Ok(()),
            Some(why) => Err(Error::NotStored(why)),
        }
    }

    /// Makes a replaceable key free for what this node is about to put there, where its present
    /// value is not believed: a put of the same bytes would keep the signer that it has.
    pub async fn clear_unbelieved(&self, key: &ArtifactKey, namespace: &str) -> Result<(), Error> {
        let is_bad = |entry: &Entry| {
            let signed = self.verify_by(entry);
            let believed = signed.map(|(of, by)| self.believes(of.producer, &by, Some(namespace)));
            !matches!(believed, Ok(Ok(())))
        };
        if !self.judges() || !self.index.lookup(key).await?.is_some_and(|entry| is_bad(&entry)) {
            return Ok(());
        }
        self.may_sign(namespace).await?;
        match self.index.lookup_linearizable(key).await? {
            Some(entry) if is_bad(&entry) => {
                let reason =
                    format!("node {} signed it, which is not believed", entry.manifest.signer);
                self.index.tombstone(key, reason).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The manifest of an entry, whose signature holds, and whose signer is believed.
    pub(super) fn verify_believed(&self, entry: &Entry) -> Result<Arc<Manifest>, Error> {
        let (manifest, by) = self.verify_by(entry)?;
        match self.believes(manifest.producer, &by, Some(&manifest.namespace)) {
            Ok(()) => Ok(manifest),
            Err(why) => {
                self.counters.unbelieved();
                tracing::debug!(key = %entry.key, why, "an artifact is not believed");
                Err(Error::Unreachable(why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_in_a_while() {
        let (told, now) = (Told::default(), Instant::now());
        assert!(told.is_due(now) && !told.is_due(now));
        assert!(!told.is_due(now + PAUSE / 2) && told.is_due(now + PAUSE));
    }
}
