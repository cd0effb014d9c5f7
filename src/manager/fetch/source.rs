//! Places that may have a pack, and what each said.
//!
//! Invariant: only a place that answered for itself proves that it does not have the
//! bytes; silence, a refusal and another node's answer prove nothing.

use std::{fmt, sync::Arc, time::Instant};

use kiln_cluster::Asked;
use kiln_proto::{Digest, NodeId, pb};

use super::backoff::Backoff;
use crate::{
    cache::{BlobWriter, ObjectName, TierError, Tiers},
    transfer::{PeerAddress, PeerClient, TransferError},
};

/// Where bytes came from, as clients are told.
pub type Origin = pb::Tier;

/// A remote place that may have the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A node, and where it takes requests for bytes.
    Peer(NodeId, String),
    /// A node whose address is not known.
    Unknown(NodeId),
    /// The object store.
    Object,
}

/// Why a place did not give the bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It does not have them.
    #[error("does not have it")]
    Absent,
    /// The peer did not give them.
    #[error(transparent)]
    Peer(TransferError),
    /// The object store did not.
    #[error(transparent)]
    Object(TierError),
    /// It failed a moment ago, and is not asked again so soon.
    #[error("did not answer a moment ago")]
    Paused,
    /// Its address is not known.
    #[error("its address is not known")]
    NoAddress,
    /// It sent other bytes than it should have: that copy is none.
    #[error("its copy is corrupt")]
    Corrupt,
}

impl Source {
    pub(super) const fn origin(&self) -> Origin {
        match self {
            Self::Peer(..) | Self::Unknown(_) => Origin::Peer,
            Self::Object => Origin::Object,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(node, address) => write!(f, "node {node} at {address}"),
            Self::Unknown(node) => write!(f, "node {node}"),
            Self::Object => write!(f, "the object store"),
        }
    }
}

impl Refused {
    /// Whether the place has not got the bytes, rather than not given them.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(self, Self::Absent | Self::Corrupt)
    }
}

/// What all places said that did not give the bytes.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<(Source, Refused)>);

impl Refusals {
    /// The last word of `source`.
    pub(super) fn add(&mut self, source: &Source, refused: Refused) {
        self.0.retain(|(known, _)| known != source);
        self.0.push((source.clone(), refused));
    }

    /// Who does not have the bytes.
    pub(super) fn absent(&self) -> Asked {
        let mut asked = Asked::default();
        for (source, refused) in self.0.iter().filter(|(_, refused)| refused.is_absence()) {
            debug_assert!(!matches!(refused, Refused::Paused));
            match source {
                Source::Peer(node, _) | Source::Unknown(node) => asked.nodes.push(*node),
                Source::Object => asked.object = true,
            }
        }
        asked
    }

    /// The places that may have them and did not give them, for people.
    pub(super) fn unreachable(&self) -> Option<String> {
        let refusals = self.0.iter().filter(|(_, refused)| !refused.is_absence());
        let text: Vec<String> = refusals.map(|(who, why)| format!("{who}: {why}")).collect();
        (!text.is_empty()).then(|| text.join("; "))
    }
}

/// The remote places, and which of them failed lately.
pub(super) struct Places {
    tiers: Arc<Tiers>,
    peers: Arc<PeerClient>,
    backoff: Backoff,
}

impl Places {
    pub(super) fn new(tiers: Arc<Tiers>, peers: Arc<PeerClient>) -> Self {
        Self { tiers, peers, backoff: Backoff::default() }
    }

    /// Fills the rest of `writer` from one place.
    pub(super) async fn fill(
        &self,
        source: &Source,
        pack: &Digest,
        generation: u64,
        writer: &mut BlobWriter,
    ) -> Result<(), Refused> {
        match source {
            Source::Unknown(_) => Err(Refused::NoAddress),
            Source::Peer(node, address) => {
                if self.backoff.is_paused(address, Instant::now()) {
                    return Err(Refused::Paused);
                }
                let peer = PeerAddress { node: *node, address };
                let filled = self.peers.fetch_into(peer, pack, writer).await;
                use TransferError::{Broken, Protocol, Unreachable};
                match &filled {
                    Err(Unreachable { .. } | Broken { .. } | Protocol(_)) => {
                        self.backoff.failed(address, Instant::now());
                    }
                    _ => self.backoff.answered(address),
                }
                filled.map_err(|e| match e {
                    TransferError::NotFound => Refused::Absent,
                    other => Refused::Peer(other),
                })
            }
            Source::Object => {
                let Some(object) = self.tiers.object() else { return Err(Refused::Absent) };
                let name = ObjectName { pack: *pack, generation };
                match object.fill(&name, writer).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Refused::Absent),
                    Err(TierError::Corrupt { .. }) => Err(Refused::Corrupt),
                    Err(e) => Err(Refused::Object(e)),
                }
            }
        }
    }
}
