//! Fetching an artifact's bytes: own tiers, then holders, then L3.
//!
//! Invariant: a blob returned from here hashes to what the signed manifest says; a
//! copy that does not is counted, left, and another one is tried. Bytes are called
//! absent only after every place that may have them said that it does not; while one
//! place does not answer, they are unreachable. A digest is fetched once at a time,
//! however many ask for it.

mod backoff;
mod source;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kiln_cluster::{Asked, Entry, Index};
use kiln_proto::{Digest, Manifest, NodeId};
use tokio::{sync::broadcast::error::RecvError, time::timeout};
use tracing::Instrument;

pub use self::source::Origin;
use self::source::{Places, Refusals, Refused, Source};
use super::{Counters, SingleFlight, hints};
use crate::{
    cache::{
        Blob, BlobError, BlobWriter, Guard, Hints, Kept, Presence, TierError, TierName, Tiers,
    },
    error::Error,
    gate::{Gate, Inside, Writing},
    step,
    transfer::{PeerAddress, PeerClient, TransferError},
};

/// Longest that one fetch may take: a peer that keeps moving bytes is slow, not dead.
const LONGEST: Duration = Duration::from_secs(600);
/// What a publication may take from its copies to its commit.
pub(crate) const PUBLICATION: Duration = Duration::from_secs(120);
/// From this many holders on the record may name only some of them.
const MANY_HOLDERS: usize = 32;

/// What became of a fetch.
#[derive(Debug, Clone)]
pub enum Fetched {
    /// The bytes, verified.
    Here(Blob, Origin),
    /// All places that may have them said that they do not.
    Absent(Asked),
    /// Some place that may have them does not answer; this says which, and why.
    Unreachable(String),
}

/// Reads packs from wherever they are.
pub struct Fetcher {
    node: NodeId,
    index: Index,
    tiers: Arc<Tiers>,
    peers: Arc<PeerClient>,
    gate: Gate,
    counters: Arc<Counters>,
    places: Places,
    running: SingleFlight<Digest, Option<Result<Fetched, Error>>>,
}

