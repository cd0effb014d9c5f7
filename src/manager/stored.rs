//! Stored artifacts: from an index entry to verified bytes on this node.
//!
//! Invariant: what leaves here has a manifest whose signer the index knows, and
//! the bytes that it names; a manifest is remembered, by key and epoch, only after
//! its signature held.

use std::sync::Arc;

use kiln_cluster::Entry;
use kiln_proto::{ArtifactKey, Failure, FailureKind, Manifest};

use super::{Answer, Manager, Outcome, hints};
use crate::error::Error;

impl Manager {
    /// A stored artifact with its bytes.
    pub async fn load(&self, key: &ArtifactKey, namespace: &str) -> Result<Answer, Error> {
        let result = match self.find(key, namespace).await {
            Ok(found) => found.ok_or(Error::NotFound(*key)),
            Err(e) => Err(e),
        };
        self.counters.ended(&result);
        result
    }

    /// The artifact of an entry that the caller looked up; `None`: its bytes can
    /// be had nowhere.
    pub async fn open(&self, entry: &Entry, namespace: &str) -> Result<Option<Answer>, Error> {
        let result = match self.bring(entry, namespace, Outcome::Hit).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => {
                self.counters.lost();
                return Ok(None);
            }
            Err(e) => Err(e),
        };
        self.counters.ended(&result);
        result.map(Some)
    }

    /// Brings an entry's bytes into the local tiers, uncounted. False: had already.
    pub async fn warm(&self, entry: &Entry) -> Result<bool, Error> {
        let manifest = self.verify(entry)?;
        if self.fetcher.local(&manifest.pack_digest).await?.is_some() {
            return Ok(false);
        }
        let Some((pack, _)) = self.fetcher.remote(entry, &manifest).await? else {
            return Ok(false);
        };
        self.tiers.insert(&pack, hints(&manifest, entry.pinned)).await;
        Ok(true)
    }

    /// A hit, or `None` for a miss. Bytes that are gone everywhere are a miss.
    pub(super) async fn find(
        &self,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<Option<Answer>, Error> {
        match self.index.lookup(key)? {
            None => Ok(None),
            Some(entry) => self.bring(&entry, namespace, Outcome::Hit).await,
        }
    }

    /// An entry's artifact, verified, with backfill into the local tiers.
    pub(super) async fn bring(
        &self,
        entry: &Entry,
        namespace: &str,
        outcome: Outcome,
    ) -> Result<Option<Answer>, Error> {
        let manifest = self.verify(entry)?;
        if manifest.namespace != namespace {
            // The namespace is part of the key: only a forged request gets here.
            return Ok(None);
        }
        let (pack, origin) = match self.fetcher.local(&manifest.pack_digest).await? {
            Some(found) => found,
            None => match self.fetcher.remote(entry, &manifest).await? {
                None => return Ok(None),
                Some((pack, origin)) => {
                    self.tiers.insert(&pack, hints(&manifest, entry.pinned)).await;
                    (pack, origin)
                }
            },
        };
        self.reporter.hit(entry.key);
        let signed = entry.manifest.clone();
        Ok(Some(Answer { signed, manifest, pack, outcome, origin: Some(origin) }))
    }

    fn verify(&self, entry: &Entry) -> Result<Arc<Manifest>, Error> {
        let id = (entry.key, entry.epoch);
        if let Some(known) = self.verified.get(&id) {
            return Ok(known);
        }
        let checked = match self.index.node(entry.manifest.signer) {
            Some(signer) => entry.manifest.verify(&signer.key, &entry.key).map_err(Error::from),
            None => Err(Failure::new(
                FailureKind::Corrupt,
                format!("the manifest's signer {} was never a member", entry.manifest.signer),
            )
            .into()),
        };
        let manifest = Arc::new(checked.inspect_err(|e| {
            self.counters.bad_manifest();
            tracing::error!(key = %entry.key, error = %e, "a manifest in the index is refused");
        })?);
        self.verified.insert(id, manifest.clone());
        Ok(manifest)
    }
}
