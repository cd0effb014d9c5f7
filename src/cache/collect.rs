//! Garbage collection of L3.
//!
//! Invariant: an object is deleted only after the index committed that it is
//! condemned, a grace period passed since this collector first saw that, and the
//! index, asked once more right before, says that it still is. A collector that
//! restarts waits the grace period again: late is safe, early is not.
//!
//! ```text
//! listed, unknown to the index, older than an upload takes -> condemn
//! condemned -> (grace) -> ask again -> delete -> forget
//! ```

use std::{
    collections::HashMap,
    pin::pin,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::StreamExt;
use kiln_proto::Digest;
use serde::{Deserialize, Serialize};

use super::{Clock, ObjectTier, StoredPack, Tier, TierError, TierName, meter};

/// Condemned packs that are remembered between passes; more wait for the next.
const MOST_CONDEMNED: usize = 100_000;

/// What the index says about a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A manifest, or an open lease, refers to it.
    Referenced,
    /// Its condemnation was committed, and nothing referred to it since.
    Condemned,
    /// The index never heard of it, or has forgotten it.
    Unknown,
}

/// The index failed; the collector leaves the pack for the next pass.
pub type IndexError = Box<dyn std::error::Error + Send + Sync>;

/// What the collector asks of the index.
#[async_trait]
pub trait PackIndex: Send + Sync {
    /// How a pack stands, as of now: a stale answer must not say `Condemned`
    /// where a manifest was committed since.
    async fn standing(&self, pack: &Digest) -> Result<Standing, IndexError>;
    /// Condemns a pack to which nothing refers; false where something does.
    async fn condemn(&self, pack: &Digest) -> Result<bool, IndexError>;
    /// The object is gone: forgets the condemnation.
    async fn forget(&self, pack: &Digest) -> Result<(), IndexError>;
    /// Packs that are condemned, at most `limit`: also those whose object was
    /// deleted by a collector that died before it could say so.
    async fn condemned(&self, limit: usize) -> Result<Vec<Digest>, IndexError>;
}

/// How patient the collector is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectSettings {
    /// Age at which an object that the index does not know is an orphan: longer
    /// than an upload and its commit can take, clocks' differences included.
    #[serde(with = "humantime_serde")]
    pub orphan_after: Duration,
    /// From condemnation to deletion: longer than a reader holds on to an answer
    /// of the index.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Default for CollectSettings {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { orphan_after: 24 * hour, grace: hour }
    }
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects in the store.
    pub listed: u64,
    /// Of these, referenced.
    pub referenced: u64,
    /// Unknown, but young enough for their commit to be under way.
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
    /// When this collector first saw a pack condemned.
    seen: HashMap<Digest, Instant>,
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
        let mut packs = pin!(object.list());
        while let Some(pack) = packs.next().await {
            let pack = pack?;
            pass.done.listed += 1;
            let judged = pass.judge(&pack, clock.now_ms()).await;
            pass.leave_for_later(&pack.digest, judged);
        }
        // What has no object any more was not listed, and waits to be forgotten.
        match index.condemned(MOST_CONDEMNED).await {
            Ok(condemned) => {
                for digest in condemned {
                    let finished = pass.finish(&digest).await;
                    pass.leave_for_later(&digest, finished);
                }
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
    still_condemned: HashMap<Digest, Instant>,
}

impl Pass<'_> {
    async fn judge(&mut self, pack: &StoredPack, now_ms: u64) -> Result<(), IndexError> {
        let digest = &pack.digest;
        match self.index.standing(digest).await? {
            Standing::Referenced => {
                self.done.referenced += 1;
                self.done.reprieved += u64::from(self.collector.seen.contains_key(digest));
            }
            Standing::Unknown => {
                let age = Duration::from_millis(now_ms.saturating_sub(pack.modified_ms));
                if age < self.collector.settings.orphan_after {
                    self.done.young += 1;
                } else if self.index.condemn(digest).await? {
                    self.done.condemned += 1;
                    self.grace_passed(digest);
                }
            }
            Standing::Condemned if !self.grace_passed(digest) => self.done.waiting += 1,
            Standing::Condemned => self.delete(pack).await?,
        }
        Ok(())
    }

    async fn delete(&mut self, pack: &StoredPack) -> Result<(), IndexError> {
        let digest = &pack.digest;
        if !self.is_condemned_still(digest).await? {
            return Ok(());
        }
        self.object.remove(digest).await?;
        self.done.deleted += 1;
        self.done.bytes_freed += pack.size;
        self.forget(digest).await
    }

    /// A condemned pack without an object has nothing left to delete.
    async fn finish(&mut self, digest: &Digest) -> Result<(), IndexError> {
        if !self.grace_passed(digest)
            || self.object.contains(digest).await?
            || !self.is_condemned_still(digest).await?
        {
            return Ok(());
        }
        self.forget(digest).await
    }

    async fn forget(&mut self, digest: &Digest) -> Result<(), IndexError> {
        self.index.forget(digest).await?;
        self.done.forgotten += 1;
        self.still_condemned.remove(digest);
        Ok(())
    }

    /// Asked right before something that can't be taken back: a pass may be long.
    async fn is_condemned_still(&mut self, digest: &Digest) -> Result<bool, IndexError> {
        let still = self.index.standing(digest).await? == Standing::Condemned;
        if !still {
            self.still_condemned.remove(digest);
            self.done.reprieved += 1;
        }
        Ok(still)
    }

    /// Whether the grace period passed since the condemnation was first seen.
    fn grace_passed(&mut self, digest: &Digest) -> bool {
        let since = self.carry_over(digest).unwrap_or(self.now);
        if self.still_condemned.len() < MOST_CONDEMNED {
            self.still_condemned.insert(*digest, since);
        }
        self.now.duration_since(since) >= self.collector.settings.grace
    }

    fn carry_over(&self, digest: &Digest) -> Option<Instant> {
        self.still_condemned.get(digest).or_else(|| self.collector.seen.get(digest)).copied()
    }

    /// One pack that can't be judged now does not keep the others from it.
    fn leave_for_later(&mut self, digest: &Digest, judged: Result<(), IndexError>) {
        let Err(e) = judged else { return };
        tracing::warn!(pack = %digest, error = %e, "collect garbage; left for the next pass");
        self.done.failed += 1;
        if let Some(since) = self.carry_over(digest) {
            self.still_condemned.insert(*digest, since);
        }
    }
}

#[cfg(test)]
mod tests;
