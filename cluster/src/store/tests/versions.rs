//! Databases that another version of the program had open.

use std::collections::BTreeMap;

use super::*;

/// Makes a table that this version does not know, with a record or without.
fn of_a_later_version(data_dir: &Path, used: bool) {
    let (options, dir) = (rocksdb::Options::default(), Store::folder(data_dir));
    let families = rocksdb::DB::list_cf(&options, &dir).unwrap();
    let mut db = rocksdb::DB::open_cf(&options, &dir, families).unwrap();
    db.create_cf("later", &options).unwrap();
    if used {
        db.put_cf(db.cf_handle("later").unwrap(), b"key", b"record").unwrap();
    }
}

#[test]
fn a_node_goes_back_to_this_version_unless_a_later_one_was_used() {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner { node: 3, cluster: 5 };
    open(dir.path()).unwrap().set_owner(owner).unwrap();

    of_a_later_version(dir.path(), false);
    assert_eq!(open(dir.path()).unwrap().owner().unwrap(), Some(owner));
    let families = rocksdb::DB::list_cf(&rocksdb::Options::default(), Store::folder(dir.path()));
    assert!(!families.unwrap().contains(&"later".to_owned()));

    of_a_later_version(dir.path(), true);
    let Err(ClusterError::Storage(why)) = open(dir.path()) else { panic!("it opens") };
    assert!(why.contains("a later version of Kiln"), "{why}");
}

fn used(index: u64) -> Entry {
    entry(index, Command::Use { node: 1, hits: Vec::new(), at_unix_ms: 0 })
}

/// Why a program of `version` does not open the index.
fn refused(dir: &Path, version: &str) -> String {
    let before = files(dir);
    let Err(ClusterError::Storage(why)) = super::super::open(dir, &RealDisk, version) else {
        panic!("{version} opens it")
    };
    let data = |files: &BTreeMap<String, Vec<u8>>| {
        let data = files.iter().filter(|(name, _)| name.ends_with(".sst"));
        data.map(|(name, bytes)| (name.clone(), bytes.clone())).collect::<BTreeMap<_, _>>()
    };
    let after = files(dir);
    for (name, bytes) in data(&before) {
        assert_eq!(after.get(&name), Some(&bytes), "{name} was changed");
    }
    why
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(Store::folder(dir)).unwrap().map(|file| file.unwrap());
    let read = |file: std::fs::DirEntry| {
        (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())
    };
    files.map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_is_refused_from_the_first_command_on_that_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let append = async |entries: Vec<Entry>| {
        let mut log = LogStore::new(open(dir.path()).unwrap());
        log.blocking_append(entries).await.unwrap();
    };
    append(vec![report(1)]).await;
    // It went back before anything new was written, and forth again.
    drop(super::super::open(dir.path(), &RealDisk, "0.1.0").unwrap());
    append(vec![report(2), used(3), report(4)]).await;
    let why = refused(dir.path(), "0.1.0");
    let program = env!("CARGO_PKG_VERSION");
    let told = format!("needs Kiln 0.2.0 or later (it was last opened by {program}), and this is");
    assert!(why.contains(&told) && why.contains("start the node with 0.2.0"), "{why}");
    let mut log = LogStore::new(open(dir.path()).unwrap());
    assert_eq!(log.try_get_log_entries(0..9).await.unwrap().len(), 4, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_is_refused_where_a_snapshot_brought_what_it_cannot_read() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).unwrap(), open(dir_b.path()).unwrap());
    let (mut from, mut to) = (machine(&a), machine(&b));
    let mut commands = install::publications(2);
    let key = kiln_proto::ArtifactKey::from_bytes([1; 32]);
    commands.push(Command::Use { node: 1, hits: vec![(key, 3)], at_unix_ms: 5 });
    let entries = (1..).zip(commands).map(|(index, command)| entry(index, command)).collect();
    apply(&mut from, entries).await;
    assert_eq!(b.needs(), None);
    let snapshot = from.get_current_snapshot().await.unwrap().unwrap();
    to.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(a.digest().unwrap(), b.digest().unwrap());
    assert_eq!(b.needs(), Some(semver::Version::new(0, 2, 0)));
    drop((from, to, a, b));
    for dir in [dir_a, dir_b] {
        // The first one only applied them: its tables tell.
        assert!(refused(dir.path(), "0.1.0").contains("needs Kiln 0.2.0 or later"));
        open(dir.path()).unwrap();
    }
}

#[test]
fn an_index_of_a_version_to_come_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = super::super::open(dir.path(), &RealDisk, "7.1.3").unwrap();
    let mut batch = WriteBatch::default();
    store.raise_needs(&mut batch, Some(semver::Version::new(7, 1, 0))).unwrap();
    store.db.write(batch).unwrap();
    store.db.flush_wal(true).unwrap();
    drop(store);
    let why = refused(dir.path(), env!("CARGO_PKG_VERSION"));
    assert!(why.contains("needs Kiln 7.1.0 or later (it was last opened by 7.1.3)"), "{why}");
    let mut batch = WriteBatch::default();
    let store = super::super::open(dir.path(), &RealDisk, "7.1.0").unwrap();
    store.put_meta(&mut batch, super::super::meta::NEEDS, &"nonsense").unwrap();
    store.db.write(batch).unwrap();
    drop(store);
    let why = refused(dir.path(), "7.1.0");
    assert!(why.contains("damaged"), "{why}");
}
