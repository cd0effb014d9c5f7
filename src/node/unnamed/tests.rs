#![allow(clippy::unwrap_used)]
//! Packs of keys that are removed while their bytes are here, relied on, or on their way.

use bytesize::ByteSize;
use kiln_proto::{ArtifactKey, value};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    cache::{
        Blob, Budget, BudgetSettings, Change, Guard, Hints, Inserted, Kept, SystemClock,
        TiersSettings,
    },
    node::follow,
    scan::tests::Filled,
};

/// Bound on anything that is waited for.
const SOON: Duration = Duration::from_secs(60);
const AT_ONCE: Pace = Pace { again: Duration::ZERO, promised: Duration::ZERO };
/// As after a start a moment ago.
const JUST_STARTED: Pace = Pace { again: Duration::ZERO, promised: Duration::from_secs(3600) };

/// An index with entries `name-0` and `name-1`, and tiers.
struct Place {
    filled: Filled,
    tiers: Arc<Tiers>,
    _folder: tempfile::TempDir,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = TiersSettings::default();
        settings.disk.path = folder.path().join("disk");
        settings.memory.capacity = ByteSize::mib(1);
        let budget = Budget::new(BudgetSettings { bytes: 1 << 30, blobs: 1 << 10, wait: SOON });
        let tiers = Tiers::open(settings, budget, Arc::new(SystemClock)).await.unwrap();
        Self { filled: Filled::start(2).await, tiers: Arc::new(tiers), _folder: folder }
    }

    fn unnamed(&self, pace: Pace) -> Unnamed {
        Unnamed::new(self.filled.index.clone(), self.tiers.clone(), pace)
    }

    /// Keeps the pack of an entry of that name.
    async fn insert(&self, name: &str) -> (Digest, Guard) {
        let blob = Blob::copy_of(name.as_bytes()).unwrap();
        let Inserted { kept, guard } = self.tiers.insert(&blob, Hints::default()).await;
        assert!(matches!(kept, Kept::Disk));
        (blob.digest(), guard)
    }

    /// Removes the entry of that name; what is told of it.
    async fn tombstone(&self, name: &str) -> IndexEvent {
        let key = key(name);
        assert!(self.filled.index.tombstone(&key, "a test".into()).await.unwrap());
        IndexEvent::Tombstoned { key, pack: Digest::of(name.as_bytes()) }
    }

    fn has(&self, pack: &Digest) -> bool {
        assert_eq!(self.tiers.memory().holds(pack), self.tiers.disk().holds(pack));
        self.tiers.holds(pack)
    }
}

fn key(name: &str) -> ArtifactKey {
    value::components("test", name.as_bytes()).key()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_takes_its_pack_out_of_memory_and_disk() {
    let place = Place::new().await;
    let (wrong, _) = place.insert("name-0").await;
    let (right, _) = place.insert("name-1").await;
    let (index, tiers, stop) =
        (place.filled.index.clone(), place.tiers.clone(), CancellationToken::new());
    let mut changes = tiers.changes();
    // A removal before it listens is one that nobody told of.
    let following = tokio::spawn(follow::index(index, tiers, AT_ONCE, stop.clone()));
    assert!(place.has(&wrong));
    place.tombstone("name-0").await;
    let gone = async { while changes.recv().await.unwrap() != Change::Lost(wrong) {} };
    tokio::time::timeout(SOON, gone).await.expect("it is removed");
    assert!(!place.has(&wrong) && place.has(&right));
    stop.cancel();
    following.await.unwrap();
    place.filled.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_relies_on_goes_when_nobody_does() {
    let place = Place::new().await;
    let mut unnamed = place.unnamed(JUST_STARTED);
    let (pack, guard) = place.insert("name-0").await;
    unnamed.apply(&place.tombstone("name-0").await).await.unwrap();
    unnamed.due().await;
    unnamed.look().await.unwrap();
    assert!(place.has(&pack), "it is relied on");
    drop(guard);
    unnamed.due().await;
    unnamed.look().await.unwrap();
    assert!(!place.has(&pack));
    place.filled.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_after_its_key_was_removed_goes() {
    let place = Place::new().await;
    let mut unnamed = place.unnamed(JUST_STARTED);
    unnamed.apply(&place.tombstone("name-0").await).await.unwrap();
    for (name, stays) in [("name-0", false), ("name-1", true), ("published later", true)] {
        let (pack, guard) = place.insert(name).await;
        drop(guard);
        unnamed.arrived(&pack).await.unwrap();
        assert_eq!(place.has(&pack), stays, "{name}");
    }
    place.filled.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_nobody_told_of_is_found() {
    let place = Place::new().await;
    let mut packs = Vec::new();
    for name in ["name-0", "name-1", "of another cluster"] {
        packs.push(place.insert(name).await.0);
    }
    place.tombstone("name-0").await;

    let mut unnamed = place.unnamed(JUST_STARTED);
    unnamed.apply(&IndexEvent::Reset).await.unwrap();
    unnamed.look().await.unwrap();
    assert!(place.has(&packs[0]), "it may be promised to a publication");

    let mut unnamed = place.unnamed(AT_ONCE);
    unnamed.due().await;
    unnamed.look().await.unwrap();
    assert_eq!(packs.iter().map(|pack| place.has(pack)).collect::<Vec<_>>(), [false, true, true]);

    drop(place.insert("name-0").await);
    unnamed.doubt();
    unnamed.due().await;
    unnamed.look().await.unwrap();
    assert!(!place.has(&packs[0]), "after a lag, too");
    place.filled.stop().await;
}
