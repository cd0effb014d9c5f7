//! What the servers ask of the node that they serve.
//!
//! Invariant: a server sends only what a [`Provider`] gave it, and a provider
//! gives only verified [`Blob`]s.

use async_trait::async_trait;
use kiln_proto::{ArtifactKey, Digest, NodeId, SignedManifest, pb};

use crate::{access::Shown, cache::Blob};

/// The node behind the byte paths.
#[async_trait]
pub trait Provider: Send + Sync {
    /// A blob that this node has itself, or `None`; never asks another node.
    async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, Refusal>;

    /// An artifact of the tenant `namespace`, from wherever this node can get it without
    /// compiling, and where it came from, for who shows `asks`. Empty: the node's own tenant. `look`: it is not
    /// used, and counts as no hit.
    async fn artifact(
        &self,
        asks: &Shown,
        key: &ArtifactKey,
        namespace: &str,
        look: bool,
    ) -> Result<(SignedManifest, Blob, pb::Tier), Refusal>;

    /// Whether who shows this may read whatever there is.
    async fn may_read_all(&self, asks: &Shown) -> Result<(), Refusal>;

    /// This node's id.
    fn node(&self) -> NodeId;

    /// Fetches a blob of `size` bytes from another node; it is durable here on return.
    async fn keep(&self, digest: &Digest, size: u64, from: PeerAddress<'_>) -> Result<(), Refusal>;
}

/// A node, and where it takes requests for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress<'a> {
    /// Who is meant: another one that answers there says so.
    pub node: NodeId,
    /// `host:port` of its transfer port.
    pub address: &'a str,
}

/// Why a node does not give what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no such thing: ask another.
    #[error("not found")]
    NotFound,
    /// It has too much to do: ask another, or later.
    #[error("busy")]
    Busy,
    /// Another node than the one that was meant.
    #[error("this is another node")]
    WrongNode,
    /// Who asks may not.
    #[error("{0}")]
    Denied(String),
    /// It will never answer this request.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// It could not: a disk that fails, no memory. Ask another.
    #[error("failed: {0}")]
    Failed(String),
}

/// Longest explanation that travels, in bytes.
const LONGEST_MESSAGE: usize = 4096;

impl From<Refusal> for pb::TransferResponse {
    fn from(refusal: Refusal) -> Self {
        use pb::TransferCode as Code;
        let (code, mut message) = match refusal {
            Refusal::NotFound => (Code::NotFound, String::new()),
            Refusal::Busy => (Code::Busy, String::new()),
            Refusal::WrongNode => (Code::WrongNode, String::new()),
            Refusal::Denied(why) => (Code::Denied, why),
            Refusal::BadRequest(why) => (Code::BadRequest, why),
            Refusal::Failed(why) => (Code::Failed, why),
        };
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        Self { code: code.into(), message, ..Self::default() }
    }
}
