//! The collector against a folder, with a model of the index's rules.

#![allow(clippy::unwrap_used)]

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
