//! The disk tier: durability, damage, bounds and order of eviction.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    time::Duration,
};

use tempfile::TempDir;

mod bounds;
mod wholes;

use super::*;
use crate::cache::{
    clock::ManualClock,
    conformance::{self, blob, roomy},
};

impl DiskTier {
    fn sweep_now(&self) {
        self.go.as_ref().unwrap().send(()).unwrap();
    }
}

struct Folder {
    _dir: TempDir,
    clock: Arc<ManualClock>,
    settings: DiskSettings,
}

impl Folder {
    fn new(capacity: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = DiskSettings {
            path: dir.path().join("cache"),
            capacity: ByteSize(capacity),
            keep_free: ByteSize(0),
            ..DiskSettings::default()
        };
        Self { _dir: dir, clock: Arc::default(), settings }
    }

    fn open(&self) -> DiskTier {
        DiskTier::open(&self.settings, roomy(), self.clock.clone()).unwrap()
    }

    /// With files that wait to be verified until [`DiskTier::sweep_now`].
    fn open_unswept(&self) -> DiskTier {
        let (go, gate) = std::sync::mpsc::channel();
        let wait = move || gate.recv().unwrap();
        let mut tier =
            DiskTier::open_with(&self.settings, roomy(), self.clock.clone(), wait).unwrap();
        tier.go = Some(go);
        tier
    }

    fn file(&self, blob: &Blob) -> PathBuf {
        let name = blob.digest().to_string();
        self.settings.path.join("blobs").join(&name[..2]).join(&name[2..])
    }

    fn count(&self, folder: &str) -> usize {
        fs::read_dir(self.settings.path.join(folder)).unwrap().count()
    }

    /// Bytes of all files below `blobs/`.
    fn bytes_on_disk(&self) -> u64 {
        let folders = fs::read_dir(self.settings.path.join("blobs")).unwrap();
        let files = folders.flat_map(|f| fs::read_dir(f.unwrap().path()).unwrap());
        files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
    }
}

fn flip_a_byte(path: &Path) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

fn normal() -> Hints {
    Hints { compile_seconds: 1.0, ..Hints::default() }
}

#[tokio::test]
async fn conforms() {
    let folder = Folder::new(64 << 20);
    conformance::suite(&folder.open()).await;
    assert_eq!((folder.bytes_on_disk(), folder.count("tmp")), (0, 0));
}

#[tokio::test]
async fn blobs_and_hints_survive_a_restart() {
    let folder = Folder::new(1 << 20);
    let (first, second) = (blob(1, 1000), blob(2, 2000));
    let tier = folder.open();
    tier.put(&first, Hints { pinned: true, ..normal() }).await.unwrap();
    tier.put(&second, normal()).await.unwrap();
    drop(tier);
    let tier = folder.open();
    assert_eq!(tier.swept().await, Swept::default());
    assert!(tier.is_pinned(&first.digest()) && !tier.is_pinned(&second.digest()));
    assert_eq!(&*tier.get(&second.digest()).await.unwrap().unwrap(), &*second);
    assert_eq!(tier.usage().bytes, 3000);
}

/// Invariant 3, where it is most likely to be needed.
#[tokio::test]
async fn a_flipped_byte_is_quarantined_and_counted() {
    let folder = Folder::new(16 << 20);
    let tier = folder.open();
    let mut changes = tier.changes();
    for (n, size) in [1, 5000, 5 << 20].into_iter().enumerate() {
        let blob = blob(n as u64, size);
        tier.put(&blob, normal()).await.unwrap();
        assert_eq!(changes.recv().await.unwrap(), Change::Gained(blob.digest()));
        flip_a_byte(&folder.file(&blob));
        let refused = tier.get(&blob.digest()).await.unwrap_err();
        assert!(
            matches!(refused, TierError::Corrupt { digest, .. } if digest == blob.digest()),
            "{refused}"
        );
        assert_eq!(changes.recv().await.unwrap(), Change::Lost(blob.digest()));
        assert_eq!(tier.counters().corrupt, n as u64 + 1);
        assert_eq!(folder.count("quarantine"), n + 1);
        // No longer offered, and a good copy takes its place.
        assert!(tier.get(&blob.digest()).await.unwrap().is_none());
        tier.put(&blob, normal()).await.unwrap();
        assert_eq!(changes.recv().await.unwrap(), Change::Gained(blob.digest()));
        assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
    }
}

