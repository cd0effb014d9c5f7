//! The one way in which the index changes: replicated commands and their answers.
//!
//! Invariant: a command carries all that `apply` needs. Whatever comes from a
//! clock, a random source or a manifest's inside was put there by who proposed it.

use std::{fmt, sync::Arc};

use kiln_proto::{
    ArtifactKey, Digest, Failure, Fingerprint, NodeId, SignedManifest, Token, root::SignedStatement,
};
use serde::{Deserialize, Serialize};

use crate::{
    admission::{Admission, NotAdmitted},
    signing::{KeyChange, Stamped},
    tokens::{AuditHead, NewToken, TokenEnd},
    versions,
    wanted::Wanted,
};

/// What a node tells the others about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Advertised address of its gRPC port, which is the clients', `host:port`.
    pub grpc: String,
    /// Advertised address of its members' port, called the transfer port once.
    pub transfer: String,
    /// Advertised address of its HTTP port.
    pub http: String,
    /// The compilers that it can run.
    pub compilers: Vec<Fingerprint>,
    /// Its program's version.
    pub version: String,
}

impl NodeFacts {
    /// Where other members reach it, `host:port`: Raft, membership, bytes and the API. One
    /// of a version before 0.2 takes all of that but the bytes on its gRPC port.
    pub fn members(&self) -> &str {
        match self.transfer.is_empty() || versions::shares_a_port(&self.version) {
            true => &self.grpc,
            false => &self.transfer,
        }
    }
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
    /// Access statistics of one node. Hits count for a key's bytes here: a node of this
    /// version reports them in [`Self::Use`] where every member reads that.
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
    /// Grants the lease of a key whose artifact of `epoch` cannot be reached, though
    /// its bytes may still exist: what is published under it begins a new epoch.
    AcquireAgain { key: ArtifactKey, node: NodeId, request: u64, epoch: u64 },
    /// [`Self::Publish`], which also names the pack's object in the object store and
    /// takes a condemned pack back. `also`: other nodes that have the bytes.
    Commit { publication: Publication, also: Vec<NodeId> },
    /// [`Self::Retire`], unless a place that may have the bytes was not asked.
    RetireAbsent { key: ArtifactKey, epoch: u64, asked: Asked },
    /// Begins a session of ordered writes. The same `nonce` finds its session again.
    OpenSession { node: NodeId, nonce: u64 },
    /// A write that applies at most once, and never after a later one of its session
    /// that superseded it.
    Write(OrderedWrite),
    /// This generation of the pack's object is in the object store.
    StoreObject { pack: Digest, generation: u64 },
    /// [`Self::StoreObject`] of an object that another index named: a backup's.
    AdoptObject { pack: Digest, generation: u64 },
    /// Announces that this generation of the pack's object will be deleted.
    CondemnObject { pack: Digest, generation: u64 },
    /// A condemned generation is deleted.
    ForgetObject { pack: Digest, generation: u64 },
    /// The node is silent, and another one has its address: it is no member of Raft
    /// until its own [`Self::Facts`] say where it is.
    SetAway(NodeId),
    /// The object store has no object of this generation, or not the pack's bytes in it.
    LoseObject { pack: Digest, generation: u64 },
    /// The pieces that a whole waits for, until the lease ends whose token it has.
    Want(Wanted),
    /// [`Self::Commit`] of an artifact that is stitched of others, each with the pack that
    /// it was made with.
    CommitWhole { publication: Publication, also: Vec<NodeId>, pieces: Vec<(ArtifactKey, Digest)> },
    /// How often one node gave each key's artifact to a client. The leader writes the time
    /// in Unix milliseconds, whatever the node says.
    Use { node: NodeId, hits: Vec<(ArtifactKey, u32)>, at_unix_ms: u64 },
    /// What a node signed counts no more.
    Revoke(Revocation),
    /// A token of clients is good. The leader writes the time, whatever the node says.
    IssueToken { token: NewToken, node: NodeId, at_unix_ms: u64 },
    /// A token is good no more. The leader writes the time.
    RevokeToken { id: u64, end: TokenEnd },
    /// How far a node's audit log has come. The leader writes the time.
    NoteAudit { node: NodeId, head: AuditHead },
    /// What joining takes, and who is let in by it.
    Admission(Admission),
    /// What the cluster's root says, as `node` was told it. `apply` judges it.
    RootSays { root: [u8; 32], statement: SignedStatement, node: NodeId },
    /// The keys that nodes sign with.
    Keys(KeyChange),
    /// A publication with the key and the time that its leader noted.
    Stamped(Stamped),
}

/// A signer that is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    pub signer: NodeId,
    /// Whether the artifacts that it signed before stay.
    pub keep: bool,
    pub reason: String,
    /// The node that was asked for it.
    pub by: NodeId,
    /// The leader writes it, whatever the node says.
    pub at_unix_ms: u64,
}

