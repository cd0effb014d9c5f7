//! All tiers together: promotion, degradation, uploads that outlast trouble.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use parking_lot::Mutex as SyncMutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cache::{
    BlobWriter, BudgetSettings, IndexError, ObjectName, SystemClock, UploadIndex,
    conformance::{blob, roomy},
};

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self) -> TiersSettings {
        TiersSettings {
            memory: MemorySettings { capacity: ByteSize::mib(8), max_entries: 64 },
            disk: DiskSettings {
                path: self.path("l2"),
                capacity: ByteSize::mib(16),
                keep_free: ByteSize(0),
                ..DiskSettings::default()
            },
            object: ObjectSettings {
                url: Some(format!("file://{}", self.path("l3").display())),
                ..ObjectSettings::default()
            },
        }
    }

    async fn open(&self) -> Tiers {
        Tiers::open(self.settings(), roomy(), Arc::new(SystemClock)).await.unwrap()
    }

    fn file(&self, blob: &Blob) -> PathBuf {
        let name = blob.digest().to_string();
        self.path("l2/blobs").join(&name[..2]).join(&name[2..])
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_blob_comes_up_from_disk_once() {
    let place = Place::new();
    let blob = blob(1, 100_000);
    let tiers = place.open().await;
    assert!(tiers.get_local(&blob.digest()).await.unwrap().is_none());
    assert!(matches!(tiers.insert(&blob, Hints::default()).await.kept, Kept::Disk));
    assert_eq!(tiers.get_local(&blob.digest()).await.unwrap().unwrap().1, TierName::Memory);
    drop(tiers);
    let tiers = place.open().await;
    let digest = blob.digest();
    let gets = futures::future::join_all((0..60).map(|_| tiers.get_local(&digest))).await;
    let from_disk = gets
        .into_iter()
        .map(|found| found.unwrap().unwrap())
        .inspect(|(found, _)| assert_eq!(&**found, &*blob))
        .filter(|(_, tier)| *tier == TierName::Disk);
    assert_eq!(from_disk.count(), 1, "of 60 at once, one read the file");
}

#[tokio::test]
async fn a_corrupt_file_is_a_miss_that_says_so() {
    let place = Place::new();
    let blob = blob(1, 100_000);
    drop(place.open().await.insert(&blob, Hints::default()).await);
    let tiers = place.open().await;
    let mut bytes = blob.to_vec();
    bytes[50_000] ^= 0x80;
    fs::write(place.file(&blob), bytes).unwrap();
    let refused = tiers.get_local(&blob.digest()).await.unwrap_err();
    assert!(matches!(refused, TierError::Corrupt { tier: TierName::Disk, .. }), "{refused}");
    assert!(tiers.get_local(&blob.digest()).await.unwrap().is_none());
    assert!(matches!(tiers.insert(&blob, Hints::default()).await.kept, Kept::Disk));
    assert!(tiers.get_local(&blob.digest()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_disk_without_room_leaves_memory() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.disk.capacity = ByteSize::kib(64);
    let tiers = Tiers::open(settings, roomy(), Arc::new(SystemClock)).await.unwrap();
    let mut changes = tiers.changes();
    let large = blob(1, 1 << 20);
    let Inserted { kept, guard } = tiers.insert(&large, Hints::default()).await;
    assert!(matches!(kept, Kept::Memory(TierError::Full { tier: TierName::Disk, .. })), "{kept:?}");
    assert_eq!(changes.recv().await.unwrap(), Change::Gained(large.digest()));
    assert_eq!(tiers.get_local(&large.digest()).await.unwrap().unwrap().1, TierName::Memory);
    for n in 2..12 {
        let kept = tiers.insert(&blob(n, 1 << 20), Hints::default()).await.kept;
        assert!(matches!(kept, Kept::Memory(_)), "{kept:?}");
        assert!(tiers.memory().holds(&large.digest()), "its guard keeps it in memory");
    }
    drop(guard);
    assert_eq!(tiers.memory().fixed_bytes(), 0, "no guard, no place of its own");
    let mut lost = Vec::new();
    while let Ok(change) = changes.try_recv() {
        if let Change::Lost(digest) = change {
            lost.push(digest);
        }
    }
    assert_eq!(lost.len(), 11 - tiers.memory().usage().entries as usize);
    assert!(!lost.is_empty(), "what only memory had is told when it goes");
    assert!(lost.iter().all(|digest| !tiers.holds(digest)));
    let huge = blob(20, 9 << 20);
    let kept = tiers.insert(&huge, Hints::default()).await.kept;
    assert!(matches!(kept, Kept::Nowhere(TierError::Full { .. })), "{kept:?}");
}

/// Invariant 10: whatever is read and held, the blobs stay within the budget.
#[tokio::test]
async fn memory_gives_way_to_those_who_hold_blobs_then_they_wait_then_are_refused() {
    let place = Place::new();
    let settings = BudgetSettings { bytes: 4 << 20, blobs: 64, wait: Duration::from_millis(20) };
    let budget = Budget::new(settings);
    let open = Tiers::open(place.settings(), budget.clone(), Arc::new(SystemClock));
    let tiers = open.await.unwrap();
    let blobs: Vec<_> = (0..8).map(|n| blob(n, 1 << 20)).collect();
    for blob in &blobs {
        // Uncharged, as a test's own: on the disk, and out of memory again.
        drop(tiers.insert(blob, Hints::default()).await);
        tiers.memory().forget(&blob.digest());
    }
    // One after the other: each finds room that memory gives up.
    for blob in &blobs {
        assert!(tiers.get_local(&blob.digest()).await.unwrap().is_some());
        assert!(budget.in_use() <= budget.capacity());
    }
    assert!(budget.in_use() >= 3 << 20, "L1 is charged");
    // Slow readers hold four: then nobody gives way, and the fifth is refused.
    let mut held = Vec::new();
    for blob in &blobs[..4] {
        held.push(tiers.get_local(&blob.digest()).await.unwrap().unwrap());
    }
    let refused = tiers.get_local(&blobs[4].digest()).await.unwrap_err();
    assert!(matches!(refused, TierError::Memory { .. }), "{refused}");
    assert!(tiers.disk().holds(&blobs[4].digest()), "busy is no verdict on the file");
    held.pop();
    assert!(tiers.get_local(&blobs[4].digest()).await.unwrap().is_some());
    drop(held);
    let half = BlobWriter::within(&budget, 3 << 20).await.unwrap();
    assert!(budget.in_use() <= budget.capacity());
    drop((half, tiers));
    assert_eq!(budget.in_use(), 0, "all of it comes back");
}

#[tokio::test]
async fn remove_and_pin_reach_all_local_tiers() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 1000);
    assert!(!tiers.set_pinned(&blob.digest(), true).await.unwrap());
    drop(tiers.insert(&blob, Hints::default()).await);
    assert!(tiers.set_pinned(&blob.digest(), true).await.unwrap());
    assert!(tiers.disk().is_pinned(&blob.digest()));
    let removal = tiers.remove_if(&blob.digest(), || true).await.unwrap();
    assert_eq!(removal, Removal::Removed);
    assert!(!tiers.holds(&blob.digest()) && tiers.digests().is_empty());
    let removal = tiers.remove_if(&blob.digest(), || true).await.unwrap();
    assert_eq!(removal, Removal::NotHere);
}

/// Defect 4 of issue 12: a removal that was decided before an insertion of the
/// same pack was carried out after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_asks_again_after_an_insertion_that_came_between() {
    let place = Place::new();
    let tiers = Arc::new(place.open().await);
    let blob = blob(1, 1000);
    let digest = blob.digest();
    drop(tiers.insert(&blob, Hints::default()).await);
    // What the index would say: the old entry is gone, no new one yet.
    let referenced = Arc::new(AtomicBool::new(false));
    // The removal is decided, and waits for its turn behind an insertion.
    let lane = tiers.lane(&digest).await;
    let insertion = tokio::spawn({
        let (tiers, blob, referenced) = (tiers.clone(), blob.clone(), referenced.clone());
        async move {
            let inserted = tiers.insert(&blob, Hints::default()).await;
            // Published: the entry refers to it, and nothing needs to guard it.
            referenced.store(true, Ordering::SeqCst);
            drop(inserted.guard);
        }
    });
    queued_for_lane(&tiers, &digest, 1).await;
    let removal = tokio::spawn({
        let (tiers, referenced) = (tiers.clone(), referenced.clone());
        async move { tiers.remove_if(&digest, move || !referenced.load(Ordering::SeqCst)).await }
    });
    queued_for_lane(&tiers, &digest, 2).await;
    drop(lane);
    insertion.await.unwrap();
    let removal = removal.await.unwrap().unwrap();
    assert!(matches!(removal, Removal::Needed | Removal::Guarded), "{removal:?}");
    assert!(tiers.disk().get(&digest).await.unwrap().is_some(), "acknowledged bytes are here");
}

