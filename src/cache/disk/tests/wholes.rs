//! Blobs that belong together: who leaves first, what stays, what outlasts a restart.

use std::{collections::BTreeSet, fs, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::cache::disk::references::{References, Referred};

fn pieces(blobs: &[Blob]) -> Vec<Piece> {
    blobs.iter().map(|blob| Piece { pack: blob.digest(), size: blob.size() }).collect()
}

async fn put_whole(tier: &DiskTier, whole: &Blob, of: &[Blob]) {
    tier.put(whole, normal()).await.unwrap();
    assert!(tier.keep_together(&whole.digest(), &pieces(of)).await.unwrap());
    for piece in of {
        tier.put(piece, normal()).await.unwrap();
    }
}

fn lru(capacity: u64) -> Folder {
    let mut folder = Folder::new(capacity);
    folder.settings.eviction = EvictionSettings::Lru;
    folder
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_use_of_a_whole_is_one_of_its_pieces() {
    let folder = lru(5000);
    let tier = folder.open();
    let (whole, other) = (blob(1, 1000), blob(9, 1000));
    let of = [blob(2, 1000), blob(3, 1000)];
    put_whole(&tier, &whole, &of).await;
    folder.clock.advance(HOUR);
    tier.put(&other, normal()).await.unwrap();
    folder.clock.advance(HOUR);
    assert!(tier.keep_together(&whole.digest(), &pieces(&of)).await.unwrap());
    // Of the three older files none was read since: the newer one goes.
    tier.put(&blob(10, 2000), normal()).await.unwrap();
    assert!(!tier.holds(&other.digest()));
    assert!([&whole, &of[0], &of[1]].iter().all(|blob| tier.holds(&blob.digest())));
}

#[tokio::test]
async fn an_earlier_version_opens_the_index_and_one_by_a_later_version_is_opened() {
    let folder = lru(5000);
    let (whole, piece) = (blob(1, 1000), blob(2, 1000));
    let tier = folder.open();
    put_whole(&tier, &whole, std::slice::from_ref(&piece)).await;
    drop(tier);
    let path = folder.settings.path.join("index");
    let options = rocksdb::Options::default();
    // RocksDB opens a database only by the names of all its families.
    let mut db = rocksdb::DB::open_cf(&options, &path, ["files", "uploads"]).unwrap();
    db.create_cf("of-a-later-version", &options).unwrap();
    drop(db);
    let tier = folder.open();
    assert!(!path.with_extension("broken").exists());
    assert!(tier.holds(&whole.digest()) && tier.holds(&piece.digest()));
}

#[tokio::test]
async fn the_whole_goes_before_a_piece_that_another_whole_needs_too() {
    let folder = lru(6000);
    let tier = folder.open();
    let (old, new) = (blob(1, 1000), blob(2, 1000));
    let (alone, shared) = (blob(3, 1000), blob(4, 1000));
    put_whole(&tier, &old, &[alone.clone(), shared.clone()]).await;
    folder.clock.advance(HOUR);
    put_whole(&tier, &new, std::slice::from_ref(&shared)).await;
    folder.clock.advance(HOUR);
    let gone = |blobs: &[&Blob]| blobs.iter().filter(|b| !tier.holds(&b.digest())).count();
    // 4 of 6 thousand bytes are taken: three thousand more make the oldest go.
    tier.put(&blob(10, 3000), normal()).await.unwrap();
    assert_eq!(gone(&[&old]), 1, "the whole first");
    assert_eq!(gone(&[&alone, &shared, &new]), 0);
    tier.put(&blob(11, 1000), normal()).await.unwrap();
    assert_eq!(gone(&[&alone]), 1, "then the piece that nothing needs any more");
    assert_eq!(gone(&[&shared, &new]), 0, "what a newer whole needs stays with it");
}

#[tokio::test]
async fn a_whole_is_worth_what_it_saves_for_all_its_bytes() {
    let folder = Folder::new(10_000);
    let tier = folder.open();
    // Ten seconds for its own hundred bytes would outlast the other for days.
    let (whole, piece, other) = (blob(1, 100), blob(2, 5000), blob(3, 4000));
    let cost = |compile_seconds| Hints { compile_seconds, ..Hints::default() };
    tier.put(&whole, cost(10.0)).await.unwrap();
    tier.keep_together(&whole.digest(), &pieces(std::slice::from_ref(&piece))).await.unwrap();
    tier.put(&piece, cost(0.0)).await.unwrap();
    tier.put(&other, cost(20.0)).await.unwrap();
    tier.put(&blob(4, 3000), cost(100.0)).await.unwrap();
    assert!(tier.holds(&other.digest()));
    assert!(!tier.holds(&whole.digest()) && !tier.holds(&piece.digest()));
}

#[tokio::test]
async fn pieces_of_a_pinned_or_guarded_whole_stay() {
    let folder = lru(4000);
    let tier = folder.open();
    let (whole, piece) = (blob(1, 1000), blob(2, 1000));
    put_whole(&tier, &whole, std::slice::from_ref(&piece)).await;
    let press = async |from: u64| {
        for n in from..from + 5 {
            folder.clock.advance(HOUR);
            tier.put(&blob(n, 2000), normal()).await.unwrap();
        }
    };
    tier.set_pinned(&whole.digest(), true).await.unwrap();
    press(10).await;
    assert!(tier.holds(&piece.digest()));
    let refused = tier.put(&blob(20, 2500), normal()).await.unwrap_err();
    assert!(matches!(refused, TierError::Full { .. }), "{refused}");
    let guard = tier.guard(&whole.digest());
    tier.set_pinned(&whole.digest(), false).await.unwrap();
    press(30).await;
    assert!(tier.holds(&piece.digest()));
    drop(guard);
    press(40).await;
    assert!(!tier.holds(&whole.digest()) && !tier.holds(&piece.digest()));
}

#[tokio::test]
async fn what_belongs_together_is_known_after_a_restart() {
    let folder = lru(5000);
    let (whole, piece, other) = (blob(1, 1000), blob(2, 1000), blob(3, 1000));
    let tier = folder.open();
    put_whole(&tier, &whole, std::slice::from_ref(&piece)).await;
    let away = blob(4, 1000);
    put_whole(&tier, &away, std::slice::from_ref(&piece)).await;
    folder.clock.advance(HOUR);
    tier.put(&other, normal()).await.unwrap();
    tier.set_pinned(&whole.digest(), true).await.unwrap();
    drop(tier);
    fs::remove_file(folder.file(&away)).unwrap();
    let tier = folder.open();
    assert_eq!(&*tier.pieces(&whole.digest()), &*pieces(std::slice::from_ref(&piece)));
    assert!(tier.pieces(&away.digest()).is_empty(), "what is not here holds nothing");
    tier.put(&blob(10, 3000), normal()).await.unwrap();
    assert!(!tier.holds(&other.digest()) && tier.holds(&piece.digest()));
    tier.remove(&whole.digest()).await.unwrap();
    drop(tier);
    let tier = folder.open();
    assert!(tier.pieces(&whole.digest()).is_empty());
    tier.put(&blob(11, 1500), normal()).await.unwrap();
    assert!(!tier.holds(&piece.digest()), "nothing holds it any more");
}

/// The file of the whole lost its record, not what it is made of.
#[tokio::test]
async fn a_whole_that_is_adopted_holds_its_pieces_again() {
    let folder = lru(5000);
    let (whole, piece) = (blob(1, 1000), blob(2, 1000));
    let tier = folder.open();
    put_whole(&tier, &whole, std::slice::from_ref(&piece)).await;
    let index = &tier.store.index;
    index.write(&[], &[whole.digest()]).unwrap();
    index.put_whole(&whole.digest(), &pieces(std::slice::from_ref(&piece))).unwrap();
    drop(tier);
    // Once with a record that says nothing, and once from what was written then.
    for adopted in [1, 0] {
        let tier = folder.open();
        assert_eq!(tier.swept().await.adopted, adopted);
        assert_eq!(tier.pieces(&whole.digest()).len(), 1);
        tier.set_pinned(&whole.digest(), true).await.unwrap();
        tier.put(&blob(3, 3000), normal()).await.unwrap();
        assert!(tier.put(&blob(4, 3001), normal()).await.is_err(), "the piece is held");
    }
}

#[test]
fn references_are_bounded_and_one_level_deep() {
    let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
    let piece = |pack| Piece { pack, size: 1 };
    let mut references = References::new(3);
    assert!(
        matches!(references.refer(&a, &[piece(b), piece(a)]), Referred::New(all) if all.len() == 1)
    );
    assert_eq!(references.refer(&a, &[piece(b)]), Referred::Known);
    assert!(matches!(references.refer(&b, &[piece(c)]), Referred::Refused(_)), "a piece");
    assert!(matches!(references.refer(&c, &[piece(a)]), Referred::Refused(_)), "of a whole");
    // Artifacts of other targets may have the same whole and other pieces.
    assert!(matches!(references.refer(&a, &[piece(c)]), Referred::New(all) if all.len() == 2));
    let many = [1u8, 2].map(|n| piece(Digest::of(&[n])));
    let another = Digest::of(b"another");
    assert!(matches!(references.refer(&another, &many), Referred::Refused(_)), "too many");
    references.forget(&a);
    assert_eq!(references.len(), 0);
    assert!(matches!(references.refer(&another, &many), Referred::New(_)));
}

#[derive(Debug, Clone)]
enum Op {
    /// The whole and its pieces, as a fetch brings them.
    Fetch(usize),
    /// Something else.
    Put(u64),
    Use(usize),
    Read(usize),
    Pin(usize, bool),
    Lose(usize),
    Reopen,
}

const WHOLES: usize = 6;
const PIECES: usize = 9;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..WHOLES).prop_map(Op::Fetch),
        6 => (0..30u64).prop_map(Op::Put),
        4 => (0..WHOLES).prop_map(Op::Use),
        3 => (0..PIECES).prop_map(Op::Read),
        2 => (0..WHOLES, any::<bool>()).prop_map(|(n, pin)| Op::Pin(n, pin && n < 2)),
        1 => (0..PIECES).prop_map(Op::Lose),
        1 => Just(Op::Reopen),
    ]
}

