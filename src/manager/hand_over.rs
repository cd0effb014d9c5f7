//! Handing over: what a node that leaves has, and no other place, goes to another place.
//!
//! Invariant: a pack counts as handed over once the index knows that the object store has
//! it, or names so many other members as `publish.copies` wants (as there are) that
//! said, after this node's gate was closed, that they keep it. A member that leaves itself
//! says that of nothing: so of two nodes that leave at once none relies on the other.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures::{StreamExt, stream};
use kiln_proto::{Digest, NodeId};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Copies, Manager};
use crate::{cache::Health, error::Error, transfer::PeerAddress};

/// Between two looks at what is left to do.
const TICK: Duration = Duration::from_millis(100);
/// After nobody took anything.
const PAUSE: Duration = Duration::from_secs(1);
/// What one look may take where the time is over already.
const LOOK: Duration = Duration::from_secs(3);
/// Copies that are made at a time.
const AT_ONCE: usize = 8;
/// What one copy may take, and how much more for each so many bytes.
const COPYING: (Duration, u64) = (Duration::from_secs(5), 4 << 20);
/// Packs that are told of in one command.
const BATCH: usize = 4096;

/// What a node has that no other place took over, and what it is about to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnlyHere {
    /// Packs that the index names.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Publications under way, and copies of other nodes' publications.
    pub publications: u64,
}

impl OnlyHere {
    /// Whether the node may go.
    pub fn is_nothing(&self) -> bool {
        self.packs == 0 && self.publications == 0
    }
}

/// A pack that needs another place.
struct AtRisk {
    pack: Digest,
    size: u64,
    /// Other members that are believed to have it.
    holders: Vec<NodeId>,
}

/// The members that keep each pack, by their own word.
type Keepers = HashMap<Digest, BTreeSet<NodeId>>;

impl Manager {
    /// Hands over, with the gate closed, until nothing is only here or `until` is over;
    /// `tell` hears what is left. Publications have half of the time: then the gate is
    /// shut. The object store has the first half too, where it works.
    pub async fn hand_over(
        &self,
        mut until: watch::Receiver<Instant>,
        tell: impl Fn(OnlyHere),
    ) -> Result<OnlyHere, Error> {
        let began = Instant::now();
        let (mut keepers, mut known, mut hurried) = (Keepers::new(), None, false);
        loop {
            let end = *until.borrow_and_update();
            let half = began + end.saturating_duration_since(began) / 2;
            if Instant::now() >= half {
                self.gate.shut();
            }
            // Before the look: what ends after it is looked for once more.
            let publications = self.gate.busy();
            let look = self.at_risk(known.take(), &keepers);
            let found = timeout_at(end.max(Instant::now() + LOOK), look).await;
            let found = found.unwrap_or_else(|_| {
                Err(Error::Unavailable("what this node has could not be looked through".into()))
            });
            let at_risk = match found {
                Ok(at_risk) => at_risk,
                Err(e) if Instant::now() >= end => return Err(e),
                Err(e) => {
                    tracing::debug!(error = %e, "what is only here is not known yet");
                    sleep(TICK).await;
                    continue;
                }
            };
            let bytes = at_risk.iter().map(|risk| risk.size).sum();
            let only_here = OnlyHere { packs: at_risk.len() as u64, bytes, publications };
            tell(only_here);
            if only_here.is_nothing() || Instant::now() >= end {
                return Ok(only_here);
            }
            let mut pause = TICK;
            if !at_risk.is_empty() {
                if !std::mem::replace(&mut hurried, true) {
                    for risk in &at_risk {
                        self.tiers.ensure_upload(&risk.pack).await;
                    }
                    self.tiers.hurry_uploads();
                }
                let stored_soon = self.tiers.object().is_some_and(|o| o.health() == Health::Up);
                if !stored_soon || Instant::now() >= half {
                    match self.copy_all(&at_risk, &mut keepers, end).await {
                        // Perhaps the object store is back before any of them has room.
                        0 => (hurried, pause) = (false, PAUSE),
                        _ => pause = Duration::ZERO,
                    }
                }
            }
            if publications == 0 {
                // Nothing new comes: only these need another look.
                known = Some(at_risk.into_iter().map(|risk| (risk.pack, risk.size)).collect());
            }
            tokio::select! {
                () = sleep(pause) => {}
                _ = until.changed() => {}
            }
        }
    }

    /// Whether there is no other member.
    pub fn is_alone(&self) -> bool {
        self.index.nodes().iter().all(|(id, _)| *id == self.identity.node)
    }

