//! Bringing an artifact's bytes to this node: own tiers, then holders, then L3.
//!
//! Invariant: a blob returned from here hashes to what the signed manifest
//! says; a copy that does not is counted, left, and another one is tried.

use std::{collections::BTreeSet, sync::Arc};

use kiln_cluster::{Entry, Index};
use kiln_proto::{Digest, Manifest, NodeId, pb};

use super::Counters;
use crate::{
    cache::{Blob, BlobError, BlobWriter, TierError, TierName, Tiers},
    error::Error,
    transfer::PeerClient,
};

/// Where bytes came from, as clients are told.
pub type Origin = pb::Tier;

/// Reads packs from wherever they are.
#[derive(Clone)]
pub struct Fetcher {
    /// This node: never its own peer.
    pub node: NodeId,
    /// Who holds what, and at which address.
    pub index: Index,
    /// L1, L2, L3.
    pub tiers: Arc<Tiers>,
    /// Connections to peers.
    pub peers: Arc<PeerClient>,
    /// Where bad copies are counted.
    pub counters: Arc<Counters>,
}

/// A remote place that may have the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Peer(NodeId, String),
    Object,
}

impl Source {
    const fn origin(&self) -> Origin {
        match self {
            Self::Peer(..) => Origin::Peer,
            Self::Object => Origin::Object,
        }
    }
}

impl Fetcher {
    /// The pack from L1 or L2, `None` where a remote one is needed.
    pub async fn local(&self, pack: &Digest) -> Result<Option<(Blob, Origin)>, Error> {
        match self.tiers.get_local(pack).await {
            Ok(found) => Ok(found.map(|(blob, tier)| (blob, origin(tier)))),
            Err(TierError::Corrupt { .. }) => {
                self.counters.corrupt();
                tracing::warn!(%pack, "a stored copy was corrupt and is quarantined: refetch");
                Ok(None)
            }
            Err(e) => {
                // A broken disk must not keep the node from serving what peers have.
                tracing::warn!(%pack, error = %e, "local tiers cannot be read: go on without");
                Ok(None)
            }
        }
    }

    /// The pack from a holder or L3, resumed from the next source when one
    /// breaks off. `None`: nobody who can be reached has it.
    pub async fn remote(
        &self,
        entry: &Entry,
        manifest: &Manifest,
    ) -> Result<Option<(Blob, Origin)>, Error> {
        if manifest.pack_size == 0 {
            // Nothing to fetch, and so no source that could prove to have it.
            let nothing = BlobWriter::with_size(0)?.finish_as(manifest.pack_digest)?;
            return Ok(Some((nothing, Origin::Memory)));
        }
        let mut excluded: BTreeSet<usize> = BTreeSet::new();
        let sources = self.sources(entry);
        while excluded.len() < sources.len() {
            let mut writer = BlobWriter::with_size(manifest.pack_size)?;
            let mut used = Vec::new();
            for (at, source) in sources.iter().enumerate() {
                if excluded.contains(&at) {
                    continue;
                }
                let before = writer.filled();
                let complete = self.fill(source, &manifest.pack_digest, &mut writer).await;
                if writer.filled() > before {
                    used.push(at);
                }
                match complete {
                    Ok(()) => break,
                    Err(why) => {
                        tracing::info!(
                            ?source,
                            why,
                            filled = writer.filled(),
                            "try the next source"
                        );
                        if writer.filled() == before {
                            excluded.insert(at);
                        }
                    }
                }
            }
            let Some(&last) = used.last() else { return Ok(None) };
            match writer.finish_as(manifest.pack_digest) {
                Ok(blob) => return Ok(Some((blob, sources[last].origin()))),
                Err(BlobError::Length { .. }) => {
                    // All sources broke off in the middle: none is left to resume from.
                    excluded.extend(used);
                }
                Err(BlobError::Corrupt { .. }) => {
                    metrics::counter!("kiln_remote_corrupt_total").increment(1);
                    self.counters.corrupt();
                    tracing::warn!(pack = %manifest.pack_digest, sources = ?used.iter()
                        .map(|at| &sources[*at]).collect::<Vec<_>>(), "C002: bytes do not match");
                    // With several contributors the guilty one is unknown: drop the
                    // last and let each of the others prove itself from the start.
                    excluded.insert(last);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    fn sources(&self, entry: &Entry) -> Vec<Source> {
        let peers = entry.holders.iter().filter(|id| **id != self.node);
        let mut sources: Vec<_> = peers
            .filter_map(|id| Some(Source::Peer(*id, self.index.node(*id)?.facts.transfer)))
            .collect();
        if self.tiers.object().is_some() {
            sources.push(Source::Object);
        }
        sources
    }

    /// Fills the rest of `writer` from one source.
    async fn fill(
        &self,
        source: &Source,
        pack: &Digest,
        writer: &mut BlobWriter,
    ) -> Result<(), String> {
        match source {
            Source::Peer(_, address) => {
                self.peers.fetch_into(address, pack, writer).await.map_err(|e| e.to_string())
            }
            Source::Object => match self.tiers.object() {
                None => Err("no object store".into()),
                Some(object) => match object.fill(pack, writer).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err("not in the object store".into()),
                    Err(e) => Err(e.to_string()),
                },
            },
        }
    }
}

const fn origin(tier: TierName) -> Origin {
    match tier {
        TierName::Memory => Origin::Memory,
        TierName::Disk => Origin::Disk,
        TierName::Object => Origin::Object,
    }
}