/// Who said that they do not have an artifact's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Nodes that answered, the asking one included.
    pub nodes: Vec<NodeId>,
    /// Whether the object store answered.
    pub object: bool,
}

/// One write of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OrderedWrite {
    pub node: NodeId,
    pub session: Token,
    /// Rises with every write of the session.
    pub sequence: u64,
    /// All writes of the session below this one are over.
    pub floor: u64,
    /// Earlier writes that must not apply any more.
    pub supersedes: Vec<u64>,
    pub change: Change,
}

/// What an ordered write does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Only fences what it supersedes.
    Nothing,
    /// Commits an artifact of a replaceable key. `create`: only where the key has none.
    /// `also`: other nodes that have the bytes.
    Put { publication: Publication, create: bool, also: Vec<NodeId> },
    /// Removes the artifact.
    Remove { key: ArtifactKey, reason: String },
    /// Removes the artifact if it is one that this node put: a later write of this
    /// node was given up, so whatever it put before is out of date.
    Withdraw { key: ArtifactKey },
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
    /// The session that began.
    Session(Token),
    /// The write was applied before (and whether that changed anything), or superseded.
    Repeated(bool),
    /// The session is not the node's present one.
    StaleSession,
    /// Some place that may have the bytes was not asked.
    NotProven,
    /// This piece has no artifact of the pack that the whole was made with.
    NoPiece(ArtifactKey),
    /// How many artifacts went.
    Removed(u64),
    /// The candidate is not let in.
    NotAdmitted(NotAdmitted),
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
            Self::Use { node, hits, .. } => write!(f, "use of {} keys at {node}", hits.len()),
            Self::SetPinned { key, pinned } => write!(f, "pin {} {pinned}", key.short()),
            Self::Tombstone { key, .. } => write!(f, "tombstone {}", key.short()),
            Self::Retire { key, epoch } => write!(f, "retire {} of epoch {epoch}", key.short()),
            Self::Condemn { pack } => write!(f, "condemn {}", pack.short()),
            Self::Forget { pack } => write!(f, "forget {}", pack.short()),
            Self::Put { publication: p, .. } => write!(f, "put {}", p.key.short()),
            Self::SetVoter { node, voter } => write!(f, "node {node} may vote: {voter}"),
            Self::SetVoters { voters, .. } => write!(f, "{voters} voters"),
            Self::AcquireAgain { key, node, epoch, .. } => {
                write!(f, "acquire {} by {node}, instead of epoch {epoch}", key.short())
            }
            Self::Commit { publication: p, .. } => {
                write!(f, "publish {} under {}", p.key.short(), p.token)
            }
            Self::RetireAbsent { key, epoch, .. } => {
                write!(f, "retire {} of epoch {epoch}, absent", key.short())
            }
            Self::OpenSession { node, .. } => write!(f, "open a session of {node}"),
            Self::Write(OrderedWrite { node, sequence, change, .. }) => match change {
                Change::Nothing => write!(f, "write {node}.{sequence}: nothing"),
                Change::Put { publication: p, .. } => {
                    write!(f, "write {node}.{sequence}: put {}", p.key.short())
                }
                Change::Remove { key, .. } => {
                    write!(f, "write {node}.{sequence}: remove {}", key.short())
                }
                Change::Withdraw { key } => {
                    write!(f, "write {node}.{sequence}: withdraw {}", key.short())
                }
            },
            Self::StoreObject { pack, generation } => {
                write!(f, "stored {} of generation {generation}", pack.short())
            }
            Self::AdoptObject { pack, generation } => {
                write!(f, "adopt {} of generation {generation}", pack.short())
            }
            Self::SetAway(node) => write!(f, "node {node} is away"),
            Self::LoseObject { pack, generation } => {
                write!(f, "lost {} of generation {generation}", pack.short())
            }
            Self::CondemnObject { pack, generation } => {
                write!(f, "condemn {} of generation {generation}", pack.short())
            }
            Self::ForgetObject { pack, generation } => {
                write!(f, "forget {} of generation {generation}", pack.short())
            }
            Self::CommitWhole { publication: p, pieces, .. } => {
                write!(f, "publish {} of {} pieces under {}", p.key.short(), pieces.len(), p.token)
            }
            Self::RootSays { root, .. } => write!(f, "root {} says", hex::encode(&root[..4])),
            Self::Keys(change) => change.fmt(f),
            Self::Stamped(stamped) => Self::from(stamped.what.clone()).fmt(f),
            Self::Revoke(r) => write!(f, "revoke the signer {}", r.signer),
            Self::IssueToken { token, .. } => write!(f, "issue the token {:016x}", token.id),
            Self::RevokeToken { id, .. } => write!(f, "revoke the token {id:016x}"),
            Self::NoteAudit { node, head } => {
                write!(f, "audit log of {node} at {}", head.sequence)
            }
            Self::Admission(change) => change.fmt(f),
            Self::Want(w) => write!(f, "want {} pieces of {}", w.pieces.len(), w.whole.short()),
        }
    }
}
