//! Publishing: signed, durable here, committed, then queued for L3.
//!
//! Invariant: an entry is committed after its bytes are in this node's tiers, and
//! names this node as its producer.

use std::{sync::Arc, time::SystemTime};

use kiln_cluster::{Lease, Published, Put, PutMode};
use kiln_proto::{Manifest, SignedManifest};

use super::{Manager, hints};
use crate::{
    artifact,
    cache::Blob,
    compiler::{Output, Prepared},
    error::Error,
};

impl Manager {
    /// Publishes an artifact that a client compiled under `lease`: durable here
    /// first, then committed. The manifest's producer becomes this node.
    pub async fn save(
        &self,
        lease: &Lease,
        manifest: Manifest,
        pack: Blob,
    ) -> Result<(bool, Arc<SignedManifest>), Error> {
        if manifest.key != *lease.key() {
            return Err(Error::Invalid("the manifest is for another key than the lease".into()));
        }
        let refuse = |e: kiln_proto::ManifestError| Error::Invalid(e.to_string());
        let signed = self.identity.sign(manifest).map_err(refuse)?;
        let manifest = signed.read_unverified().map_err(refuse)?;
        artifact::verify_files(&manifest, &pack).map_err(|e| Error::Invalid(e.to_string()))?;
        let published = self.commit(lease, &signed, &manifest, &pack).await?;
        Ok(match published {
            Published::Committed(_) => (true, Arc::new(signed)),
            Published::Existing(entry) => (false, entry.manifest),
        })
    }

    /// Commits what another tool stores under a key of its own: durable here
    /// first. The manifest's producer and time become this node's.
    pub async fn put(&self, manifest: Manifest, pack: &Blob, mode: PutMode) -> Result<Put, Error> {
        if !manifest.replaceable() {
            return Err(Error::Invalid("only a lease's holder may publish this key".into()));
        }
        let refuse = |e: kiln_proto::ManifestError| Error::Invalid(e.to_string());
        let signed = self.identity.sign(Manifest { created_unix_ms: now_unix_ms(), ..manifest });
        let signed = signed.map_err(refuse)?;
        let manifest = signed.read_unverified().map_err(refuse)?;
        artifact::verify_files(&manifest, pack).map_err(|e| Error::Invalid(e.to_string()))?;
        self.tiers.insert(pack, hints(&manifest, false)).await;
        let put = self.index.put(signed, mode).await?;
        if let Put::Committed(_) = &put {
            self.upload(&manifest).await;
        }
        Ok(put)
    }

    /// Durable here, then committed, then queued for L3.
    pub(super) async fn commit(
        &self,
        lease: &Lease,
        signed: &SignedManifest,
        manifest: &Manifest,
        pack: &Blob,
    ) -> Result<Published, Error> {
        self.tiers.insert(pack, hints(manifest, false)).await;
        let published = self.index.publish(lease, signed.clone()).await?;
        if let Published::Committed(_) = &published {
            self.upload(manifest).await;
        }
        Ok(published)
    }

    async fn upload(&self, manifest: &Manifest) {
        if let Err(e) = self.tiers.enqueue_upload(&manifest.pack_digest).await {
            tracing::warn!(pack = %manifest.pack_digest, error = %e, "the upload is not queued");
        }
    }

    pub(super) fn sign(
        &self,
        prepared: &Prepared,
        output: Output,
    ) -> Result<(Arc<SignedManifest>, Arc<Manifest>, Blob), Error> {
        let (pack, files) =
            artifact::pack(output.files).map_err(|e| Error::Storage(e.to_string()))?;
        let manifest = Manifest {
            key: prepared.components.key(),
            namespace: prepared.namespace.clone(),
            components: prepared.components.clone(),
            fingerprint: prepared.fingerprint.clone(),
            target: prepared.target,
            files,
            pack_digest: pack.digest(),
            pack_size: pack.size(),
            producer: self.identity.node,
            compile_seconds: output.compile_seconds,
            created_unix_ms: now_unix_ms(),
            label: prepared.label.clone(),
        };
        let signed = self.identity.sign(manifest)?;
        let manifest = signed.read_unverified()?;
        Ok((Arc::new(signed), Arc::new(manifest), pack))
    }
}

/// This node's clock: information only, no decision rests on it.
fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_millis() as u64
}
