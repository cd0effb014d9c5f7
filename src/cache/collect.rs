//! Garbage collection of L3.
//!
//! Invariant: an object is deleted only when its generation can never become
//! current again: the index committed that it is condemned, and a grace period
//! passed since this collector first saw that; or a later generation took its
//! place. A pack that is published again gets a new generation, so a collector
//! that is paused anywhere, for however long, deletes nothing that is needed. One
//! that restarts waits the grace period again: late is safe, early is not.
//!
//! ```text
//! current, referenced                                -> stays
//! current or unknown, not referenced, old            -> condemn
//! condemned -> (grace) -> delete -> forget
//! an earlier generation than the current one, old    -> delete
//! ```

mod packs;
mod step;

use std::{
    collections::HashMap,
    pin::pin,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde::{Deserialize, Serialize};

pub use self::packs::{PackIndex, PackState};
use self::step::{Step, Taken, take};
use super::{Clock, ObjectName, ObjectTier, StoredPack, TierError, TierName, meter};

/// Condemned packs that are remembered between passes; more wait for the next.
const MOST_CONDEMNED: usize = 100_000;
/// Listed objects that the index is asked about at a time.
const BATCH: usize = 1000;
/// Objects that are condemned or deleted at a time.
const AT_ONCE: usize = 64;

/// How patient the collector is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectSettings {
    /// Age at which an object to which nothing refers is an orphan: longer than an
    /// upload and its commit can take, clocks' differences included.
    #[serde(with = "humantime_serde")]
    pub orphan_after: Duration,
    /// From condemnation to deletion: longer than a reader holds on to an answer
    /// of the index.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Between two passes.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
}

impl Default for CollectSettings {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { orphan_after: 24 * hour, grace: hour, every: hour / 6 }
    }
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects in the store.
    pub listed: u64,
    /// Of these, referenced.
    pub referenced: u64,
    /// Not referenced, but young enough for their commit to be under way.
    pub young: u64,
    /// Condemned in this pass.
    pub condemned: u64,
    /// Condemned and within the grace period.
    pub waiting: u64,
    /// Deleted.
    pub deleted: u64,
    /// Bytes of these.
    pub bytes_freed: u64,
    /// Taken back: referred to again after their condemnation.
    pub reprieved: u64,
    /// Condemnations that the index forgot because the object is gone.
    pub forgotten: u64,
    /// Packs left for the next pass because the index or the store failed.
    pub failed: u64,
}

/// Removes from L3 what nothing refers to. One node at a time runs it: two would
/// do no harm, only the same work.
pub struct Collector {
    settings: CollectSettings,
    /// When this collector first saw a generation condemned.
    seen: HashMap<ObjectName, Instant>,
}

impl Collector {
    /// A collector that has seen nothing condemned yet.
    pub fn new(settings: CollectSettings) -> Self {
        Self { settings, seen: HashMap::new() }
    }

    /// One pass over the store, at `now`; `clock` is compared with the store's.
    pub async fn pass(
        &mut self,
        object: &ObjectTier,
        index: &dyn PackIndex,
        clock: &dyn Clock,
        now: Instant,
    ) -> Result<Collected, TierError> {
        let done = Collected::default();
        let still_condemned = HashMap::new();
        let mut pass = Pass { collector: self, object, index, now, done, still_condemned };
        let mut batches = pin!(object.list().chunks(BATCH));
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
            pass.done.listed += batch.len() as u64;
            pass.judge_all(&batch, clock.now_ms()).await;
        }
        // What has no object any more was not listed, and waits to be forgotten.
        match index.condemned(MOST_CONDEMNED).await {
            Ok(condemned) => {
                let names =
                    condemned.into_iter().map(|(pack, generation)| ObjectName { pack, generation });
                let steps = names.filter(|name| pass.grace_passed(name)).map(Step::Finish);
                let steps: Vec<Step> = steps.collect();
                pass.carry_out(steps).await;
            }
            Err(e) => {
                tracing::warn!(error = %e, "ask the index for what is condemned");
                pass.done.failed += 1;
            }
        }
        let Pass { done, still_condemned, .. } = pass;
        self.seen = still_condemned;
        for (what, count) in [
            ("condemned", done.condemned),
            ("deleted", done.deleted),
            ("reprieved", done.reprieved),
            ("forgotten", done.forgotten),
            ("failed", done.failed),
        ] {
            meter::swept(TierName::Object, what, count);
        }
        Ok(done)
    }
}

