//! The collector against a folder, with a model of the index's rules.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use async_trait::async_trait;
use kiln_proto::Digest;
use parking_lot::Mutex;

use super::*;
use crate::cache::{Blob, IndexError, SystemClock, conformance::blob, object::tests::in_folder};

/// The index's rules about packs, and nothing else of it.
#[derive(Default)]
struct Packs {
    known: Mutex<BTreeMap<Digest, PackState>>,
    log: Mutex<u64>,
    /// Published, and uploaded, after the next answer: the collector is paused
    /// between what it was told and what it does.
    publish_after_answer: Mutex<Option<(Blob, std::sync::Arc<ObjectTier>)>>,
    away: Mutex<bool>,
    asked: Mutex<Vec<(&'static str, Digest)>>,
    /// A commit ends only when so many wait for theirs.
    together: Option<tokio::sync::Barrier>,
    barriers: Mutex<u64>,
}

impl Packs {
    /// As a publication does: the generation changes where the old one was condemned.
    fn publish(&self, pack: &Digest) -> u64 {
        *self.log.lock() += 1;
        let fresh = *self.log.lock();
        let mut known = self.known.lock();
        let generation = match known.get(pack) {
            Some(state) if !state.condemned => state.generation,
            _ => fresh,
        };
        known.insert(*pack, PackState { generation, referenced: true, condemned: false });
        generation
    }

    fn drop_reference(&self, pack: &Digest) {
        self.known.lock().get_mut(pack).unwrap().referenced = false;
    }

    async fn commit(&self) {
        if let Some(together) = &self.together {
            together.wait().await;
        }
    }

    fn answer(&self, what: &'static str, pack: &Digest) -> Result<(), IndexError> {
        self.asked.lock().push((what, *pack));
        if *self.away.lock() { Err("no quorum".into()) } else { Ok(()) }
    }
}

#[async_trait]
impl PackIndex for Packs {
    async fn barrier(&self) -> Result<(), IndexError> {
        *self.barriers.lock() += 1;
        if *self.away.lock() { Err("no quorum".into()) } else { Ok(()) }
    }

    async fn packs(&self, packs: Vec<Digest>) -> Result<Vec<Option<PackState>>, IndexError> {
        let states = packs.iter().map(|pack| self.known.lock().get(pack).copied()).collect();
        let publish = self.publish_after_answer.lock().take();
        if let Some((blob, object)) = publish {
            let generation = self.publish(&blob.digest());
            object.put(&ObjectName { pack: blob.digest(), generation }, &blob).await?;
        }
        Ok(states)
    }

    async fn condemn(&self, pack: &Digest, generation: u64) -> Result<bool, IndexError> {
        self.answer("condemn", pack)?;
        self.commit().await;
        let mut known = self.known.lock();
        let unknown = PackState { generation, referenced: false, condemned: false };
        let state = known.entry(*pack).or_insert(unknown);
        if state.referenced || state.generation != generation {
            return Ok(false);
        }
        state.condemned = true;
        Ok(true)
    }

    async fn forget(&self, pack: &Digest, generation: u64) -> Result<(), IndexError> {
        self.answer("forget", pack)?;
        self.commit().await;
        let mut known = self.known.lock();
        if known.get(pack).is_some_and(|s| s.condemned && s.generation == generation) {
            known.remove(pack);
        }
        Ok(())
    }

    async fn condemned(&self, limit: usize) -> Result<Vec<(Digest, u64)>, IndexError> {
        if *self.away.lock() {
            return Err("no quorum".into());
        }
        let known = self.known.lock();
        let condemned = known.iter().filter(|(_, state)| state.condemned);
        Ok(condemned.map(|(pack, state)| (*pack, state.generation)).take(limit).collect())
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
    Collector::new(CollectSettings { orphan_after, grace: GRACE, ..CollectSettings::default() })
}

async fn upload(object: &ObjectTier, blob: &Blob, generation: u64) -> ObjectName {
    let name = ObjectName { pack: blob.digest(), generation };
    object.put(&name, blob).await.unwrap();
    name
}

async fn is_there(object: &ObjectTier, name: &ObjectName) -> bool {
    object.stat(name).await.unwrap().is_some()
}

/// Invariant 7, and clean-up that does clean up.
#[tokio::test]
async fn an_orphan_is_condemned_waits_goes_and_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (object, index, mut collector) = (in_folder(&dir), Packs::default(), collector());
    let [kept, orphan] = [1, 2].map(|n| blob(n, 1000));
    let kept = upload(&object, &kept, index.publish(&kept.digest())).await;
    // As an older version named it; the index never heard of it.
    let orphan = upload(&object, &orphan, 0).await;
    let start = Instant::now();
    let done = collector.pass(&object, &index, &SystemClock, start).await.unwrap();
    let quiet = Collected { listed: 2, referenced: 1, ..Collected::default() };
    assert_eq!(done, Collected { young: 1, ..quiet }, "its commit may be under way");
    let done = collector.pass(&object, &index, &OLD, start).await.unwrap();
    assert_eq!(done, Collected { condemned: 1, ..quiet });
    let soon = start + GRACE - Duration::from_secs(1);
    let done = collector.pass(&object, &index, &OLD, soon).await.unwrap();
    assert_eq!(done, Collected { waiting: 1, ..quiet });
    assert!(is_there(&object, &orphan).await);
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!(done, Collected { deleted: 1, bytes_freed: 1000, forgotten: 1, ..quiet });
    assert!(!is_there(&object, &orphan).await && is_there(&object, &kept).await);
    let asked = index.asked.lock().clone();
    assert_eq!(asked, [("condemn", orphan.pack), ("forget", orphan.pack)]);
    assert_eq!(*index.barriers.lock(), 4, "one a batch, not one an object");
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!(done, Collected { listed: 1, referenced: 1, ..Collected::default() });
}

/// Defect 7 of issue 12: a collector that was paused between its check and its
/// delete deleted bytes that were published again meanwhile.
#[tokio::test]
async fn a_paused_collector_deletes_nothing_that_was_published_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let object = std::sync::Arc::new(in_folder(&dir));
    let (index, mut collector) = (Packs::default(), collector());
    let pack = blob(1, 1000);
    let old = upload(&object, &pack, index.publish(&pack.digest())).await;
    index.drop_reference(&pack.digest());
    let start = Instant::now();
    collector.pass(&object, &index, &OLD, start).await.unwrap();
    *index.publish_after_answer.lock() = Some((pack.clone(), object.clone()));
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!(done.deleted, 1, "what it was told to delete");
    let state = index.known.lock()[&pack.digest()];
    assert!(state.referenced && !state.condemned, "{state:?}: forgetting came too late");
    let name = ObjectName { pack: pack.digest(), generation: state.generation };
    assert_ne!(name, old);
    assert!(is_there(&object, &name).await, "the new object is there");
    let done = collector.pass(&object, &index, &OLD, start + 2 * GRACE).await.unwrap();
    assert_eq!((done.listed, done.referenced, done.failed), (1, 1, 0));
}

