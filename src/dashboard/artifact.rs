//! The page of one artifact.
//!
//! Invariant: it moves no bytes of the artifact; what it shows of a manifest is marked as
//! not checked where its signature does not hold.

use kiln_cluster::{ClusterError, Entry};
use kiln_proto::{ArtifactKey, Check, Components, FileEntry, Fingerprint, NodeId, PieceRef};
use serde::Serialize;

use super::{
    changes::{Change, Changes},
    sources::Sources,
};

/// One artifact, or what is known of a key without one.
#[derive(Debug, Serialize)]
pub struct ArtifactView {
    /// Its key.
    pub key: String,
    /// What the index has; `None`: no artifact.
    pub stored: Option<StoredView>,
    /// Why it has none, where that is remembered.
    pub failure: Option<FailureView>,
    /// What became of it since this node began to run, the oldest first.
    pub history: Vec<Change>,
}

/// What the index has of a key.
#[derive(Debug, Serialize)]
pub struct StoredView {
    /// Counts the artifacts that the key has had, from 1.
    pub epoch: u64,
    /// Whether the object store has it.
    pub object: bool,
    /// Whether it is protected from eviction.
    pub pinned: bool,
    /// Reported hits.
    pub hits: u64,
    /// What one hit saves.
    pub compile_seconds: f64,
    /// Of its pack.
    pub bytes: u64,
    /// Digest of its pack.
    pub pack: String,
    /// Nodes believed to have it.
    pub holders: Vec<NodeId>,
    /// Who signed it.
    pub signer: NodeId,
    /// Whether the signature holds; if not, nothing of the manifest can be relied on.
    pub signed: bool,
    /// What was signed; `None`: it cannot be read.
    pub manifest: Option<ManifestView>,
}

/// What a producer says of an artifact.
#[derive(Debug, Serialize)]
pub struct ManifestView {
    /// A name to show.
    pub label: String,
    /// Tenant.
    pub namespace: String,
    /// The compiler and its versions.
    pub fingerprint: Fingerprint,
    /// What it runs on.
    pub target: String,
    /// Who made it.
    pub producer: NodeId,
    /// When, by the producer's clock.
    pub created_unix_ms: u64,
    /// What decided the key.
    pub components: Components,
    /// Its files.
    pub files: Vec<FileEntry>,
    /// What it is stitched of.
    pub pieces: Vec<PieceRef>,
    /// Whether it was seen to be right.
    pub check: Option<Check>,
}

/// Why a key has no artifact.
#[derive(Debug, Serialize)]
pub struct FailureView {
    /// `C001` to `C005`.
    pub code: &'static str,
    /// Its class.
    pub kind: &'static str,
    /// For people.
    pub message: String,
}

impl ArtifactView {
    /// What this node knows of `key`; `None`: nothing at all.
    pub(super) async fn of(
        key: &ArtifactKey,
        sources: &Sources,
        changes: &Changes,
    ) -> Result<Option<Self>, ClusterError> {
        let index = &sources.index;
        let stored = match index.lookup(key).await? {
            None => None,
            Some(entry) => {
                let hits = index.usage(key).await?.hits;
                Some(StoredView::of(&Entry { hits, ..entry }, sources))
            }
        };
        let failure = index.failure(key).await?.map(|failure| FailureView {
            code: failure.kind.code(),
            kind: failure.kind.name(),
            message: failure.message,
        });
        let history = changes.of(key);
        if stored.is_none() && failure.is_none() && history.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { key: key.to_string(), stored, failure, history }))
    }
}

impl StoredView {
    fn of(entry: &Entry, sources: &Sources) -> Self {
        let signer = sources.index.node(entry.manifest.signer);
        let verified = signer.and_then(|node| node.verify(&entry.manifest, &entry.key).ok());
        let verified = verified.map(|(manifest, _)| manifest);
        let signed = verified.is_some();
        let manifest = verified.or_else(|| entry.manifest.read_unverified().ok());
        Self {
            epoch: entry.epoch,
            object: entry.stored,
            pinned: entry.pinned,
            hits: entry.hits,
            compile_seconds: entry.compile_seconds,
            bytes: entry.pack_size,
            pack: entry.pack.to_string(),
            holders: entry.holders.clone(),
            signer: entry.manifest.signer,
            signed,
            manifest: manifest.map(|manifest| ManifestView {
                label: manifest.label,
                namespace: manifest.namespace,
                fingerprint: manifest.fingerprint,
                target: manifest.target.to_string(),
                producer: manifest.producer,
                created_unix_ms: manifest.created_unix_ms,
                components: manifest.components,
                files: manifest.files,
                pieces: manifest.pieces,
                check: manifest.check,
            }),
        }
    }
}
