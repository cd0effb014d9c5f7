//! What `--json` prints: the stable shapes of the command line.
//!
//! Invariant: a field printed once is never renamed or dropped; tests hold the
//! shapes down.

use std::collections::BTreeMap;

use kiln_proto::{Component, Difference, FileEntry, Manifest, PieceRef, pb};
use serde::Serialize;

use super::{
    emergency::ModeView,
    fallback::{FallbackView, TriedView},
    pieces::{self, PieceView},
    progress,
    sizes::SizeView,
};

/// `kiln compile --json`: one for each target.
#[derive(Debug, Serialize)]
pub(crate) struct CompileView {
    pub(crate) key: String,
    /// `compiled`, `hit` or `coalesced`.
    pub(crate) outcome: &'static str,
    /// `memory`, `disk`, `peer`, `object`, or null when compiled.
    pub(crate) tier: Option<&'static str>,
    /// The node that answered.
    pub(crate) node: u64,
    /// The tenant that it is of.
    pub(crate) namespace: String,
    pub(crate) target: String,
    /// blake3 of the artifact's bytes, its name in every tier.
    pub(crate) artifact: String,
    pub(crate) bytes: u64,
    pub(crate) files: Vec<FileView>,
    /// What the compile took when it ran, wherever that was.
    pub(crate) compile_seconds: f64,
    /// What this answer took at the node.
    pub(crate) elapsed_seconds: f64,
    /// The folder written to, or null without `-o`.
    pub(crate) directory: Option<String>,
    /// `full` or `piecewise`.
    pub(crate) strategy: Option<&'static str>,
    /// Why, for people.
    pub(crate) reasons: Vec<String>,
    /// Of what is in pieces: the different ones.
    pub(crate) pieces: Vec<PieceView>,
    /// Whether all of it was run and is right; null: it was not run.
    pub(crate) verified: Option<bool>,
    /// Why it was not run.
    pub(crate) unverified: Option<String>,
    /// What it was compiled for beside: of `--compile-sizes`.
    pub(crate) sizes: Vec<SizeView>,
    /// That it is not what was asked for; null: it is.
    pub(crate) fallback: Option<FallbackView>,
    /// What was tried before and gave nothing.
    pub(crate) tried: Vec<TriedView>,
}

/// One file of an artifact.
#[derive(Debug, Serialize)]
pub(crate) struct FileView {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) digest: String,
}

/// `kiln get --json`.
#[derive(Debug, Serialize)]
pub(crate) struct FetchView {
    pub(crate) key: String,
    /// The tenant that it is of.
    pub(crate) namespace: String,
    pub(crate) tier: Option<&'static str>,
    pub(crate) artifact: String,
    pub(crate) bytes: u64,
    pub(crate) files: Vec<FileView>,
    pub(crate) directory: String,
    /// Artifacts that this one is stitched of, in `pieces/N` of the directory.
    pub(crate) pieces: Vec<PieceRefView>,
}

/// One piece of an artifact, as the artifact names it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PieceRefView {
    pub(crate) index: usize,
    pub(crate) key: String,
    pub(crate) artifact: String,
    pub(crate) bytes: u64,
}

/// `kiln ls --json`: one for each entry.
#[derive(Debug, Serialize)]
pub(crate) struct EntryView {
    pub(crate) key: String,
    pub(crate) label: String,
    pub(crate) target: String,
    pub(crate) compiler: String,
    pub(crate) namespace: String,
    pub(crate) artifact: String,
    pub(crate) bytes: u64,
    pub(crate) compile_seconds: f64,
    pub(crate) epoch: u64,
    pub(crate) stored: bool,
    pub(crate) pinned: bool,
    pub(crate) hits: u64,
    pub(crate) producer: u64,
    pub(crate) holders: Vec<u64>,
    /// Artifacts that this one is stitched of.
    pub(crate) pieces: Vec<PieceRefView>,
    /// When it was made, as its producer's clock had it; null: nobody knows.
    pub(crate) created_unix_ms: Option<u64>,
    /// When it was last reported as used; null: never.
    pub(crate) last_used_unix_ms: Option<u64>,
}

/// `kiln why --json`.
#[derive(Debug, Serialize)]
pub(crate) struct WhyView {
    pub(crate) key: String,
    pub(crate) stored: bool,
    /// The nearest other entry.
    pub(crate) nearest: Option<String>,
    pub(crate) differences: Vec<Difference>,
    pub(crate) components: Vec<Component>,
    /// Entries that were looked at.
    pub(crate) looked_at: u64,
    /// Entries that the index has.
    pub(crate) entries: u64,
    /// The search ended at its time limit.
    pub(crate) cut: bool,
    /// What a stored artifact is stitched of.
    pub(crate) pieces: Vec<StoredPieceView>,
    /// Why the key's last artifact is no more; null where it has one, or never had.
    pub(crate) ended: Option<String>,
}