/// Which pieces each whole has: shared ones among them.
fn members(which: usize) -> Vec<usize> {
    (0..PIECES).filter(|piece| (piece + which).is_multiple_of(3) || *piece == which).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever happens: within the bounds, no whole outlives a piece that was not taken
    /// away by name, and nothing that is pinned leaves, nor any piece of it.
    #[test]
    fn no_whole_is_left_without_its_pieces(
        ops in prop::collection::vec(op(), 1..80),
        cost_aware in any::<bool>(),
        sizes in prop::collection::vec(8..900usize, WHOLES + PIECES),
    ) {
        const CAPACITY: u64 = 6000;
        const ENTRIES: u64 = 14;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut folder = Folder::new(CAPACITY);
        folder.settings.max_entries = ENTRIES;
        if !cost_aware {
            folder.settings.eviction = EvictionSettings::Lru;
        }
        let seed = |n: usize| 1000 + n as u64;
        let wholes: Vec<_> = (0..WHOLES).map(|n| blob(seed(n), sizes[n])).collect();
        let parts: Vec<_> =
            (0..PIECES).map(|n| blob(seed(WHOLES + n), sizes[WHOLES + n])).collect();
        let of = |n: usize| members(n).into_iter().map(|p| parts[p].clone()).collect::<Vec<_>>();
        // Complete once, and no piece of them was taken away since.
        let (mut complete, mut pinned) = (BTreeSet::new(), BTreeSet::new());
        let mut tier = Some(folder.open());
        runtime.block_on(async {
            for op in ops {
                let open = tier.as_ref().unwrap();
                let complete_now = |n: usize| {
                    open.holds(&wholes[n].digest())
                        && of(n).iter().all(|piece| open.holds(&piece.digest()))
                };
                match op {
                    Op::Fetch(n) => {
                        let hints = Hints { compile_seconds: n as f64, ..Hints::default() };
                        if open.put(&wholes[n], hints).await.is_ok() {
                            open.keep_together(&wholes[n].digest(), &pieces(&of(n))).await.unwrap();
                            for piece in of(n) {
                                let _ = open.put(&piece, normal()).await;
                            }
                        }
                        if complete_now(n) {
                            complete.insert(n);
                        }
                    }
                    Op::Put(n) => {
                        let _ = open.put(&blob(n, 200 * (n as usize % 5)), normal()).await;
                    }
                    Op::Use(n) => {
                        open.keep_together(&wholes[n].digest(), &pieces(&of(n))).await.unwrap();
                    }
                    Op::Read(n) => {
                        open.get(&parts[n].digest()).await.unwrap();
                    }
                    Op::Pin(n, pin) => {
                        let here = open.set_pinned(&wholes[n].digest(), pin).await.unwrap();
                        match pin && here && complete.contains(&n) {
                            true => pinned.insert(n),
                            false => pinned.remove(&n),
                        };
                    }
                    Op::Lose(n) => {
                        open.remove(&parts[n].digest()).await.unwrap();
                        complete.retain(|whole| !members(*whole).contains(&n));
                        pinned.retain(|whole| !members(*whole).contains(&n));
                    }
                    Op::Reopen => {
                        drop(tier.take());
                        tier = Some(folder.open());
                    }
                }
                folder.clock.advance(Duration::from_secs(60));
                let open = tier.as_ref().unwrap();
                let usage = open.usage();
                assert!(usage.bytes <= CAPACITY && usage.entries <= ENTRIES, "{usage:?}");
                assert_eq!(folder.bytes_on_disk(), usage.bytes);
                complete.retain(|n| open.holds(&wholes[*n].digest()));
                for n in &complete {
                    let missing = of(*n).iter().filter(|p| !open.holds(&p.digest())).count();
                    assert_eq!(missing, 0, "pieces of whole {n}, which is here");
                }
                assert!(pinned.is_subset(&complete), "a pinned whole is gone");
            }
        });
    }
}
