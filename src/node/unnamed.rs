//! Packs that lost their key leave this node, its memory and its disk.
//!
//! That is done at the event. Where it cannot be done then (somebody relies on the pack for a
//! moment, or the disk fails) it is tried again; a pack that arrives after its key was removed,
//! by a fetch that began before, goes too; and where an event may have been missed, over a
//! restart, a snapshot or a lag, all packs here are compared with the index.
//!
//! Invariant: what is removed lost its key by what the index says, is named by no entry, and
//! nobody guards it. A restart drops guards: what a comparison finds stays for
//! [`Pace::promised`] after the start, as it may be a copy that was promised to a publication
//! that is not committed yet. No look-up finds such a pack, so what stays costs space alone.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kiln_cluster::{Index, IndexEvent};
use kiln_proto::Digest;
use tokio::time::{Instant, sleep_until};

use crate::{
    cache::{Removal, Tiers},
    error::Error,
    manager::PUBLICATION,
};

/// Packs that could not be removed yet; with more, all packs are compared instead.
const MOST: usize = 4096;

/// When packs are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between two tries to remove a pack, and between a doubt and the comparison.
    pub(super) again: Duration,
    /// After a start, before a pack is removed that no event told of.
    pub(super) promised: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { again: Duration::from_secs(1), promised: PUBLICATION }
    }
}

/// Removes what nothing names.
pub(super) struct Unnamed {
    index: Index,
    tiers: Arc<Tiers>,
    pace: Pace,
    /// No comparison before.
    earliest: Instant,
    /// When all packs are compared.
    compare: Option<Instant>,
    /// Packs to try again, and when.
    waiting: BTreeSet<Digest>,
    again: Instant,
}

impl Unnamed {
    /// The first comparison is due when copies of before the start are promised to nobody.
    pub(super) fn new(index: Index, tiers: Arc<Tiers>, pace: Pace) -> Self {
        let earliest = Instant::now() + pace.promised;
        let (compare, waiting) = (Some(earliest), BTreeSet::new());
        Self { index, tiers, pace, earliest, compare, waiting, again: earliest }
    }

    /// Returns when [`Unnamed::look`] is due.
    pub(super) async fn due(&self) {
        let again = (!self.waiting.is_empty()).then_some(self.again);
        match self.compare.into_iter().chain(again).min() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Does what is due.
    pub(super) async fn look(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let mut done = Ok(());
        if self.compare.is_some_and(|due| due <= now) {
            self.compare = None;
            match self.unnamed().await {
                Ok(packs) => {
                    for pack in packs {
                        done = self.remove(&pack).await.and(done);
                    }
                }
                Err(e) => {
                    self.doubt();
                    done = Err(e);
                }
            }
        }
        if self.again <= now {
            for pack in std::mem::take(&mut self.waiting) {
                done = self.remove(&pack).await.and(done);
            }
        }
        done
    }

    /// An event may have been missed: all packs are compared soon.
    pub(super) fn doubt(&mut self) {
        let soon = (Instant::now() + self.pace.again).max(self.earliest);
        self.compare = Some(self.compare.map_or(soon, |due| due.min(soon)));
    }

    /// Does what `event` says.
    pub(super) async fn apply(&mut self, event: &IndexEvent) -> Result<(), Error> {
        match event {
            IndexEvent::Tombstoned { pack, .. } | IndexEvent::Replaced { pack, .. } => {
                self.remove(pack).await
            }
            IndexEvent::Reset => {
                self.doubt();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A pack is here now: its key may have been removed while it was under way.
    pub(super) async fn arrived(&mut self, pack: &Digest) -> Result<(), Error> {
        match self.index.pack(pack).await?.is_some_and(|state| !state.named) {
            true => self.remove(pack).await,
            // Of one that the index does not know, the publication is to come.
            false => Ok(()),
        }
    }

    /// Removes a pack unless another key has the very same bytes, which are right for that
    /// one. What cannot be removed now is tried again.
    async fn remove(&mut self, pack: &Digest) -> Result<(), Error> {
        let (index, digest) = (self.index.clone(), *pack);
        let unneeded = move || match index.blocking_pack(&digest) {
            Ok(state) => !state.is_some_and(|state| state.named),
            Err(e) => {
                tracing::warn!(pack = %digest, error = %e, "ask whether a pack is needed");
                false
            }
        };
        match self.tiers.remove_if(pack, unneeded).await {
            Ok(Removal::Removed) => tracing::debug!(%pack, "removed: it lost its key"),
            Ok(Removal::NotHere | Removal::Needed) => {}
            Ok(Removal::Guarded) => self.wait_for(pack),
            Err(e) => {
                self.wait_for(pack);
                return Err(e.into());
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, pack: &Digest) {
        if self.waiting.is_empty() {
            self.again = Instant::now() + self.pace.again;
        }
        match self.waiting.len() < MOST {
            true => drop(self.waiting.insert(*pack)),
            false => self.doubt(),
        }
    }

    /// The packs here that the index knows and no entry names.
    async fn unnamed(&self) -> Result<Vec<Digest>, Error> {
        let (index, tiers) = (self.index.clone(), self.tiers.clone());
        let comparing = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for pack in tiers.digests() {
                if index.blocking_pack(&pack)?.is_some_and(|state| !state.named) {
                    found.push(pack);
                }
            }
            Ok(found)
        });
        comparing.await.map_err(|e| Error::Storage(e.to_string()))?
    }
}

#[cfg(test)]
mod tests;