/// One piece of a stored artifact.
#[derive(Debug, Serialize)]
pub(crate) struct StoredPieceView {
    #[serde(flatten)]
    pub(crate) piece: PieceRefView,
    /// Whether the index has it, with these bytes.
    pub(crate) stored: bool,
}

/// `kiln status --json`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) node: u64,
    pub(crate) version: String,
    pub(crate) role: String,
    /// Null while no leader is known.
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) applied: u64,
    pub(crate) quorum: bool,
    pub(crate) entries: u64,
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) tiers: Vec<TierView>,
    pub(crate) compilers: Vec<FingerprintView>,
    pub(crate) counters: serde_json::Map<String, serde_json::Value>,
    /// The last public key by node, also of nodes that left.
    pub(crate) signers: BTreeMap<u64, String>,
    /// All of its public keys that count, by node: what `KILN_SIGNERS` takes.
    pub(crate) signer_keys: BTreeMap<u64, Vec<String>>,
    /// What a node that leaves has to see to yet; not there while it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leaving: Option<LeavingView>,
    /// What the node does without; not there while it does without nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) emergency: Option<ModeView>,
    /// Members no more.
    pub(crate) left: Vec<u64>,
    /// Members that are set aside until they come back.
    pub(crate) away: Vec<u64>,
    /// The node that says which nodes are reachable.
    pub(crate) seen_by: u64,
    /// What the node asks of callers, and what it takes this one for; not there of a node
    /// of an earlier version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<AccessView>,
}

/// Who may ask for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AccessView {
    /// Whether callers need a right.
    pub(crate) required: bool,
    pub(crate) caller: String,
    pub(crate) role: &'static str,
    pub(crate) namespaces: Vec<String>,
    /// Whether who joins the cluster needs a token.
    pub(crate) join_needs_token: bool,
}

impl From<pb::AccessStatus> for AccessView {
    fn from(access: pb::AccessStatus) -> Self {
        let role = super::token::role_name(access.role());
        let pb::AccessStatus { required, caller, namespaces, join_needs_token, .. } = access;
        Self { required, caller, role, namespaces, join_needs_token }
    }
}

/// What no other place took over from a node that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct LeavingView {
    pub(crate) packs: u64,
    pub(crate) bytes: u64,
    pub(crate) publications: u64,
}

impl From<pb::Leaving> for LeavingView {
    fn from(pb::Leaving { packs, bytes, publications }: pb::Leaving) -> Self {
        Self { packs, bytes, publications }
    }
}

impl std::fmt::Display for LeavingView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { packs, bytes, publications } = self;
        let size = super::output::size(*bytes);
        write!(f, "{packs} packs ({size}) only there, {publications} publications under way")
    }
}

/// One member.
#[derive(Debug, Serialize)]
pub(crate) struct NodeView {
    pub(crate) id: u64,
    pub(crate) grpc: String,
    pub(crate) transfer: String,
    pub(crate) voter: bool,
    pub(crate) reachable: Option<bool>,
    pub(crate) compilers: Vec<FingerprintView>,
    /// For how long the leader has not heard of it; null where that is not known.
    pub(crate) silent_ms: Option<u64>,
}

/// One tier of the node asked.
#[derive(Debug, Serialize)]
pub(crate) struct TierView {
    pub(crate) name: String,
    /// Null where nobody counted, as of `entries`.
    pub(crate) bytes: Option<u64>,
    pub(crate) entries: Option<u64>,
    pub(crate) capacity_bytes: u64,
    pub(crate) healthy: bool,
}

/// One compiler with the versions that its output depends on.
#[derive(Debug, Serialize)]
pub(crate) struct FingerprintView {
    pub(crate) compiler: String,
    pub(crate) versions: serde_json::Map<String, serde_json::Value>,
}

/// The name of a tier.
pub(crate) fn tier(tier: pb::Tier) -> Option<&'static str> {
    match tier {
        pb::Tier::Memory => Some("memory"),
        pb::Tier::Disk => Some("disk"),
        pb::Tier::Peer => Some("peer"),
        pb::Tier::Object => Some("object"),
        pb::Tier::Unspecified => None,
    }
}

/// The pieces of a manifest.
pub(crate) fn pieces(manifest: &Manifest) -> Vec<PieceRefView> {
    let view = |(index, piece): (usize, &PieceRef)| PieceRefView {
        index,
        key: piece.key.to_string(),
        artifact: piece.pack.to_string(),
        bytes: piece.pack_size,
    };
    manifest.pieces.iter().enumerate().map(view).collect()
}