/// Until so many tasks wait for the lock of `digest`, beside the one that has it.
async fn queued_for_lane(tiers: &Tiers, digest: &Digest, tasks: usize) {
    let lane = tiers.lane_of(digest);
    until("tasks wait for the lane", || Arc::strong_count(lane) >= 2 + tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_guarded_is_removed() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 1000);
    let digest = blob.digest();
    let first = tiers.insert(&blob, Hints::default()).await.guard;
    let second = tiers.insert(&blob, Hints::default()).await.guard;
    let asked = || panic!("a guarded blob needs no decision");
    assert_eq!(tiers.remove_if(&digest, asked).await.unwrap(), Removal::Guarded);
    drop(first);
    assert_eq!(tiers.remove_if(&digest, || true).await.unwrap(), Removal::Guarded);
    assert!(!tiers.disk().remove(&digest).await.unwrap(), "nor behind the tiers' back");
    assert!(tiers.disk().get(&digest).await.unwrap().is_some());
    drop(second);
    assert_eq!(tiers.remove_if(&digest, || false).await.unwrap(), Removal::Needed);
    assert_eq!(tiers.remove_if(&digest, || true).await.unwrap(), Removal::Removed);
    assert_eq!(tiers.presence(&digest), Presence::Absent);
}

#[tokio::test]
async fn what_is_guarded_on_disk_is_not_evicted() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.disk.capacity = ByteSize(10_000);
    let tiers = Tiers::open(settings, roomy(), Arc::new(SystemClock)).await.unwrap();
    let guarded = blob(1, 4000);
    let guard = tiers.insert(&guarded, Hints::default()).await.guard;
    for n in 2..12 {
        let kept = tiers.insert(&blob(n, 4000), Hints::default()).await.kept;
        assert!(matches!(kept, Kept::Disk), "{kept:?}");
        assert!(tiers.disk().holds(&guarded.digest()));
    }
    drop(guard);
    for n in 12..15 {
        drop(tiers.insert(&blob(n, 4000), Hints::default()).await);
    }
    assert!(!tiers.disk().holds(&guarded.digest()), "the last used goes last, not never");
}