#[tokio::test]
async fn a_truncated_file_is_corrupt() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let blob = blob(1, 5000);
    tier.put(&blob, normal()).await.unwrap();
    fs::File::options().write(true).open(folder.file(&blob)).unwrap().set_len(4999).unwrap();
    assert!(matches!(tier.get(&blob.digest()).await, Err(TierError::Corrupt { .. })));
    assert_eq!(tier.usage(), Usage { capacity_bytes: Some(1 << 20), ..Usage::default() });
}

#[tokio::test]
async fn the_quarantine_is_bounded() {
    let mut folder = Folder::new(1 << 20);
    folder.settings.quarantine = ByteSize(10_000);
    let tier = folder.open();
    for n in 0..40 {
        let blob = blob(n, if n < 20 { 100 } else { 3000 });
        tier.put(&blob, normal()).await.unwrap();
        flip_a_byte(&folder.file(&blob));
        assert!(tier.get(&blob.digest()).await.is_err());
        assert!(folder.count("quarantine") <= QUARANTINED);
    }
    assert_eq!(folder.count("quarantine"), 3, "3 of 3000 bytes fit in 10000");
}

#[tokio::test]
async fn a_missing_file_is_a_miss() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let blob = blob(1, 5000);
    tier.put(&blob, normal()).await.unwrap();
    fs::remove_file(folder.file(&blob)).unwrap();
    assert!(tier.get(&blob.digest()).await.unwrap().is_none());
    assert_eq!((tier.counters().lost, tier.usage().entries), (1, 0));
    tier.put(&blob, normal()).await.unwrap();
    assert!(tier.get(&blob.digest()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_wiped_folder_is_filled_again() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let blob = blob(1, 5000);
    tier.put(&blob, normal()).await.unwrap();
    fs::remove_dir_all(folder.settings.path.join("blobs")).unwrap();
    fs::create_dir(folder.settings.path.join("blobs")).unwrap();
    assert!(tier.get(&blob.digest()).await.unwrap().is_none());
    tier.put(&blob, normal()).await.unwrap();
    assert!(tier.get(&blob.digest()).await.unwrap().is_some());
}

#[tokio::test]
async fn leftovers_of_a_crash_are_swept() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let [kept, gone, torn] = [1, 2, 3].map(|n| blob(n, 5000));
    for blob in [&kept, &gone, &torn] {
        tier.put(blob, normal()).await.unwrap();
    }
    drop(tier);
    // Half-written; never written; written without its bytes; not ours.
    fs::write(folder.settings.path.join("tmp/half"), b"half").unwrap();
    fs::remove_file(folder.file(&gone)).unwrap();
    fs::File::options().write(true).open(folder.file(&torn)).unwrap().set_len(0).unwrap();
    fs::write(folder.file(&kept).with_file_name("stranger"), b"?").unwrap();
    fs::write(folder.settings.path.join("blobs/stranger"), b"?").unwrap();
    // Complete, but the index never heard of them: one is good, one is not.
    let [good, bad] = [4, 5].map(|n| blob(n, 6000));
    for blob in [&good, &bad] {
        fs::create_dir_all(folder.file(blob).parent().unwrap()).unwrap();
        fs::write(folder.file(blob), &**blob).unwrap();
    }
    flip_a_byte(&folder.file(&bad));

    let tier = folder.open();
    let swept = Swept {
        temporaries: 1,
        strangers: 2,
        dropped: 2,
        adopted: 1,
        rejected: 2,
        index_rebuilt: false,
    };
    assert_eq!(tier.swept().await, swept);
    for here in [&kept, &good] {
        assert_eq!(&*tier.get(&here.digest()).await.unwrap().unwrap(), &**here);
    }
    for not_here in [&gone, &torn, &bad] {
        assert!(tier.get(&not_here.digest()).await.unwrap().is_none());
    }
    assert_eq!((tier.usage().bytes, folder.bytes_on_disk()), (11_000, 11_000));
    assert_eq!(folder.count("tmp"), 0);
    drop(tier);
    assert_eq!(folder.open().swept().await, Swept::default(), "the second start finds order");
}

