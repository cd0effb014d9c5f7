//! One suite for every tier.
//!
//! Invariant: what holds here holds for memory, disk, a local folder and S3.

#![allow(clippy::unwrap_used)]

use std::{fmt::Debug, time::Duration};

use kiln_proto::Digest;

use super::{Blob, Budget, BudgetSettings, Hints, Tier, TierError};

pub(crate) fn blob(seed: u64, size: usize) -> Blob {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    Blob::copy_of(&bytes).unwrap()
}

/// A budget in which there is always room.
pub(crate) fn roomy() -> Budget {
    Budget::new(BudgetSettings { bytes: 1 << 40, blobs: 1 << 28, wait: Duration::ZERO })
}

fn ok<T: Debug>(result: Result<T, TierError>) -> T {
    result.expect("the tier answers")
}

/// Runs all of it on an empty tier that has room for at least 48 MiB.
pub(crate) async fn suite(tier: &dyn Tier) {
    absent(tier).await;
    for size in [0, 1, 4096, 1 << 20, (20 << 20) + 7] {
        keeps_and_forgets(tier, size).await;
    }
    twice_is_once(tier).await;
    many_at_once(tier).await;
}

async fn absent(tier: &dyn Tier) {
    let digest = Digest::of(b"never stored");
    assert!(ok(tier.get(&digest).await).is_none());
    assert!(!ok(tier.contains(&digest).await));
    assert!(!ok(tier.remove(&digest).await));
}

async fn keeps_and_forgets(tier: &dyn Tier, size: usize) {
    let blob = blob(size as u64, size);
    let digest = blob.digest();
    ok(tier.put(&blob, Hints::default()).await);
    assert!(ok(tier.contains(&digest).await));
    let found = ok(tier.get(&digest).await).expect("what was put is here");
    assert_eq!((found.digest(), &*found), (digest, &*blob));
    assert!(ok(tier.remove(&digest).await));
    assert!(ok(tier.get(&digest).await).is_none());
    assert!(!ok(tier.contains(&digest).await));
    assert!(!ok(tier.remove(&digest).await));
}

async fn twice_is_once(tier: &dyn Tier) {
    let before = tier.usage();
    let blob = blob(2, 10_000);
    for _ in 0..3 {
        ok(tier.put(&blob, Hints::default()).await);
    }
    let after = tier.usage();
    if after.capacity_bytes.is_some() {
        assert_eq!(after.entries, before.entries + 1);
        assert_eq!(after.bytes, before.bytes + 10_000);
    }
    assert!(ok(tier.remove(&blob.digest()).await));
    assert_eq!(tier.usage().entries, before.entries);
}

async fn many_at_once(tier: &dyn Tier) {
    let blobs: Vec<_> = (0..8).map(|n| blob(100 + n % 4, 50_000)).collect();
    let puts = blobs.iter().map(|blob| tier.put(blob, Hints::default()));
    for put in futures::future::join_all(puts).await {
        ok(put);
    }
    let gets = futures::future::join_all(blobs.iter().map(|blob| async {
        (blob.digest(), ok(tier.get(&blob.digest()).await).map(|b| b.digest()))
    }));
    for (wanted, found) in gets.await {
        assert_eq!(found, Some(wanted));
    }
    for blob in &blobs[..4] {
        assert!(ok(tier.remove(&blob.digest()).await));
    }
}