impl Fetcher {
    /// A fetcher for `node`, which is never its own peer.
    pub fn new(
        node: NodeId,
        index: Index,
        tiers: Arc<Tiers>,
        peers: Arc<PeerClient>,
        gate: Gate,
        counters: Arc<Counters>,
    ) -> Self {
        let places = Places::new(tiers.clone(), peers.clone());
        let running = SingleFlight::default();
        Self { node, index, tiers, peers, gate, counters, places, running }
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The pack of `entry`, whose manifest was verified; kept in the local tiers.
    pub async fn fetch(
        self: &Arc<Self>,
        entry: &Entry,
        manifest: &Arc<Manifest>,
    ) -> Result<Fetched, Error> {
        let pack = manifest.pack_digest;
        if let Some((blob, origin)) = self.local(&pack).await {
            return Ok(Fetched::Here(blob, origin));
        }
        let (fetcher, entry, manifest) = (self.clone(), entry.clone(), manifest.clone());
        let (mut fetch, _) = self.running.join(pack, None, |_| async move {
            let fetching = fetcher.remote(&entry, &manifest).instrument(step!("fetch"));
            let fetched = timeout(LONGEST, fetching).await;
            let slow = || Ok(Fetched::Unreachable(format!("not fetched within {LONGEST:?}")));
            Some(fetched.unwrap_or_else(|_| slow()))
        });
        let fetched = fetch.wait_for(Option::is_some).await;
        match fetched.ok().and_then(|fetched| fetched.clone()) {
            Some(fetched) => fetched,
            None => Err(Error::Storage("a fetch ended without a result".into())),
        }
    }

    /// The pack from L1 or L2, `None` where a remote one is needed.
    pub async fn local(&self, pack: &Digest) -> Option<(Blob, Origin)> {
        match self.tiers.get_local(pack).await {
            Ok(found) => found.map(|(blob, tier)| (blob, origin(tier))),
            Err(TierError::Corrupt { .. }) => {
                self.counters.corrupt();
                tracing::warn!(%pack, "a stored copy was corrupt and is quarantined: refetch");
                None
            }
            Err(e) => {
                // A broken disk must not keep the node from serving what peers have.
                tracing::warn!(%pack, error = %e, "local tiers cannot be read: go on without");
                None
            }
        }
    }

    /// The pack from a holder or L3, resumed from the next source when one breaks off;
    /// kept here. An object that is not what the index says is reported, whatever else
    /// comes of the fetch.
    async fn remote(&self, entry: &Entry, manifest: &Manifest) -> Result<Fetched, Error> {
        let (pack, size) = (manifest.pack_digest, manifest.pack_size);
        if size == 0 {
            // Nothing to fetch, and so no source that could prove to have it.
            let nothing = BlobWriter::within(self.tiers.budget(), 0).await?.finish_as(pack)?;
            return Ok(Fetched::Here(nothing, Origin::Memory));
        }
        let sources = self.sources(entry);
        let mut excluded: BTreeSet<usize> = BTreeSet::new();
        let mut refusals = Refusals::default();
        let mut doubtful = false;
        while excluded.len() < sources.len() {
            let mut writer = BlobWriter::within(self.tiers.budget(), size).await?;
            let mut used = Vec::new();
            for (at, source) in sources.iter().enumerate() {
                if excluded.contains(&at) {
                    continue;
                }
                let before = writer.filled();
                let filled = self.places.fill(source, &pack, entry.generation, &mut writer).await;
                if writer.filled() > before {
                    used.push(at);
                }
                let Err(why) = filled else { break };
                tracing::info!(%source, %why, filled = writer.filled(), "try the next source");
                if writer.filled() == before {
                    excluded.insert(at);
                }
                refusals.add(source, why);
            }
            let Some(&last) = used.last() else { break };
            match writer.finish_as(pack) {
                Ok(blob) => {
                    // For the next reader: nothing was promised.
                    drop(self.tiers.insert(&blob, hints(manifest, entry.pinned)).await);
                    self.report_object(entry, doubtful || refusals.absent().object);
                    return Ok(Fetched::Here(blob, sources[last].origin()));
                }
                Err(BlobError::Length { .. }) => {
                    // All sources broke off in the middle: none is left to resume from.
                    excluded.extend(used);
                }
                Err(BlobError::Corrupt { .. }) => {
                    metrics::counter!("kiln_remote_corrupt_total").increment(1);
                    self.counters.corrupt();
                    let from: Vec<_> = used.iter().map(|at| sources[*at].to_string()).collect();
                    tracing::warn!(%pack, ?from, "C002: bytes do not match");
                    // With several contributors the guilty one is unknown: drop the
                    // last and let each of the others prove itself from the start.
                    excluded.insert(last);
                    doubtful |= matches!(sources[last], Source::Object);
                    if used.len() == 1 {
                        refusals.add(&sources[last], Refused::Corrupt);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.report_object(entry, doubtful || refusals.absent().object);
        Ok(match refusals.unreachable() {
            Some(why) => Fetched::Unreachable(why),
            None if entry.stored && self.tiers.object().is_none() => Fetched::Unreachable(
                "the index says that it is in the object store, and this node has none: set \
                 object.url (--object) to the store that the cluster, or the cluster of its \
                 backup, uploads to"
                    .into(),
            ),
            None => {
                let mut asked = refusals.absent();
                if self.tiers.presence(&pack) == Presence::Absent {
                    asked.nodes.push(self.node);
                }
                asked.object |= self.tiers.object().is_none() && !entry.stored;
                Fetched::Absent(asked)
            }
        })
    }

    /// Tells the cluster, without waiting for it, of an object that is `lost` though the
    /// index calls it stored: a holder of the bytes uploads it again, when it is back.
    fn report_object(&self, entry: &Entry, lost: bool) {
        if !lost || !entry.stored {
            return;
        }
        let (index, pack, generation) = (self.index.clone(), entry.pack, entry.generation);
        tokio::spawn(async move {
            match index.mark_lost(&pack, generation).await {
                Ok(false) => {}
                Ok(true) => tracing::warn!(%pack, "its object is missing or corrupt"),
                // The next reader tells it again.
                Err(e) => tracing::warn!(%pack, error = %e, "a lost object is not reported"),
            }
        });
    }

    /// The places that may have the pack, nearest first; nodes ask them in orders of
    /// their own.
    fn sources(&self, entry: &Entry) -> Vec<Source> {
        let mut holders = entry.holders.clone();
        if holders.len() >= MANY_HOLDERS {
            let known: BTreeSet<NodeId> = holders.iter().copied().collect();
            let others = self.index.nodes().into_iter().map(|(id, _)| id);
            holders.extend(others.filter(|id| !known.contains(id)));
        }
        holders.retain(|id| *id != self.node);
        holders.sort_by_cached_key(|id| {
            let mut hasher = kiln_proto::Hasher::new();
            hasher.update(&self.node.to_le_bytes()).update(&id.to_le_bytes());
            *hasher.update(entry.pack.as_bytes()).finalize().as_bytes()
        });
        let source = |id| match self.index.node(id) {
            Some(node) if !node.facts.transfer.is_empty() => Source::Peer(id, node.facts.transfer),
            _ => Source::Unknown(id),
        };
        let mut sources: Vec<_> = holders.into_iter().map(source).collect();
        if self.tiers.object().is_some() {
            sources.push(Source::Object);
        }
        sources
    }

    /// Fills `writer` with bytes that one node has; they are kept nowhere.
    pub async fn fetch_into(
        &self,
        from: PeerAddress<'_>,
        digest: &Digest,
        writer: &mut BlobWriter,
    ) -> Result<(), TransferError> {
        self.peers.fetch_into(from, digest, writer).await
    }

    /// Makes `to` fetch and keep `pack` of `size` bytes, which this node has.
    pub async fn keep_at(
        &self,
        to: PeerAddress<'_>,
        pack: &Digest,
        size: u64,
        from: PeerAddress<'_>,
    ) -> Result<(), TransferError> {
        self.peers.keep(to, pack, size, from).await
    }

    /// Takes a copy of `size` bytes from `from`; durable on this node's disk on return. From
    /// then on this node answers for it: one that leaves takes none, and hands over what it
    /// took.
    pub async fn keep(&self, pack: &Digest, size: u64, from: PeerAddress<'_>) -> Result<(), Error> {
        let inside = self.gate.enter()?;
        let writing = inside.write()?;
        let known = self.local(pack).await.map(|(blob, _)| blob);
        let blob = match known {
            Some(blob) => blob,
            None => {
                let mut writer = BlobWriter::within(self.tiers.budget(), size).await?;
                let fetched = self.peers.fetch_into(from, pack, &mut writer).await;
                fetched.map_err(|e| Error::Unreachable(format!("node {}: {e}", from.node)))?;
                writer.finish_as(*pack)?
            }
        };
        let inserted = self.tiers.insert(&blob, Hints::default()).await;
        match inserted.kept {
            Kept::Disk => {
                // What is handed over is uploaded from here now, and evicted last until then.
                if self.index.needed_copies(pack).await?.is_some() {
                    self.tiers.ensure_upload(pack).await;
                }
                let held = (inserted.guard, inside, writing);
                tokio::spawn(guard_until_named(held, self.index.clone(), *pack));
                Ok(())
            }
            Kept::Memory(why) | Kept::Nowhere(why) => Err(Error::NotStored(why.to_string())),
        }
    }
}

/// Holds on to a copy until the publication that it was made for is applied here.
async fn guard_until_named(guard: (Guard, Inside, Writing), index: Index, pack: Digest) {
    let mut events = index.events();
    let named = async {
        loop {
            match index.pack(&pack).await {
                Ok(Some(state)) if state.named => return,
                Ok(_) => {}
                Err(_) => return,
            }
            // An error is a lagging subscriber, who looks again, or the end of the node.
            if let Err(RecvError::Closed) = events.recv().await {
                return;
            }
        }
    };
    drop(timeout(PUBLICATION, named).await);
    drop(guard);
}

const fn origin(tier: TierName) -> Origin {
    match tier {
        TierName::Memory => Origin::Memory,
        TierName::Disk => Origin::Disk,
        TierName::Object => Origin::Object,
    }
}
