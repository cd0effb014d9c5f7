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
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    use super::*;
    use crate::cache::{Hints, SystemClock, conformance::blob, object::tests::in_folder};

    /// The index's rules about packs, and nothing else of it.
    #[derive(Default)]
    struct Packs {
        condemned: Mutex<BTreeMap<Digest, ()>>,
        referenced: Mutex<BTreeMap<Digest, ()>>,
        /// Published between two questions about it.
        publish_after_next_answer: Mutex<Option<Digest>>,
        away: Mutex<bool>,
        asked: Mutex<Vec<(&'static str, Digest)>>,
    }

    impl Packs {
        fn refer_to(&self, pack: &Digest) {
            self.condemned.lock().remove(pack);
            self.referenced.lock().insert(*pack, ());
        }

        fn answer(&self, what: &'static str, pack: &Digest) -> Result<(), IndexError> {
            self.asked.lock().push((what, *pack));
            if *self.away.lock() { Err("no quorum".into()) } else { Ok(()) }
        }
    }

    #[async_trait]
    impl PackIndex for Packs {
        async fn standing(&self, pack: &Digest) -> Result<Standing, IndexError> {
            self.answer("standing", pack)?;
            let standing = if self.referenced.lock().contains_key(pack) {
                Standing::Referenced
            } else if self.condemned.lock().contains_key(pack) {
                Standing::Condemned
            } else {
                Standing::Unknown
            };
            let mut publish = self.publish_after_next_answer.lock();
            if *publish == Some(*pack) {
                *publish = None;
                self.refer_to(pack);
            }
            Ok(standing)
        }

        async fn condemn(&self, pack: &Digest) -> Result<bool, IndexError> {
            self.answer("condemn", pack)?;
            if self.referenced.lock().contains_key(pack) {
                return Ok(false);
            }
            self.condemned.lock().insert(*pack, ());
            Ok(true)
        }

        async fn forget(&self, pack: &Digest) -> Result<(), IndexError> {
            self.answer("forget", pack)?;
            assert!(self.condemned.lock().remove(pack).is_some(), "only a condemned pack");
            Ok(())
        }

        async fn condemned(&self, limit: usize) -> Result<Vec<Digest>, IndexError> {
            if *self.away.lock() {
                return Err("no quorum".into());
            }
            Ok(self.condemned.lock().keys().take(limit).copied().collect())
        }
    }

    struct Later(Duration);

    impl Clock for Later {
        fn now_ms(&self) -> u64 {
            SystemClock.now_ms() + self.0.as_millis() as u64
        }
    }

    const GRACE: Duration = Duration::from_secs(600);
    const OLD: Later = Later(Duration::from_secs(7200));

    fn collector() -> Collector {
        let orphan_after = Duration::from_secs(3600);
        Collector::new(CollectSettings { orphan_after, grace: GRACE })
    }

    /// Invariant 7, and clean-up that does clean up.
    #[tokio::test]
    async fn an_orphan_is_condemned_waits_goes_and_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (object, index, mut collector) = (in_folder(&dir), Packs::default(), collector());
        let [kept, orphan] = [1, 2].map(|n| blob(n, 1000));
        for blob in [&kept, &orphan] {
            object.put(blob, Hints::default()).await.unwrap();
        }
        index.refer_to(&kept.digest());
        let start = Instant::now();
        let done = collector.pass(&object, &index, &SystemClock, start).await.unwrap();
        let quiet = Collected { listed: 2, referenced: 1, ..Collected::default() };
        assert_eq!(done, Collected { young: 1, ..quiet }, "its commit may be under way");
        let done = collector.pass(&object, &index, &OLD, start).await.unwrap();
        assert_eq!(done, Collected { condemned: 1, ..quiet });
        let soon = start + GRACE - Duration::from_secs(1);
        let done = collector.pass(&object, &index, &OLD, soon).await.unwrap();
        assert_eq!(done, Collected { waiting: 1, ..quiet });
        assert!(object.contains(&orphan.digest()).await.unwrap());
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        assert_eq!(done, Collected { deleted: 1, bytes_freed: 1000, forgotten: 1, ..quiet });
        assert!(!object.contains(&orphan.digest()).await.unwrap());
        assert!(object.contains(&kept.digest()).await.unwrap());
        let asked = index.asked.lock().clone();
        let about: Vec<_> =
            asked.iter().filter(|a| a.1 == orphan.digest() && a.0 != "standing").collect();
        assert_eq!(about, [&("condemn", orphan.digest()), &("forget", orphan.digest())]);
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        assert_eq!(done, Collected { listed: 1, referenced: 1, ..Collected::default() });
    }

    #[tokio::test]
    async fn a_publish_during_the_pass_saves_the_pack() {
        let dir = tempfile::tempdir().unwrap();
        let (object, index, mut collector) = (in_folder(&dir), Packs::default(), collector());
        let pack = blob(1, 1000);
        object.put(&pack, Hints::default()).await.unwrap();
        let start = Instant::now();
        collector.pass(&object, &index, &OLD, start).await.unwrap();
        *index.publish_after_next_answer.lock() = Some(pack.digest());
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        assert_eq!((done.deleted, done.reprieved), (0, 1));
        assert!(object.contains(&pack.digest()).await.unwrap());
    }

    #[tokio::test]
    async fn without_the_index_nothing_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (object, index, mut collector) = (in_folder(&dir), Packs::default(), collector());
        let pack = blob(1, 1000);
        object.put(&pack, Hints::default()).await.unwrap();
        let start = Instant::now();
        collector.pass(&object, &index, &OLD, start).await.unwrap();
        *index.away.lock() = true;
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        assert_eq!((done.deleted, done.failed), (0, 2));
        assert!(object.contains(&pack.digest()).await.unwrap());
        *index.away.lock() = false;
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        assert_eq!(done.deleted, 1, "the grace period goes on meanwhile");
    }

    #[tokio::test]
    async fn a_restarted_collector_waits_again_and_finishes_what_another_began() {
        let dir = tempfile::tempdir().unwrap();
        let (object, index) = (in_folder(&dir), Packs::default());
        let [whole, deleted] = [1, 2].map(|n| blob(n, 1000));
        object.put(&whole, Hints::default()).await.unwrap();
        // Another collector condemned both, deleted one, and died.
        for blob in [&whole, &deleted] {
            index.condemned.lock().insert(blob.digest(), ());
        }
        let mut collector = collector();
        let start = Instant::now();
        let done = collector.pass(&object, &index, &OLD, start).await.unwrap();
        assert_eq!((done.deleted, done.forgotten, done.waiting), (0, 0, 1));
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        assert_eq!((done.deleted, done.forgotten), (1, 2));
        assert!(index.condemned.lock().is_empty());
    }
}
