//! Databases that another version of the program had open.

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