struct Pass<'a> {
    collector: &'a Collector,
    object: &'a ObjectTier,
    index: &'a dyn PackIndex,
    now: Instant,
    done: Collected,
    /// What the next pass knows as seen condemned, and since when.
    still_condemned: HashMap<ObjectName, Instant>,
}

impl Pass<'_> {
    /// One barrier, then local reads: what was listed before it was uploaded under
    /// a generation that the replica has now.
    async fn judge_all(&mut self, batch: &[StoredPack], now_ms: u64) {
        let asked = async {
            self.index.barrier().await?;
            self.index.packs(batch.iter().map(|object| object.name.pack).collect()).await
        };
        let states = match asked.await {
            Ok(states) => states,
            Err(e) => {
                tracing::warn!(error = %e, "ask the index about listed objects");
                self.done.failed += batch.len() as u64;
                batch.iter().for_each(|object| self.remember(&object.name));
                return;
            }
        };
        let judged = batch.iter().zip(states);
        let steps = judged.filter_map(|(object, state)| self.judge(object, state, now_ms));
        let steps: Vec<Step> = steps.collect();
        self.carry_out(steps).await;
    }

    /// What is to be done about one object; `None`: nothing now.
    fn judge(
        &mut self,
        object: &StoredPack,
        state: Option<PackState>,
        now_ms: u64,
    ) -> Option<Step> {
        let (name, size) = (object.name, object.size);
        let age = Duration::from_millis(now_ms.saturating_sub(object.modified_ms));
        let old = age >= self.collector.settings.orphan_after;
        match state {
            // No replica that passed the barrier lags behind an upload: this is
            // of another cluster's past, and its number may come up in this one.
            Some(state) if state.generation < name.generation => self.done.young += 1,
            Some(state) if state.generation > name.generation => match old {
                true => return Some(Step::Delete { name, size, forget: false }),
                false => self.done.young += 1,
            },
            Some(state) if state.referenced => {
                self.done.referenced += 1;
                self.done.reprieved += u64::from(self.collector.seen.contains_key(&name));
            }
            Some(state) if state.condemned => match self.grace_passed(&name) {
                true => return Some(Step::Delete { name, size, forget: true }),
                false => self.done.waiting += 1,
            },
            // Nothing refers to it: unreferenced, or unknown.
            Some(_) | None if !old => self.done.young += 1,
            Some(_) | None => return Some(Step::Condemn(name)),
        }
        None
    }

    /// Takes many steps at a time: each waits for a commit, and the index commits many
    /// at once. One that fails does not keep the others from it.
    async fn carry_out(&mut self, steps: Vec<Step>) {
        let (object, index) = (self.object, self.index);
        let steps = futures::stream::iter(steps).map(|step| take(object, index, step));
        let mut steps = steps.buffer_unordered(AT_ONCE);
        while let Some(taken) = steps.next().await {
            self.note(taken);
        }
    }

    fn note(&mut self, taken: Taken) {
        let Taken { name, condemned, freed, forgotten, failed } = taken;
        if condemned {
            self.done.condemned += 1;
            self.grace_passed(&name);
        }
        if let Some(bytes) = freed {
            self.done.deleted += 1;
            self.done.bytes_freed += bytes;
        }
        if forgotten {
            self.done.forgotten += 1;
            self.still_condemned.remove(&name);
        }
        if let Some(e) = failed {
            tracing::warn!(object = %name, error = %e, "collect garbage; left for the next pass");
            self.done.failed += 1;
            self.remember(&name);
        }
    }

    /// Whether the grace period passed since the condemnation was first seen.
    fn grace_passed(&mut self, name: &ObjectName) -> bool {
        let since = self.seen_since(name).unwrap_or(self.now);
        if self.still_condemned.len() < MOST_CONDEMNED {
            self.still_condemned.insert(*name, since);
        }
        self.now.duration_since(since) >= self.collector.settings.grace
    }

    fn seen_since(&self, name: &ObjectName) -> Option<Instant> {
        self.still_condemned.get(name).or_else(|| self.collector.seen.get(name)).copied()
    }

    /// What was seen condemned is known as that in the next pass too.
    fn remember(&mut self, name: &ObjectName) {
        if let Some(since) = self.seen_since(name) {
            self.still_condemned.insert(*name, since);
        }
    }
}

#[cfg(test)]
mod tests;