/// A reprieve: the condemned generation's object goes, without a word to the index.
#[tokio::test]
async fn an_earlier_generation_goes_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let (object, index, mut collector) = (in_folder(&dir), Packs::default(), collector());
    let pack = blob(1, 1000);
    let first = upload(&object, &pack, index.publish(&pack.digest())).await;
    index.drop_reference(&pack.digest());
    let start = Instant::now();
    collector.pass(&object, &index, &OLD, start).await.unwrap();
    let second = upload(&object, &pack, index.publish(&pack.digest())).await;
    let done = collector.pass(&object, &index, &SystemClock, start + GRACE).await.unwrap();
    assert_eq!((done.referenced, done.young, done.deleted), (1, 1, 0));
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!((done.referenced, done.deleted, done.forgotten), (1, 1, 0));
    assert!(!is_there(&object, &first).await && is_there(&object, &second).await);
    // A number that this index has not reached may come up in it: nothing is done.
    let ahead = upload(&object, &pack, 1000).await;
    collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert!(is_there(&object, &ahead).await);
}

#[tokio::test]
async fn without_the_index_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (object, index, mut collector) = (in_folder(&dir), Packs::default(), collector());
    let pack = upload(&object, &blob(1, 1000), 0).await;
    let start = Instant::now();
    collector.pass(&object, &index, &OLD, start).await.unwrap();
    *index.away.lock() = true;
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!((done.deleted, done.failed), (0, 2));
    assert!(is_there(&object, &pack).await);
    *index.away.lock() = false;
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!(done.deleted, 1, "the grace period goes on meanwhile");
}

#[tokio::test]
async fn a_restarted_collector_waits_again_and_finishes_what_another_began() {
    let dir = tempfile::tempdir().unwrap();
    let (object, index) = (in_folder(&dir), Packs::default());
    let [whole, deleted] = [1, 2].map(|n| blob(n, 1000));
    upload(&object, &whole, 0).await;
    // Another collector condemned both, deleted one, and died.
    for blob in [&whole, &deleted] {
        assert!(index.condemn(&blob.digest(), 0).await.unwrap());
    }
    let mut collector = collector();
    let start = Instant::now();
    let done = collector.pass(&object, &index, &OLD, start).await.unwrap();
    assert_eq!((done.deleted, done.forgotten, done.waiting), (0, 0, 1));
    let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
    assert_eq!((done.deleted, done.forgotten), (1, 2));
    assert!(index.known.lock().is_empty());
}

/// A store that is overwritten all the time has more garbage than one commit after the
/// other can name.
#[tokio::test]
async fn many_are_condemned_and_forgotten_at_a_time() {
    const MANY: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let together = Some(tokio::sync::Barrier::new(MANY));
    let (object, index) = (in_folder(&dir), Packs { together, ..Packs::default() });
    let mut collector = collector();
    for n in 0..MANY {
        upload(&object, &blob(n as u64, 10), 0).await;
    }
    let start = Instant::now();
    let passes = async {
        let condemned = collector.pass(&object, &index, &OLD, start).await.unwrap().condemned;
        let done = collector.pass(&object, &index, &OLD, start + GRACE).await.unwrap();
        (condemned, done.deleted, done.forgotten)
    };
    let passes = tokio::time::timeout(Duration::from_secs(60), passes).await;
    assert_eq!(passes.expect("one waits for the other"), (16, 16, 16));
}