/// An acknowledgement speaks of bytes on the disk, not of a record of them.
#[tokio::test]
async fn bytes_that_were_lost_or_damaged_are_written_again() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 100_000);
    drop(tiers.insert(&blob, Hints::default()).await);
    let damages: [fn(&std::path::Path); 3] = [
        |file| fs::remove_file(file).unwrap(),
        |file| fs::write(file, b"short").unwrap(),
        |file| {
            let mut bytes = fs::read(file).unwrap();
            bytes[70_000] ^= 1;
            fs::write(file, bytes).unwrap();
        },
    ];
    for damage in damages {
        damage(&place.file(&blob));
        let kept = tiers.insert(&blob, Hints::default()).await.kept;
        assert!(matches!(kept, Kept::Disk), "{kept:?}");
        let found = tiers.disk().get(&blob.digest()).await.unwrap();
        assert_eq!(&*found.unwrap(), &*blob);
    }
}

/// Remembers what it was told; refuses as long as it is told to.
#[derive(Default)]
struct Told {
    stored: SyncMutex<Vec<Digest>>,
    refuses: SyncMutex<u32>,
    unneeded: SyncMutex<Vec<Digest>>,
}

#[async_trait::async_trait]
impl UploadIndex for Told {
    async fn generation(&self, pack: &Digest) -> Result<Option<u64>, IndexError> {
        Ok((!self.unneeded.lock().contains(pack)).then_some(7))
    }

    async fn stored(&self, pack: &Digest, generation: u64) -> Result<(), IndexError> {
        assert_eq!(generation, 7);
        let mut refuses = self.refuses.lock();
        if *refuses > 0 {
            *refuses -= 1;
            return Err("no quorum".into());
        }
        self.stored.lock().push(*pack);
        Ok(())
    }
}

