//! The one way in which the index changes: replicated commands and their answers.
//!
//! Invariant: a command carries all that `apply` needs. Whatever comes from a
//! clock, a random source or a manifest's inside was put there by who proposed it.

use std::{fmt, sync::Arc};

use kiln_proto::{ArtifactKey, Digest, Failure, Fingerprint, NodeId, SignedManifest, Token};
use serde::{Deserialize, Serialize};

/// What a node tells the others about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Advertised address of its gRPC port, `host:port`.
    pub grpc: String,
    /// Advertised address of its transfer port.
    pub transfer: String,
    /// Advertised address of its HTTP port.
    pub http: String,
    /// The compilers that it can run.
    pub compilers: Vec<Fingerprint>,
    /// Its program's version.
    pub version: String,
}

/// A disk that asks to become a node: a new one for every empty disk.
pub(crate) type Candidate = [u8; 16];

/// A node about to be registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewNode {
    pub candidate: Candidate,
    pub facts: NodeFacts,
    /// Public half of the ed25519 key with which it signs manifests.
    pub key: [u8; 32],
}

/// How often artifacts were used, and which packs a node gained or lost: hints,
/// reported in batches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessReport {
    /// Hits by key since the last report.
    pub hits: Vec<(ArtifactKey, u32)>,
    /// Packs that this node now has in L1 or L2.
    pub gained: Vec<Digest>,
    /// Packs that it no longer has.
    pub lost: Vec<Digest>,
}

/// An artifact to commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Publication {
    pub key: ArtifactKey,
    pub token: Token,
    pub node: NodeId,
    pub pack: Digest,
    pub pack_size: u64,
    pub compile_seconds: f64,
    #[serde(with = "crate::codec::manifest")]
    pub manifest: Arc<SignedManifest>,
}

/// A change of the replicated state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// First command of a cluster: its name and its first nodes, ids from 1.
    Found { cluster: u64, nodes: Vec<NewNode> },
    /// Mints an id for a candidate; the same candidate gets the same id again.
    Join(NewNode),
    /// The node is gone for good; its key stays, its manifests remain verifiable.
    Leave(NodeId),
    /// The node's addresses or compilers changed.
    Facts { node: NodeId, facts: NodeFacts },
    /// Grants the lease of a free key. `request` makes a retry find its own grant.
    Acquire { key: ArtifactKey, node: NodeId, request: u64 },
    /// Commits an artifact under a live token.
    Publish(Publication),
    /// Ends the lease if `token` is still the live one: expiry, or release.
    Expire { key: ArtifactKey, token: Token },
    /// Ends the lease with a negative entry that the leader lifts at `until_unix_ms`.
    Fail { key: ArtifactKey, token: Token, failure: Failure, until_unix_ms: u64 },
    /// Lifts the negative entry if it is still the one written under `token`.
    Lift { key: ArtifactKey, token: Token },
    /// The pack's bytes are in the object store.
    MarkStored { pack: Digest },
    /// Access statistics of one node.
    Report { node: NodeId, report: AccessReport },
    /// Protects a key from eviction, or no longer does.
    SetPinned { key: ArtifactKey, pinned: bool },
    /// Removes a wrong artifact; the key starts a new epoch.
    Tombstone { key: ArtifactKey, reason: String },
    /// The bytes of this epoch's artifact can be had nowhere: the key is free to
    /// be compiled again, in a new epoch that keeps its pin.
    Retire { key: ArtifactKey, epoch: u64 },
    /// Announces that a pack's bytes will be deleted from the object store.
    Condemn { pack: Digest },
    /// The bytes of a condemned pack are deleted.
    Forget { pack: Digest },
    /// Commits an artifact of a replaceable key without a lease; its token counts
    /// for nothing. `create`: only where the key has none.
    Put { publication: Publication, create: bool },
    /// Whether the node may become a voter.
    SetVoter { node: NodeId, voter: bool },
    /// Voters to strive for; `raise`: only if there are to be fewer so far.
    SetVoters { voters: u64, raise: bool },
}

/// What `apply` answers to who proposed the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Response {
    /// Nothing to say.
    Done,
    /// Whether the command changed anything.
    Changed(bool),
    /// The id of the node that joined.
    Node(NodeId),
    /// The lease is the caller's.
    Granted(Token),
    /// Another's lease is live.
    Held,
    /// The key has an artifact.
    Ready,
    /// The key has a live negative entry.
    Failed,
    /// The artifact is committed.
    Committed,
    /// The key had an artifact already: that one counts.
    Existing,
    /// The token is not the live one.
    Stale,
    /// The pack is condemned.
    Condemned,
    /// The cluster has no first nodes yet: ask again in a moment.
    NotFounded,
    /// The state does not allow the command at all.
    Refused(String),
    /// The key has an artifact of these very bytes.
    Unchanged,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { cluster, nodes } => write!(f, "found {cluster:x} of {}", nodes.len()),
            Self::Join(node) => write!(f, "join {}", node.facts.grpc),
            Self::Leave(node) => write!(f, "leave {node}"),
            Self::Facts { node, .. } => write!(f, "facts of {node}"),
            Self::Acquire { key, node, .. } => write!(f, "acquire {} by {node}", key.short()),
            Self::Publish(p) => write!(f, "publish {} under {}", p.key.short(), p.token),
            Self::Expire { key, token } => write!(f, "expire {} of {}", token, key.short()),
            Self::Fail { key, token, .. } => write!(f, "fail {} of {}", token, key.short()),
            Self::Lift { key, .. } => write!(f, "lift {}", key.short()),
            Self::MarkStored { pack } => write!(f, "stored {}", pack.short()),
            Self::Report { node, .. } => write!(f, "report of {node}"),
            Self::SetPinned { key, pinned } => write!(f, "pin {} {pinned}", key.short()),
            Self::Tombstone { key, .. } => write!(f, "tombstone {}", key.short()),
            Self::Retire { key, epoch } => write!(f, "retire {} of epoch {epoch}", key.short()),
            Self::Condemn { pack } => write!(f, "condemn {}", pack.short()),
            Self::Forget { pack } => write!(f, "forget {}", pack.short()),
            Self::Put { publication: p, .. } => write!(f, "put {}", p.key.short()),
            Self::SetVoter { node, voter } => write!(f, "node {node} may vote: {voter}"),
            Self::SetVoters { voters, .. } => write!(f, "{voters} voters"),
        }
    }
}