#[tokio::test]
async fn a_torn_index_is_built_anew_from_the_files() {
    for tear in [
        (|path: &Path| fs::write(path.join("CURRENT"), b"MANIFEST-999999\n")) as fn(&Path) -> _,
        |path| fs::write(path.join("CURRENT"), b""),
        |path| {
            let is_manifest = |name: &std::ffi::OsStr| name.to_string_lossy().contains("MANIFEST");
            let names = fs::read_dir(path)?.map(|f| f.unwrap());
            let manifest = names.filter(|f| is_manifest(&f.file_name())).last().unwrap();
            fs::write(manifest.path(), [0xff; 100])
        },
    ] {
        let folder = Folder::new(1 << 20);
        let tier = folder.open();
        let blobs: Vec<_> = (0..5).map(|n| blob(n, 1000)).collect();
        for blob in &blobs {
            tier.put(blob, normal()).await.unwrap();
        }
        drop(tier);
        tear(&folder.settings.path.join("index")).unwrap();
        let tier = folder.open();
        let swept = tier.swept().await;
        assert_eq!(swept, Swept { adopted: 5, index_rebuilt: true, ..Swept::default() });
        for blob in &blobs {
            assert!(tier.get(&blob.digest()).await.unwrap().is_some());
        }
    }
}

#[tokio::test]
async fn a_smaller_capacity_is_kept_from_the_start() {
    let mut folder = Folder::new(10_000);
    let tier = folder.open();
    for n in 0..10 {
        tier.put(&blob(n, 1000), normal()).await.unwrap();
        folder.clock.advance(Duration::from_secs(1));
    }
    drop(tier);
    folder.settings.capacity = ByteSize(3500);
    let tier = folder.open();
    assert_eq!((tier.usage().bytes, folder.bytes_on_disk()), (3000, 3000));
    assert!(tier.holds(&blob(9, 1000).digest()), "the last used ones stay");
    // Without the index there is no room for more either.
    drop(tier);
    fs::remove_dir_all(folder.settings.path.join("index")).unwrap();
    folder.settings.capacity = ByteSize(2500);
    let tier = folder.open();
    assert_eq!(tier.swept().await, Swept { adopted: 2, rejected: 1, ..Swept::default() });
    assert_eq!((tier.usage().bytes, folder.bytes_on_disk()), (2000, 2000));
}

/// What L3 does not have yet, the index forgot and a sweep finds again is not rejected
/// for want of room, and goes last.
#[tokio::test]
async fn an_only_copy_that_the_index_forgot_stays() {
    let mut folder = Folder::new(4000);
    let tier = folder.open();
    let [only, other] = [1, 2].map(|n| blob(n, 2000));
    tier.put(&only, normal()).await.unwrap();
    tier.queue_upload(&only.digest()).await.unwrap();
    tier.store.remember(&[], &[only.digest()]);
    drop(tier);
    let tier = folder.open();
    assert_eq!(tier.swept().await.adopted, 1);
    tier.put(&other, normal()).await.unwrap();
    tier.put(&blob(3, 2000), normal()).await.unwrap();
    assert!(tier.holds(&only.digest()) && !tier.holds(&other.digest()), "found late, goes last");
    tier.store.remember(&[], &[only.digest()]);
    drop(tier);
    folder.settings.capacity = ByteSize(2500);
    let tier = folder.open();
    tier.swept().await;
    assert!(tier.holds(&only.digest()) && !tier.holds(&blob(3, 2000).digest()));
    assert_eq!(folder.bytes_on_disk(), 2000);
}

/// A sync that failed is not tried again on the same file (ATC'20): the file
/// goes, and the next attempt is a new one.
#[tokio::test]
async fn a_failed_sync_costs_the_file() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let blob = blob(1, 5000);
    let faults = &tier.store.files.faults;
    for attempt in 0..2 {
        faults.synced.lock().clear();
        faults.sync.store(true, Ordering::SeqCst);
        let refused = tier.put(&blob, normal()).await.unwrap_err();
        assert!(matches!(refused, TierError::Io { .. }), "attempt {attempt}: {refused}");
        assert_eq!(faults.synced.lock().len(), 1, "one sync, not repeated");
        assert_eq!((folder.count("tmp"), tier.usage().entries), (0, 0));
        assert!(!folder.file(&blob).exists());
        assert!(matches!(tier.health(), Health::Down { .. }));
    }
    tier.put(&blob, normal()).await.unwrap();
    assert_eq!(tier.health(), Health::Up);
    let synced = faults.synced.lock().clone();
    let mut unique = synced.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), synced.len(), "no path is synced twice: {synced:?}");
    assert_eq!(tier.store.catalog.lock().reserved_bytes(), 0, "the room was given back");
}

