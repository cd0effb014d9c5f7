//! What this program does with what a version to come wrote: every format of CHANGELOG.md.
//!
//! A node's own store is not opened, and nothing in it is changed. An artifact is not read,
//! with a code that does not say "corrupt". Each says which version it takes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::{harness::TestCluster, redis::Redis};

/// Where a format is tried.
enum Tried {
    /// Here: these files make a folder, which the words are about.
    Folder(&'static [(&'static str, &'static str)], &'static [&'static str], &'static str),
    /// Here, in a test of its own.
    Here,
    /// In that file, by a test of that name.
    There(&'static str, &'static str),
    /// Nothing reads it that was not made for it: why.
    Never(&'static str),
}

use Tried::{Folder, Here, Never, There};

const PLAN: &str = r#"{"version": 9, "kernels": "of another kind"}"#;
const LATER: &str = "which a later Kiln wrote";

/// By the rows of CHANGELOG.md's table.
#[rustfmt::skip]
const FORMATS: &[(&str, Tried)] = &[
    ("gRPC API, bytes between nodes", Never("a field that is not known is passed over; a command waits: cluster/src/versions.rs")),
    ("bytes between nodes in TLS", Never("ALPN: two ends that have none in common do not speak")),
    ("node of a certificate", There("src/net/tls/identity.rs", "a_certificate_names_one_node_or_nobody")),
    ("key of an artifact", Never("another format is another key, and so a miss")),
    ("headers of a CUDA source, as files", Never("part of the key")),
    ("signed manifest", Never("in the index, whose note says which version it needs")),
    ("index and log (postcard in RocksDB)", Here),
    ("what a root signed", There("proto/src/root.rs", "what_says_too_much_or_too_little_is_not_signed_and_not_read")),
    ("attestation", Never("read by the type that it names: another one is malformed, src/attest/mod.rs")),
    ("token of a client, or of a node that joins", There("cluster/src/secret.rs", "a_token_is_read_as_it_is_written_and_no_other_form_is")),
    ("line of the audit log", There("src/audit/tests.rs", "a_line_of_a_version_to_come_is_read")),
    ("which version an index needs", Here),
    ("data folder: what lies where", Here),
    ("disk tier's index: column families", There("src/cache/disk/tests/wholes.rs", "one_by_a_later_version_is_opened")),
    ("objects: `packs/ab/DIGEST.GENERATION`", There("src/cache/object/name.rs", "ObjectName::parse(other), None")),
    ("backup of the index", Here),
    ("launch plan, `plan.json`", Folder(&[("plan.json", PLAN)], &["inspect"], LATER)),
    ("names of a program, `signature.json`", Folder(&[("signature.json", r#"{"version": 2}"#)], &["inspect"], LATER)),
    ("program of the interpreter, `graph.json`", Folder(&[("graph.json", r#"{"version": 9}"#), ("plan.json", PLAN)], &["exec"], LATER)),
    ("pieces of a whole, `stitching.json`", Here),
    ("graph of a piece, as a worker is told it", Never("a worker is a child of the node, of one version with it")),
    ("artifact of Inductor, `meta.json`", There("python/kiln_torch/worker/artifact.py", "load it with the version that wrote it")),
    ("folder of `kiln run`, `.kiln/folder.json`", There("src/cli/run/later.rs", "a_folder_of_a_version_to_come_is_refused_and_an_odd_one_is_not")),
    ("what its files were made from, `.kiln/inputs.json`", There("src/cli/run/later.rs", "a_folder_of_a_version_to_come_is_refused_and_an_odd_one_is_not")),
    ("file of `cache_dir`", There("python/tests/test_compilation_parts.py", "test_an_entry_of_a_later_version_is_a_miss_and_stays")),
    ("package that skips tracing", Never("part of the name under which it is looked for")),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_format_is_tried() {
    let page = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let rows: BTreeSet<_> = rows.filter(|row| *row != "format").collect();
    assert_eq!(rows, FORMATS.iter().map(|(row, _)| *row).collect());
    for (row, tried) in FORMATS {
        match tried {
            There(file, test) => {
                let text = std::fs::read_to_string(root().join(file)).unwrap();
                assert!(text.contains(test), "{row}: {file} has no {test}");
            }
            Never(why) => assert!(!why.is_empty(), "{row}"),
            Folder(..) | Here => {}
        }
    }
}

struct Said {
    code: i32,
    words: String,
}

/// Runs `kiln` with `input` on stdin.
async fn kiln(arguments: &[&str], input: &[u8]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["KILN_ENDPOINT", "KILN_SOCKET", "KILN_TARGET", "KILN_NAMESPACE"] {
        command.env_remove(name);
    }
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(input).await;
    let ended = child.wait_with_output().await.unwrap();
    let words = [ended.stdout, ended.stderr].concat();
    let words = String::from_utf8_lossy(&words).replace("\n ", " ");
    Said { code: ended.status.code().unwrap(), words }
}

#[tokio::test]
async fn an_artifact_of_a_version_to_come_is_incompatible_and_not_corrupt() {
    for (row, tried) in FORMATS {
        let Folder(files, arguments, told) = tried else { continue };
        let home = tempfile::tempdir().unwrap();
        let file = |name| home.path().join(name);
        let (folder, inputs, out) = (file("artifact"), file("inputs"), file("outputs"));
        std::fs::create_dir(&folder).unwrap();
        for (name, text) in *files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let mut words = arguments.to_vec();
        words.push(folder.to_str().unwrap());
        if words[0] == "exec" {
            // No tensor at all.
            std::fs::write(&inputs, b"\x02\0\0\0\0\0\0\0{}").unwrap();
            words.extend(["--inputs", inputs.to_str().unwrap(), "-o", out.to_str().unwrap()]);
        }
        let Said { code, words } = kiln(&words, b"").await;
        assert_eq!(code, 13, "{row}: {words}");
        assert!(words.contains("C003") && words.contains(told), "{row}: {words}");
        assert!(!words.contains("corrupt"), "{row}: {words}");
    }
    let home = tempfile::tempdir().unwrap();
    let path = |name| home.path().join(name).to_str().unwrap().to_owned();
    let (folder, inputs, out) = (path("whole"), path("inputs"), path("outputs"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(format!("{folder}/stitching.json"), r#"{"version": 9, "calls": {}}"#).unwrap();
    std::fs::write(&inputs, b"\x02\0\0\0\0\0\0\0{}").unwrap();
    let whole = ["exec", &folder, "--inputs", &inputs, "-o", &out];
    let Said { code, words } = kiln(&whole, b"").await;
    assert_eq!(code, 13, "{words}");
    assert!(words.contains("C003") && words.contains("version 9"), "{words}");
    let later = kiln_native::split::stitch::Stitching::read(br#"{"version": 9, "calls": {}}"#);
    assert_eq!(later.unwrap_err(), kiln_native::split::stitch::Broken::Version(9));
}

#[tokio::test]
async fn a_backup_of_a_version_to_come_is_refused() {
    let said = kiln(&["cluster", "restore"], b"kiln-index-2\nwhatever comes then").await;
    assert_eq!(said.code, 1, "{}", said.words);
    assert!(said.words.contains("the version that wrote it"), "{}", said.words);
}

/// All below `folder` by name, with what it holds.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

/// Notes in the index that it takes Kiln 7.1.0 to read it.
fn needs_a_version_to_come(data: &Path) {
    let (options, folder) = (rocksdb::Options::default(), data.join("index/index"));
    let families = rocksdb::DB::list_cf(&options, &folder).unwrap();
    let db = rocksdb::DB::open_cf(&options, &folder, families).unwrap();
    let meta = db.cf_handle("meta").unwrap();
    for (key, text) in [("needs", "7.1.0"), ("opened-by", "7.1.3")] {
        db.put_cf(meta, key, postcard::to_stdvec(text).unwrap()).unwrap();
    }
    db.flush_wal(true).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_version_to_come_is_refused_and_left_as_it_is() {
    let mut cluster = TestCluster::start(1).await;
    Redis::connect(&cluster.nodes[0]).await.set("kept", "value").await;
    let node = &mut cluster.nodes[0];
    node.terminate().await;
    let disk = node.config.disk_path();
    // What a later version keeps there is none of this one's blobs.
    std::fs::write(disk.join("blobs/of another kind"), "bytes").unwrap();
    for folder in [node.data().to_owned(), disk] {
        let format = folder.join("format");
        let own = std::fs::read_to_string(&format).unwrap();
        std::fs::write(&format, "format 2\nkiln 7.1.0\n").unwrap();
        let before = contents(node.data());
        node.spawn();
        assert!(!node.wait_ready().await, "it starts");
        let log = node.log();
        let told = format!("{} has format 2, which Kiln 7.1.0 wrote", folder.display());
        assert!(log.contains(&told) && log.contains("start the node with 7.1.0"), "{log}");
        assert!(contents(node.data()) == before, "something was changed");
        std::fs::write(&format, own).unwrap();
    }
    needs_a_version_to_come(node.data());
    node.spawn();
    assert!(!node.wait_ready().await, "it starts");
    let log = node.log();
    let told = "the index needs Kiln 7.1.0 or later (it was last opened by 7.1.3)";
    assert!(log.contains(told), "{log}");
}
