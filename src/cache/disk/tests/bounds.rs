//! Who is evicted, and that the bounds hold for any input.

use std::{fs, io::Write, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::cache::Priority;

#[tokio::test]
async fn the_cheapest_to_recompile_goes_first() {
    let folder = Folder::new(10_000);
    let tier = folder.open();
    let cheap = blob(1, 4000);
    let dear = blob(2, 4000);
    let cost = |compile_seconds| Hints { compile_seconds, ..Hints::default() };
    tier.put(&dear, cost(30.0)).await.unwrap();
    folder.clock.advance(Duration::from_secs(1));
    tier.put(&cheap, cost(1.0)).await.unwrap();
    tier.put(&blob(3, 4000), cost(10.0)).await.unwrap();
    assert!(!tier.holds(&cheap.digest()) && tier.holds(&dear.digest()));
    assert_eq!(tier.counters().evicted, 1);
    // After six unused days the dear one is worth half a second.
    folder.clock.advance(Duration::from_secs(6 * 24 * 3600));
    tier.get(&blob(3, 4000).digest()).await.unwrap();
    tier.put(&cheap, cost(1.0)).await.unwrap();
    assert!(!tier.holds(&dear.digest()) && tier.holds(&cheap.digest()));
}

#[tokio::test]
async fn lru_looks_at_the_last_use_alone() {
    let mut folder = Folder::new(10_000);
    folder.settings.eviction = EvictionSettings::Lru;
    let tier = folder.open();
    let [dear, cheap] = [1, 2].map(|n| blob(n, 4000));
    tier.put(&dear, Hints { compile_seconds: 1e6, ..Hints::default() }).await.unwrap();
    folder.clock.advance(Duration::from_secs(1));
    tier.put(&cheap, normal()).await.unwrap();
    tier.put(&blob(3, 4000), normal()).await.unwrap();
    assert!(!tier.holds(&dear.digest()) && tier.holds(&cheap.digest()));
}

#[tokio::test]
async fn classes_pins_and_only_copies_are_respected() {
    let folder = Folder::new(5000);
    let tier = folder.open();
    let blobs: Vec<_> = (0..5).map(|n| blob(n, 1000)).collect();
    let of = |priority| Hints { priority, ..normal() };
    tier.put(&blobs[0], Hints { pinned: true, ..of(Priority::Low) }).await.unwrap();
    tier.put(&blobs[1], of(Priority::Low)).await.unwrap();
    tier.queue_upload(&blobs[1].digest()).await.unwrap();
    tier.put(&blobs[2], of(Priority::High)).await.unwrap();
    tier.put(&blobs[3], of(Priority::Low)).await.unwrap();
    tier.put(&blobs[4], of(Priority::Normal)).await.unwrap();
    let mut left = vec![3, 4, 2, 1];
    for n in 0..4u64 {
        // Pinned newcomers, so that they do not become victims themselves.
        tier.put(&blob(10 + n, 1000), Hints { pinned: true, ..normal() }).await.unwrap();
        let gone = left.remove(0);
        assert!(!tier.holds(&blobs[gone].digest()), "{gone} goes now");
        assert!(left.iter().all(|n| tier.holds(&blobs[*n].digest())));
    }
    // Nothing is left but pins: no room, and no pin is broken to make some.
    let refused = tier.put(&blob(20, 1000), normal()).await.unwrap_err();
    assert!(matches!(refused, TierError::Full { .. }), "{refused}");
    assert!(tier.holds(&blobs[0].digest()));
    assert!(tier.set_pinned(&blobs[0].digest(), false).await.unwrap());
    tier.put(&blob(20, 1000), normal()).await.unwrap();
    assert!(!tier.holds(&blobs[0].digest()));
}

/// A small file system of its own; `None`, and said so, where that is not allowed.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "kiln-test"]).arg(dir.path());
        match mount.status() {
            Ok(status) if status.success() => Some(Self(dir)),
            outcome => {
                eprintln!("SKIPPED: a full disk needs the right to mount a tmpfs ({outcome:?})");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

#[tokio::test]
async fn a_full_device_is_typed_and_costs_nothing_that_is_here() {
    let Some(device) = Tmpfs::mount("24m") else { return };
    let mut folder = Folder::new(1 << 30);
    folder.settings.path = device.0.path().join("cache");
    let tier = folder.open();
    let pinned = blob(1, 1 << 20);
    tier.put(&pinned, Hints { pinned: true, ..normal() }).await.unwrap();
    // The cache alone fills the device: it gives way to itself.
    for n in 10..30 {
        tier.put(&blob(n, 2 << 20), normal()).await.unwrap();
    }
    assert!(tier.counters().evicted > 0);
    // Others fill it: what is not pinned makes room for them, then it is full.
    let used = tier.usage().bytes;
    let mut hog = fs::File::create(device.0.path().join("hog")).unwrap();
    while hog.write_all(&[1; 1 << 16]).is_ok() {}
    tier.put(&blob(50, 2 << 20), normal()).await.unwrap();
    assert!(tier.usage().bytes <= used);
    let refused = tier.put(&blob(51, 23 << 20), normal()).await.unwrap_err();
    assert!(matches!(refused, TierError::Full { .. }), "{refused}");
    assert_eq!(folder.count("tmp"), 0);
    assert!(matches!(tier.health(), Health::Down { .. }));
    assert_eq!(&*tier.get(&pinned.digest()).await.unwrap().unwrap(), &*pinned);
    assert!(tier.get(&blob(50, 2 << 20).digest()).await.unwrap().is_some());
}

#[derive(Debug, Clone)]
enum Op {
    Put { n: u64, size: usize, pinned: bool, priority: Priority },
    Get { n: u64, size: usize },
    Remove { n: u64, size: usize },
    Pin { n: u64, size: usize, pinned: bool },
    Corrupt { n: u64, size: usize },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![Just(0usize), 1..200usize, 200..3000usize, Just(4999), Just(6000)];
    let priority = prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    (0..12u64, size, any::<bool>(), priority, 0..20u8).prop_map(
        |(n, size, flag, priority, kind)| match kind {
            0..10 => Op::Put { n, size, pinned: flag && n % 4 == 0, priority },
            10..14 => Op::Get { n, size },
            14..16 => Op::Remove { n, size },
            16..18 => Op::Pin { n, size, pinned: flag },
            18 => Op::Corrupt { n, size },
            _ => Op::Reopen,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Invariant 10 for the disk, and invariant 3 on the side.
    #[test]
    fn caps_hold_for_any_input(ops in prop::collection::vec(op(), 1..60)) {
        const CAPACITY: u64 = 5000;
        const ENTRIES: u64 = 7;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut folder = Folder::new(CAPACITY);
        folder.settings.max_entries = ENTRIES;
        folder.settings.quarantine = ByteSize(4000);
        let mut tier = Some(folder.open());
        runtime.block_on(async {
            for op in ops {
                let open = tier.as_ref().unwrap();
                match op {
                    Op::Put { n, size, pinned, priority } => {
                        let hints = Hints { pinned, priority, ..normal() };
                        match open.put(&blob(n, size), hints).await {
                            Ok(()) | Err(TierError::Full { .. }) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                    Op::Get { n, size } => {
                        let wanted = blob(n, size);
                        match open.get(&wanted.digest()).await {
                            Ok(Some(found)) => assert_eq!(&*found, &*wanted),
                            Ok(None) | Err(TierError::Corrupt { .. }) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                    Op::Remove { n, size } => {
                        let digest = blob(n, size).digest();
                        open.remove(&digest).await.unwrap();
                        assert!(!open.holds(&digest));
                    }
                    Op::Pin { n, size, pinned } => {
                        open.set_pinned(&blob(n, size).digest(), pinned).await.unwrap();
                    }
                    Op::Corrupt { n, size } => {
                        let file = folder.file(&blob(n, size));
                        if size > 0 && file.exists() {
                            flip_a_byte(&file);
                        }
                    }
                    Op::Reopen => {
                        drop(tier.take());
                        tier = Some(folder.open());
                    }
                }
                folder.clock.advance(Duration::from_secs(60));
                let usage = tier.as_ref().unwrap().usage();
                assert!(usage.bytes <= CAPACITY && usage.entries <= ENTRIES, "{usage:?}");
                assert_eq!(folder.bytes_on_disk(), usage.bytes);
                assert_eq!(folder.count("tmp"), 0);
                assert!(folder.count("quarantine") <= QUARANTINED);
            }
        });
    }
}
