//! A snapshot replaces the state whole or not at all, whatever goes wrong on the way.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use ed25519_dalek::SigningKey;
use kiln_proto::{ArtifactKey, SignedManifest, Token};

use super::{
    super::{
        install::{fill, install},
        meta::{self, Set},
        snapshot::{Bytes, Pair},
        staging::Staged,
    },
    *,
};
use crate::{
    codec,
    command::Publication,
    error::ClusterError,
    raft::SnapshotMeta,
    replica::Replica,
    table::{EntryRecord, NodeRecord, Table, read},
};

/// A store that applied `count` commands, and what it holds then.
async fn filled(dir: &Path, count: u64) -> (Arc<Store>, Machine, (u64, Digest)) {
    let store = open(dir).unwrap();
    let mut machine = machine(&store);
    apply(&mut machine, (1..=count).map(report).collect()).await;
    let digest = store.digest().unwrap();
    (store, machine, digest)
}

/// The state of `machine` as a file in the folder of `store`.
async fn staged(machine: &mut Machine, store: &Store) -> (SnapshotMeta, Staged) {
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    let staged = snapshot.snapshot.stage(store, &snapshot.meta).await.unwrap();
    (snapshot.meta, staged)
}

fn is_empty(store: &Store, set: Set) -> bool {
    Table::ALL.into_iter().all(|table| {
        let mut pairs = store.db.raw_iterator_cf(store.cf(set.family(table)));
        pairs.seek_to_first();
        !pairs.valid()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut machine, before) = filled(dir.path(), 50).await;
    let (_, staged) = staged(&mut machine, &store).await;
    let mut bytes = fs::read(&staged.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&staged.path, bytes).unwrap();
    assert!(install(&store, &staged).is_err());
    assert_eq!(store.digest().unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_replaces_nothing_and_the_node_starts() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut machine, before) = filled(dir.path(), 20).await;
    let (meta, _) = staged(&mut machine, &store).await;
    let blob =
        |n: u8| codec::encode(&crate::table::BlobRecord { hits: n.into(), ..Default::default() });
    let key = |n: u8| Bytes(vec![n; 32]);
    let good: Vec<Pair> = (0..9).map(|n| (Table::Blobs, key(n), Bytes(blob(n).unwrap()))).collect();
    let wrong = [
        (Table::Blobs, key(9), Bytes(b"no record".to_vec())),
        (Table::Blobs, Bytes(b"no digest".to_vec()), Bytes(blob(9).unwrap())),
        (Table::Entries, key(9), Bytes(blob(9).unwrap())),
    ];
    for wrong in wrong {
        let mut staging = Staging::create(store.incoming(), &meta).unwrap();
        // The first batch is written before the second is found wrong.
        staging.push(&codec::encode(&good).unwrap()).unwrap();
        staging.push(&codec::encode(&vec![wrong]).unwrap()).unwrap();
        let data = SnapshotData::Staged(staging.finish().unwrap());
        assert!(machine.install_snapshot(&meta, data).await.is_err());
        assert_eq!(store.digest().unwrap(), before, "readers see the old state");
    }
    drop((machine, store));
    let store = open(dir.path()).unwrap();
    assert_eq!(store.digest().unwrap(), before);
    assert!(is_empty(&store, Set::B), "what was written in vain is gone");
    assert_eq!(fs::read_dir(store.incoming()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_before_the_swap_leaves_the_old_state() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, mut whole, expected) = filled(dir_a.path(), 500).await;
    let (b, mut machine_b, before) = filled(dir_b.path(), 9).await;
    let (meta, first) = staged(&mut whole, &b).await;
    // As far as the last record, and a crash.
    fill(&b, Set::B, &first).unwrap();
    b.db.flush_wal(true).unwrap();
    drop((first, machine_b, b));
    let b = open(dir_b.path()).unwrap();
    assert_eq!(b.digest().unwrap(), before);
    assert!(is_empty(&b, Set::B));
    // It starts as ever, and takes the snapshot when it comes again, and the next one.
    machine_b = machine(&b);
    for live in [Set::B, Set::A] {
        let (_, again) = staged(&mut whole, &b).await;
        machine_b.install_snapshot(&meta, SnapshotData::Staged(again)).await.unwrap();
        assert_eq!(b.digest().unwrap(), expected);
        assert!(is_empty(&b, live.other()));
    }
    drop((machine_b, b));
    assert_eq!(open(dir_b.path()).unwrap().digest().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_version_began_in_place_is_finished() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, mut whole, expected) = filled(dir_a.path(), 500).await;
    let mark = |store: &Store, staged: &mut Staged| {
        staged.keep = true;
        let name = staged.path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut batch = WriteBatch::default();
        store.put_meta(&mut batch, meta::INSTALLING, &name).unwrap();
        batch.delete_cf(store.cf(meta::META), meta::APPLIED);
        for table in Table::ALL {
            let family = store.cf(Set::A.family(table));
            batch.delete_range_cf(family, &[][..], &[0xff; 64][..]);
        }
        store.db.write(batch).unwrap();
        store.db.flush_wal(true).unwrap();
    };
    let (b, machine_b, _) = filled(dir_b.path(), 9).await;
    let (_, mut file) = staged(&mut whole, &b).await;
    mark(&b, &mut file);
    drop((machine_b, b));
    let b = open(dir_b.path()).unwrap();
    assert_eq!(b.digest().unwrap(), expected);
    assert_eq!(fs::read_dir(b.incoming()).unwrap().count(), 0);

    // Without the file there is no state at all to go on with.
    let dir_c = tempfile::tempdir().unwrap();
    let (c, machine_c, _) = filled(dir_c.path(), 9).await;
    let (_, mut file) = staged(&mut whole, &c).await;
    mark(&c, &mut file);
    fs::remove_file(&file.path).unwrap();
    drop((machine_c, c));
    let Err(ClusterError::Storage(why)) = open(dir_c.path()) else { panic!("it started") };
    assert!(why.contains("join again"), "{why}");
}

const SIGNER: u64 = 1;

pub(super) fn publications(count: u8) -> Vec<Command> {
    let node = NewNode {
        candidate: [1; 16],
        facts: NodeFacts::default(),
        key: SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes(),
    };
    let mut commands = vec![Command::Found { cluster: 5, nodes: vec![node] }];
    for n in 0..count {
        let key = ArtifactKey::from_bytes([n; 32]);
        let token = Token(commands.len() as u64 + 1);
        commands.push(Command::Acquire { key, node: SIGNER, request: 1 });
        let manifest =
            SignedManifest { bytes: vec![n; 64], signer: SIGNER, signature: vec![0; 64] };
        commands.push(Command::Publish(Publication {
            key,
            token,
            node: SIGNER,
            pack: Digest::of(&[n]),
            pack_size: 1,
            compile_seconds: 1.0,
            manifest: Arc::new(manifest),
        }));
    }
    commands
}

/// Looks up every key until `stop`, which no moment of any installation may disturb.
async fn read_all(replica: &Replica, count: u8, stop: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        for n in 0..count {
            let found = replica.entry(&ArtifactKey::from_bytes([n; 32])).await.unwrap();
            let entry = found.unwrap_or_else(|| panic!("key {n} is missing"));
            assert_eq!(entry.holders, [SIGNER], "key {n} has lost its holder");
        }
        let all = replica.entries(&[], usize::MAX, |_| true).unwrap();
        assert_eq!(all.len(), usize::from(count));
        rounds += 1;
    }
    rounds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_find_every_entry_and_its_holders_while_snapshots_are_installed() {
    const KEYS: u8 = 100;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let watch = watch(&store);
    let mut machine = Machine::new(Arc::clone(&store), Arc::clone(&watch)).unwrap();
    let commands = (1..).zip(publications(KEYS)).map(|(index, command)| entry(index, command));
    apply(&mut machine, commands.collect()).await;
    assert!(read::<EntryRecord>(&*store, ArtifactKey::from_bytes([7; 32])).unwrap().is_some());
    assert!(read::<NodeRecord>(&*store, SIGNER).unwrap().is_some());
    let replica = Arc::new(Replica::new(Arc::clone(&store), watch));
    let stop = Arc::new(AtomicBool::new(false));
    let reading = {
        let (replica, stop) = (Arc::clone(&replica), Arc::clone(&stop));
        tokio::spawn(async move { read_all(&replica, KEYS, &stop).await })
    };
    for _ in 0..20 {
        let (meta, file) = staged(&mut machine, &store).await;
        machine.install_snapshot(&meta, SnapshotData::Staged(file)).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reading.await.unwrap() > 0);
}