#[tokio::test]
async fn uploads_outlast_an_absent_store_and_a_restart() {
    let place = Place::new();
    let tiers = Arc::new(place.open().await);
    fs::rename(place.path("l3"), place.path("away")).unwrap();
    let blobs: Vec<_> = (0..20).map(|n| blob(n, 10_000)).collect();
    for blob in &blobs {
        drop(tiers.insert(blob, Hints::default()).await);
        tiers.enqueue_upload(&blob.digest()).await.unwrap();
    }
    let sink = Told::default();
    let stop = CancellationToken::new();
    let runs = async {
        until("the store is seen to be down", || {
            matches!(tiers.object().unwrap().health(), Health::Down { .. })
        })
        .await;
        // Everything that is here is served meanwhile.
        assert!(tiers.get_local(&blobs[0].digest()).await.unwrap().is_some());
        stop.cancel();
    };
    tokio::join!(tiers.run_uploads(&sink, stop.clone()), runs);
    assert_eq!((tiers.uploads_pending(), sink.stored.lock().len()), (20, 0));
    drop(tiers);

    let tiers = place.open().await;
    assert_eq!(tiers.uploads_pending(), 20, "the queue survives");
    fs::remove_dir_all(place.path("l3")).unwrap();
    fs::rename(place.path("away"), place.path("l3")).unwrap();
    *sink.refuses.lock() = 3;
    let stop = CancellationToken::new();
    let drained = async {
        until("the queue drains", || tiers.uploads_pending() == 0).await;
        stop.cancel();
    };
    tokio::join!(tiers.run_uploads(&sink, stop.clone()), drained);
    let mut told = sink.stored.lock().clone();
    told.sort();
    let mut expected: Vec<_> = blobs.iter().map(Blob::digest).collect();
    expected.sort();
    assert_eq!(told, expected, "each is told, also after refusals");
    for blob in &blobs {
        let name = ObjectName { pack: blob.digest(), generation: 7 };
        assert!(tiers.object().unwrap().stat(&name).await.unwrap().is_some());
    }
    drop(tiers);
    assert_eq!(place.open().await.uploads_pending(), 0);
}

/// What fills the disk and is nowhere else holds publications up, while L3 takes it.
#[tokio::test]
async fn a_disk_full_of_queued_uploads_is_given_time() {
    let place = Place::new();
    let tiers = place.open().await;
    tiers.upload_room().await;
    let capacity = tiers.disk().usage().capacity_bytes.unwrap();
    let blobs: Vec<_> = (0..6).map(|n| blob(n, capacity as usize / 10)).collect();
    for blob in &blobs[..3] {
        drop(tiers.insert(blob, Hints::default()).await);
        tiers.enqueue_upload(&blob.digest()).await.unwrap();
    }
    tiers.upload_room().await;
    // Less than half of the disk, and more than half of what pins leave of it.
    for blob in &blobs[3..] {
        drop(tiers.insert(blob, Hints { pinned: true, ..Hints::default() }).await);
    }
    drop(tiers.insert(&blob(6, capacity as usize / 10), Hints::default()).await);
    tiers.enqueue_upload(&blob(6, capacity as usize / 10).digest()).await.unwrap();
    let mut room = std::pin::pin!(tiers.upload_room());
    assert!(futures::poll!(room.as_mut()).is_pending());
    let (sink, stop) = (Told::default(), CancellationToken::new());
    let waits = async {
        room.await;
        stop.cancel();
    };
    tokio::join!(tiers.run_uploads(&sink, stop.clone()), waits);
    assert!(!sink.stored.lock().is_empty(), "an upload made the room, not the end of patience");
}

#[tokio::test]
async fn what_nothing_refers_to_is_not_uploaded() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 1000);
    drop(tiers.insert(&blob, Hints::default()).await);
    tiers.enqueue_upload(&blob.digest()).await.unwrap();
    let sink = Told::default();
    sink.unneeded.lock().push(blob.digest());
    let stop = CancellationToken::new();
    let drained = async {
        until("the queue is empty", || tiers.uploads_pending() == 0).await;
        stop.cancel();
    };
    tokio::join!(tiers.run_uploads(&sink, stop.clone()), drained);
    let name = ObjectName { pack: blob.digest(), generation: 7 };
    assert!(tiers.object().unwrap().stat(&name).await.unwrap().is_none());
}

#[tokio::test]
async fn an_upload_whose_blob_is_gone_leaves_the_queue() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 1000);
    drop(tiers.insert(&blob, Hints::default()).await);
    tiers.enqueue_upload(&blob.digest()).await.unwrap();
    tiers.remove_if(&blob.digest(), || true).await.unwrap();
    let sink = Told::default();
    let stop = CancellationToken::new();
    let drained = async {
        until("the queue is empty", || tiers.uploads_pending() == 0).await;
        stop.cancel();
    };
    tokio::join!(tiers.run_uploads(&sink, stop.clone()), drained);
    assert!(sink.stored.lock().is_empty(), "nothing is told that did not happen");
}