/// "Absent" makes others give a blob up: while a file waits to be verified, or a
/// write is under way, it is not said.
#[tokio::test]
async fn what_is_not_verified_yet_is_not_absent() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let [good, bad] = [1, 2].map(|n| blob(n, 5000));
    for blob in [&good, &bad] {
        assert_eq!(tier.presence(&blob.digest()), Presence::Absent);
        let put = tier.put(blob, normal());
        let mut put = std::pin::pin!(put);
        assert!(futures::poll!(put.as_mut()).is_pending(), "a write takes a thread");
        assert_ne!(tier.presence(&blob.digest()), Presence::Absent);
        put.await.unwrap();
        assert_eq!(tier.presence(&blob.digest()), Presence::Here);
    }
    drop(tier);
    fs::remove_dir_all(folder.settings.path.join("index")).unwrap();
    flip_a_byte(&folder.file(&bad));
    let tier = folder.open_unswept();
    for blob in [&good, &bad] {
        assert_eq!(tier.presence(&blob.digest()), Presence::Unknown);
    }
    tier.sweep_now();
    assert_eq!(tier.swept().await.adopted, 1);
    assert_eq!(tier.presence(&good.digest()), Presence::Here);
    assert_eq!(tier.presence(&bad.digest()), Presence::Absent);
}

/// A reader that found a file bad sets only that file aside.
#[tokio::test]
async fn a_good_copy_that_took_a_bad_ones_place_stays() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let blob = blob(1, 5000);
    tier.put(&blob, normal()).await.unwrap();
    let (_, file) = tier.store.catalog.lock().touch(&blob.digest(), 0).unwrap();
    // Another reader was faster, and a writer after it.
    flip_a_byte(&folder.file(&blob));
    assert!(tier.get(&blob.digest()).await.is_err());
    tier.put(&blob, normal()).await.unwrap();
    let why = files::ReadError::Corrupt("read before".into());
    tier.store.set_unreadable_aside(&blob.digest(), Some(file), &why);
    assert_eq!(&*tier.get(&blob.digest()).await.unwrap().unwrap(), &*blob);
}

/// A process without descriptors says nothing about the disk's bytes.
#[test]
fn a_lack_of_descriptors_condemns_no_file() {
    let io = |errno: rustix::io::Errno| files::ReadError::Io(errno.into()).condemns();
    assert!(!io(rustix::io::Errno::MFILE) && !io(rustix::io::Errno::NFILE));
    assert!(io(rustix::io::Errno::IO));
}

#[tokio::test]
async fn uses_are_written_in_batches() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let blobs: Vec<_> = (0..10).map(|n| blob(n, 10)).collect();
    for blob in &blobs {
        tier.put(blob, normal()).await.unwrap();
    }
    let before = tier.counters().index_writes;
    folder.clock.advance(Duration::from_secs(60));
    for _ in 0..100 {
        for blob in &blobs[..5] {
            tier.get(&blob.digest()).await.unwrap();
        }
    }
    assert_eq!(tier.counters().index_writes, before, "500 hits, no write");
    drop(tier);
    let tier = folder.open();
    let used = |n: usize| tier.store.catalog.lock().get(&blobs[n].digest()).unwrap().last_used_ms;
    assert_eq!((used(0), used(9)), (60_000, 0), "closing writes them");
}

#[tokio::test]
async fn a_renewal_sweeps_and_drops_what_is_not_whole() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let (whole, torn, gone) = (blob(1, 1000), blob(2, 1000), blob(3, 1000));
    for blob in [&whole, &torn, &gone] {
        tier.put(blob, normal()).await.unwrap();
    }
    flip_a_byte(&folder.file(&torn));
    fs::remove_file(folder.file(&gone)).unwrap();
    fs::write(folder.settings.path.join("quarantine/old"), b"bad").unwrap();
    let renewed = tier.renew().await.unwrap();
    let expected =
        Renewed { quarantined: 1, temporaries: 0, dropped: 2, verified: 1, complete: true };
    assert_eq!(renewed, expected);
    assert!(tier.holds(&whole.digest()));
    assert!(!tier.holds(&torn.digest()) && !tier.holds(&gone.digest()));
    assert_eq!(folder.count("quarantine"), 1, "what is torn now can be looked at");
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_seen_by_a_probe_and_well_after_a_renewal() {
    let folder = Folder::new(1 << 20);
    let tier = folder.open();
    let temporary = folder.settings.path.join("tmp");
    fs::remove_dir(&temporary).unwrap();
    fs::write(&temporary, b"").unwrap();
    assert!(tier.probe().await.is_err());
    assert!(tier.renew().await.is_err());
    assert!(matches!(tier.health(), Health::Down { .. }));
    let counters = tier.counters();
    assert_eq!((counters.operations, counters.errors), (2, 2));
    fs::remove_file(&temporary).unwrap();
    tier.renew().await.unwrap();
    assert_eq!(tier.health(), Health::Up);
    assert!(tier.probe().await.unwrap() > Duration::ZERO);
}