    /// Gives back all leases that this node holds.
    pub async fn give_leases_back(&self) {
        self.index.give_leases_back().await;
    }

    /// Of `known`, or of all that is on this node's disk, what needs another place.
    async fn at_risk(
        &self,
        known: Option<Vec<(Digest, u64)>>,
        keepers: &Keepers,
    ) -> Result<Vec<AtRisk>, Error> {
        let packs = match known {
            Some(known) => known,
            None => {
                // Files that are being verified may turn out to be here.
                self.tiers.disk().swept().await;
                self.index.barrier().await?;
                self.tiers.contents()
            }
        };
        let wanted = self.wanted();
        let mut found = Vec::new();
        for (pack, size) in packs {
            let kept = keepers.get(&pack).is_some_and(|keepers| keepers.len() >= wanted);
            // No bytes are nowhere, and a copy that is gone by now is none to hand over.
            let here = size > 0 && self.tiers.holds(&pack);
            if here
                && !kept
                && let Some(holders) = self.index.needed_copies(&pack).await?
            {
                found.push(AtRisk { pack, size, holders });
            }
        }
        Ok(found)
    }

    /// Other members that are to keep a pack.
    fn wanted(&self) -> usize {
        let wanted = match self.settings.copies {
            Copies::Nodes(nodes) => nodes.get(),
            Copies::Object => 1,
        };
        wanted.min(self.index.nodes().len().saturating_sub(1)).max(1)
    }

    /// Has other members keep each of `packs`; how many acknowledgements there were that
    /// the index knows of.
    async fn copy_all(&self, packs: &[AtRisk], keepers: &mut Keepers, end: Instant) -> usize {
        let wanted = self.wanted();
        // Who did not answer is not asked again in this round.
        let silent: Mutex<BTreeSet<NodeId>> = Mutex::default();
        let copied: Mutex<Vec<(NodeId, Digest, bool)>> = Mutex::default();
        let known = &*keepers;
        let copying = stream::iter(packs).for_each_concurrent(AT_ONCE, |risk| {
            let (silent, copied) = (&silent, &copied);
            async move {
                let before = known.get(&risk.pack).cloned().unwrap_or_default();
                let (own, mut others) = self.others_for(&risk.pack);
                // Who has it needs no more than a look.
                others.sort_by_key(|(id, _)| !risk.holders.contains(id));
                others.retain(|(id, _)| !before.contains(id));
                let from = PeerAddress { node: self.identity.node, address: &own };
                let mut missing = wanted.saturating_sub(before.len());
                for (id, node) in &others {
                    if missing == 0 {
                        return;
                    }
                    if silent.lock().contains(id) {
                        continue;
                    }
                    let to = PeerAddress { node: *id, address: &node.facts.transfer };
                    let (least, each) = COPYING;
                    let patience = least + Duration::from_secs(risk.size / each);
                    let keeping = self.fetcher.keep_at(to, &risk.pack, risk.size, from);
                    match timeout(patience, keeping).await {
                        Ok(Ok(())) => {
                            missing -= 1;
                            copied.lock().push((*id, risk.pack, risk.holders.contains(id)));
                        }
                        Ok(Err(e)) => {
                            tracing::debug!(node = id, pack = %risk.pack, error = %e, "not kept");
                            if !e.is_refusal() {
                                silent.lock().insert(*id);
                            }
                        }
                        Err(_) => drop(silent.lock().insert(*id)),
                    }
                }
            }
        });
        // What was kept until then counts.
        drop(timeout_at(end, copying).await);
        self.vouch_for(copied.into_inner(), keepers).await
    }

    /// Tells the index who keeps what, where it does not know; how much it knows then.
    async fn vouch_for(&self, copied: Vec<(NodeId, Digest, bool)>, keepers: &mut Keepers) -> usize {
        let mut by_node: HashMap<NodeId, Vec<Digest>> = HashMap::new();
        let mut told = 0;
        for (node, pack, known) in copied {
            if known {
                keepers.entry(pack).or_default().insert(node);
                told += 1;
            } else {
                by_node.entry(node).or_default().push(pack);
            }
        }
        for (node, packs) in by_node {
            for batch in packs.chunks(BATCH) {
                match self.index.vouch(node, batch.to_vec()).await {
                    Ok(()) => {
                        told += batch.len();
                        for pack in batch {
                            keepers.entry(*pack).or_default().insert(node);
                        }
                    }
                    Err(e) => tracing::warn!(node, error = %e, "its copies are not registered"),
                }
            }
        }
        told
    }
}
