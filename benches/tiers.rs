//! Hits in L1 and L2 against what they can't beat: reading the same file and
//! hashing it once with one thread.
//!
//! All of it interleaved in one run, so that the ratios mean something on a busy
//! machine; files come from the page cache on both sides. Run with
//! `cargo bench --bench tiers`.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use kiln::cache::{
    Blob, Budget, BudgetSettings, DiskSettings, Hints, MemorySettings, SystemClock, Tier, TierName,
    Tiers, TiersSettings,
};

const ROUNDS: usize = 60;

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn add(&mut self, since: Instant) {
        self.0.push(since.elapsed());
    }

    fn p50(&mut self) -> Duration {
        self.0.sort();
        self.0[self.0.len() / 2]
    }
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    println!(
        "{:>8} {:>12} {:>12} {:>14} {:>14} {:>9}",
        "bytes", "L1 hit", "L2 hit", "read + hash", "put (durable)", "L2 ratio"
    );
    for size in [64 << 10, 1 << 20, 16 << 20, 64 << 20] {
        runtime.block_on(measure(size))?;
    }
    Ok(())
}

async fn measure(size: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = TiersSettings {
        memory: MemorySettings { capacity: ByteSize::mib(512), max_entries: 256 },
        disk: DiskSettings { path: dir.path().join("l2"), ..DiskSettings::default() },
        ..TiersSettings::default()
    };
    let budget = Budget::new(BudgetSettings { bytes: 1 << 30, blobs: 1024, wait: Duration::ZERO });
    let tiers = Tiers::open(settings, budget, Arc::new(SystemClock)).await?;
    let mut bytes = vec![0; size];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let blob = Blob::copy_of(&bytes)?;
    let (mut put, mut memory, mut disk, mut floor) =
        (Times::default(), Times::default(), Times::default(), Times::default());
    for _ in 0..5 {
        tiers.remove_if(&blob.digest(), || true).await?;
        let since = Instant::now();
        drop(tiers.insert(&blob, Hints::default()).await);
        put.add(since);
    }
    let name = blob.digest().to_string();
    let file = dir.path().join("l2/blobs").join(&name[..2]).join(&name[2..]);
    for _ in 0..ROUNDS {
        let since = Instant::now();
        let hash = blake3::hash(&std::fs::read(&file)?);
        floor.add(since);
        ensure!(hash.as_bytes() == blob.digest().as_bytes(), "the file is what was put");

        let since = Instant::now();
        let found = tiers.disk().get(&blob.digest()).await?.context("in L2")?;
        disk.add(since);
        black_box(&found);

        let since = Instant::now();
        let (found, tier) = tiers.get_local(&blob.digest()).await?.context("in L1")?;
        memory.add(since);
        ensure!(tier == TierName::Memory && found.size() == size as u64, "from L1");
    }
    let ratio = disk.p50().as_secs_f64() / floor.p50().as_secs_f64();
    println!(
        "{:>8} {:>12.1?} {:>12.1?} {:>14.1?} {:>14.1?} {ratio:>9.2}",
        ByteSize(size as u64).display().iec_short().to_string(),
        memory.p50(),
        disk.p50(),
        floor.p50(),
        put.p50(),
    );
    Ok(())
}
