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
use crate::cache::{StoredSink, SystemClock, conformance::blob};

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
        Tiers::open(self.settings(), Arc::new(SystemClock)).await.unwrap()
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
    assert_eq!(tiers.insert(&blob, Hints::default()).await, Kept::Disk);
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
    place.open().await.insert(&blob, Hints::default()).await;
    let tiers = place.open().await;
    let mut bytes = blob.to_vec();
    bytes[50_000] ^= 0x80;
    fs::write(place.file(&blob), bytes).unwrap();
    let refused = tiers.get_local(&blob.digest()).await.unwrap_err();
    assert!(matches!(refused, TierError::Corrupt { tier: TierName::Disk, .. }), "{refused}");
    assert!(tiers.get_local(&blob.digest()).await.unwrap().is_none());
    assert_eq!(tiers.insert(&blob, Hints::default()).await, Kept::Disk);
    assert!(tiers.get_local(&blob.digest()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_disk_without_room_leaves_memory() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.disk.capacity = ByteSize::kib(64);
    let tiers = Tiers::open(settings, Arc::new(SystemClock)).await.unwrap();
    let mut changes = tiers.changes();
    let large = blob(1, 1 << 20);
    assert_eq!(tiers.insert(&large, Hints::default()).await, Kept::Memory);
    assert_eq!(changes.recv().await.unwrap(), Change::Gained(large.digest()));
    assert_eq!(tiers.get_local(&large.digest()).await.unwrap().unwrap().1, TierName::Memory);
    for n in 2..12 {
        assert_eq!(tiers.insert(&blob(n, 1 << 20), Hints::default()).await, Kept::Memory);
    }
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
    assert_eq!(tiers.insert(&huge, Hints::default()).await, Kept::Nowhere);
}

#[tokio::test]
async fn remove_and_pin_reach_all_local_tiers() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 1000);
    assert!(!tiers.set_pinned(&blob.digest(), true).await.unwrap());
    tiers.insert(&blob, Hints::default()).await;
    assert!(tiers.set_pinned(&blob.digest(), true).await.unwrap());
    assert!(tiers.disk().is_pinned(&blob.digest()));
    assert!(tiers.remove(&blob.digest()).await.unwrap());
    assert!(!tiers.holds(&blob.digest()) && tiers.digests().is_empty());
    assert!(!tiers.remove(&blob.digest()).await.unwrap());
}

/// Remembers what it was told; refuses as long as it is told to.
#[derive(Default)]
struct Told {
    stored: SyncMutex<Vec<Digest>>,
    refuses: SyncMutex<u32>,
}

#[async_trait::async_trait]
impl StoredSink for Told {
    async fn stored(&self, pack: &Digest) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
        tiers.insert(blob, Hints::default()).await;
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
        assert!(tiers.object().unwrap().get(&blob.digest()).await.unwrap().is_some());
    }
    drop(tiers);
    assert_eq!(place.open().await.uploads_pending(), 0);
}

#[tokio::test]
async fn an_upload_whose_blob_is_gone_leaves_the_queue() {
    let place = Place::new();
    let tiers = place.open().await;
    let blob = blob(1, 1000);
    tiers.insert(&blob, Hints::default()).await;
    tiers.enqueue_upload(&blob.digest()).await.unwrap();
    tiers.remove(&blob.digest()).await.unwrap();
    let sink = Told::default();
    let stop = CancellationToken::new();
    let drained = async {
        until("the queue is empty", || tiers.uploads_pending() == 0).await;
        stop.cancel();
    };
    tokio::join!(tiers.run_uploads(&sink, stop.clone()), drained);
    assert!(sink.stored.lock().is_empty(), "nothing is told that did not happen");
}