/// `whole of 3 pieces`, for people.
pub(crate) fn whole_of(pieces: usize) -> String {
    format!("whole of {pieces} piece{}", if pieces == 1 { "" } else { "s" })
}

/// The files of a manifest.
pub(crate) fn files(manifest: &Manifest) -> Vec<FileView> {
    let view = |file: &FileEntry| FileView {
        path: file.path.clone(),
        bytes: file.size,
        digest: file.digest.to_string(),
    };
    manifest.files.iter().map(view).collect()
}

impl CompileView {
    /// What a node answered for one target.
    pub(crate) fn new(done: &pb::Done, manifest: &Manifest) -> Self {
        let (verified, unverified) = pieces::verified(done.check.as_ref());
        Self {
            key: manifest.key.to_string(),
            outcome: progress::outcome(done.outcome()),
            tier: tier(done.tier()),
            node: done.node,
            namespace: manifest.namespace.clone(),
            target: manifest.target.to_string(),
            artifact: manifest.pack_digest.to_string(),
            bytes: manifest.pack_size,
            files: files(manifest),
            compile_seconds: manifest.compile_seconds,
            elapsed_seconds: done.elapsed_seconds,
            directory: None,
            strategy: done.strategy.as_ref().and_then(pieces::strategy),
            reasons: done.strategy.as_ref().map(|s| s.reasons.clone()).unwrap_or_default(),
            pieces: done.pieces.iter().map(PieceView::new).collect(),
            verified,
            unverified,
            sizes: Vec::new(),
            fallback: done.fallback.as_ref().map(FallbackView::new),
            tried: done.tried.iter().map(TriedView::new).collect(),
        }
    }
}

impl EntryView {
    /// One entry of a listing.
    pub(crate) fn new(entry: &pb::Entry, manifest: &Manifest) -> Self {
        Self {
            key: manifest.key.to_string(),
            label: manifest.label.clone(),
            target: manifest.target.to_string(),
            compiler: manifest.fingerprint.to_string(),
            namespace: manifest.namespace.clone(),
            artifact: manifest.pack_digest.to_string(),
            bytes: manifest.pack_size,
            compile_seconds: manifest.compile_seconds,
            epoch: entry.epoch,
            stored: entry.stored,
            pinned: entry.pinned,
            hits: entry.hits,
            producer: manifest.producer,
            holders: entry.holders.clone(),
            pieces: pieces(manifest),
            created_unix_ms: Some(manifest.created_unix_ms).filter(|time| *time != 0),
            last_used_unix_ms: Some(entry.last_used_unix_ms).filter(|time| *time != 0),
        }
    }
}

impl From<pb::Fingerprint> for FingerprintView {
    fn from(wire: pb::Fingerprint) -> Self {
        let versions = wire.versions.into_iter().map(|f| (f.name, f.value.into()));
        Self { compiler: wire.compiler, versions: versions.collect() }
    }
}

impl From<pb::StatusResponse> for StatusView {
    fn from(status: pb::StatusResponse) -> Self {
        let mut signer_keys = BTreeMap::<u64, Vec<String>>::new();
        for signer in &status.signers {
            signer_keys.entry(signer.node).or_default().push(hex::encode(&signer.key));
        }
        let node = |node: pb::NodeStatus| NodeView {
            id: node.id,
            grpc: node.grpc,
            transfer: node.transfer,
            voter: node.voter,
            reachable: node.reachable,
            compilers: node.compilers.into_iter().map(Into::into).collect(),
            silent_ms: node.silent_ms,
        };
        let tier = |tier: pb::TierStatus| TierView {
            name: tier.name,
            bytes: (!tier.uncounted).then_some(tier.bytes),
            entries: (!tier.uncounted).then_some(tier.entries),
            capacity_bytes: tier.capacity_bytes,
            healthy: tier.healthy,
        };
        Self {
            node: status.node,
            version: status.version,
            role: status.role,
            leader: (status.leader != 0).then_some(status.leader),
            term: status.term,
            applied: status.applied,
            quorum: status.quorum,
            entries: status.entries,
            nodes: status.nodes.into_iter().map(node).collect(),
            tiers: status.tiers.into_iter().map(tier).collect(),
            compilers: status.compilers.into_iter().map(Into::into).collect(),
            counters: status.counters.into_iter().map(|c| (c.name, c.value.into())).collect(),
            signers: status.signers.into_iter().map(|s| (s.node, hex::encode(s.key))).collect(),
            signer_keys,
            leaving: status.leaving.map(Into::into),
            emergency: status.emergency.map(Into::into),
            left: status.left,
            away: status.away,
            seen_by: if status.seen_by == 0 { status.node } else { status.seen_by },
            access: status.access.map(Into::into),
        }
    }
}
