//! Data folders that released versions wrote.
//!
//! `tests/fixtures/data/VERSION.tar.gz` is the data folder of a `kiln dev` of one node that
//! stopped in an orderly way, without what is made anew (`workers`, RocksDB's `LOG` and
//! `OPTIONS`). It holds the SET of `kept` and the PTX of a kernel of that name, in the
//! namespace `test`. Each release adds its own; none is ever changed. Its signing key is that
//! of a cluster that exists nowhere.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use kiln::config::Config;

use crate::{
    harness::{Configure, TestCluster},
    redis::Redis,
};

/// Version, how its folder gets to a node, the key of its kernel, and what `kept` is.
const RELEASED: &[(&str, Configure, &str, &str)] = &[(
    "0.2.0",
    |_, config| unpack("0.2.0", config),
    "3fa9233e3694ee70e8f0b65113987454c00bdb8fa2c358ea6b125ad3d4121202",
    "value of 0.2.0",
)];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/data"].iter().collect()
}

fn unpack(version: &str, config: &Config) {
    let archive = folder().join(format!("{version}.tar.gz"));
    let home = config.data_dir.parent().unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(home).status();
    assert!(unpacked.unwrap().success(), "{archive:?}");
}

#[test]
fn every_data_folder_that_is_kept_is_tried() {
    let mut kept: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap()).collect();
    kept.sort_by_key(std::fs::DirEntry::file_name);
    let kept: Vec<_> = kept.iter().map(|e| e.file_name().into_string().unwrap()).collect();
    let tried = RELEASED.iter().map(|(version, ..)| format!("{version}.tar.gz"));
    assert_eq!(kept, tried.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_of_a_released_version_opens_with_all_that_it_has() {
    for &(version, unpacked, key, value) in RELEASED {
        let cluster = TestCluster::start_with(1, unpacked).await;
        let mut redis = Redis::connect(&cluster.nodes[0]).await;
        assert_eq!(redis.get("kept").await.as_deref(), Some(value.as_bytes()), "{version}");
        let out = tempfile::tempdir().unwrap();
        let mut get = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        get.args(["get", key, "--namespace", "test", "-o"]).arg(out.path());
        get.env("KILN_ENDPOINT", format!("http://{}", cluster.nodes[0].config.grpc_listen));
        let got = get.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
        assert!(got.status.success(), "{version}: {}", String::from_utf8_lossy(&got.stderr));
        let ptx = std::fs::read_to_string(out.path().join("module.ptx")).unwrap();
        assert!(ptx.contains("471101"), "{version}: {ptx}");
        // It writes on, with the same identity.
        redis.set("new", "x").await;
    }
}
