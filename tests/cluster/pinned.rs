//! What a command believes of what it is given: the keys and roots that its user pinned.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, process::Command};

use serde_json::Value;

use crate::{
    asked::kiln,
    harness::{TestCluster, saxpy},
    root::{Office, done},
    rotation::keys_of,
};

/// A pin that was meant and cannot be read is a mistake: nothing is asked, and nothing runs.
#[test]
fn a_pin_that_is_no_text_is_refused_and_not_taken_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, ran, source, shared) = (file("out"), file("ran"), file("k.cu"), file("shared"));
    std::fs::write(&source, "extern \"C\" __global__ void f() {}").unwrap();
    std::fs::create_dir(&shared).unwrap();
    let (key, dir) = ("ab".repeat(32), format!("shared={shared}"));
    let run = ["run", "--target", "any", "--dir", &dir, "--", "touch", &ran];
    let get = ["get", &key, "-o", &out];
    let compile = ["compile", &source, "--target", "sm_90"];
    let add = ["cluster", "add", "127.0.0.1:1"];
    // Nobody listens there: who believed everybody would say that, or run without the cache.
    let lines: [(&str, &[&str]); 5] = [
        ("KILN_SIGNERS", &run),
        ("KILN_ROOT", &run),
        ("KILN_ROOT", &get),
        ("KILN_ROOT", &compile),
        ("KILN_ROOT", &add),
    ];
    for (variable, line) in lines {
        for pin in [b"\xff\xfe".as_slice(), b"\xe9,", b"zz", b","] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
            command
                .args(line)
                .env_remove("KILN_DISABLE")
                .env("KILN_ENDPOINT", "http://127.0.0.1:1");
            let told = command.env(variable, OsStr::from_bytes(pin)).output().unwrap();
            let said = String::from_utf8_lossy(&told.stderr).into_owned();
            assert_eq!(told.status.code(), Some(2), "{variable} {line:?} {pin:?}: {said}");
            assert!(said.contains(variable), "{variable} {line:?} {pin:?}: {said}");
            assert!(!Path::new(&ran).exists() && !Path::new(&out).exists());
        }
    }
}

/// Commands that take something hold it against a pinned root, and against the namespace.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_takes_is_certified_by_the_pinned_root() {
    let cluster = TestCluster::start(1).await;
    let any = &cluster.nodes[0];
    let (office, root) = Office::init(any, cluster.folder.path(), "office").await;
    let (_, stranger) = Office::init(any, cluster.folder.path(), "stranger").await;
    done(Some(any), &["add", &office.sign("root.json", false).await]).await;
    let mine = keys_of(any, any.id).await[0]["key"].as_str().unwrap().to_owned();
    let key = any.compile(saxpy("made")).await.unwrap().key.to_string();
    let (file, other) = (office.file("attested.json"), office.file("again.json"));
    assert_eq!(kiln(any, &["attest", &key, "--out", &file]).await.0, Some(0));
    // Also where nobody takes its bytes: `kiln compile` alone, and `kiln warm`.
    let source = office.file("made.cu");
    std::fs::write(&source, "extern \"C\" __global__ void f(float* x) { x[0] = 1.f; }").unwrap();
    let compiles = async |pinned: &str| {
        let compile = ["compile", &source, "--target", "sm_90", "--trust-root", pinned];
        kiln(any, &compile).await
    };
    let warms = async |pinned: &str| {
        kiln(any, &["warm", &source, "--target", "sm_90", "--trust-root", pinned]).await.0
    };
    let verify = async |pinned: &str, more: &[&str]| {
        let verify = ["attest", "--verify", &file, "--trust-root", pinned];
        kiln(any, &[&verify[..], more].concat()).await.0
    };
    // Nobody is certified: neither the node's word nor a named key is enough.
    let (code, told) = compiles(&root).await;
    assert!(code == Some(12) && told.to_string().contains("no certificate"), "{told}");
    assert_eq!(warms(&root).await, Some(1));
    assert_eq!(verify(&root, &[]).await, Some(12));
    assert_eq!(verify(&root, &["--signer", &mine]).await, Some(12));
    let attest = ["attest", &key, "--out", &other, "--trust-root", &root];
    assert_eq!(kiln(any, &attest).await.0, Some(12));
    done(Some(any), &["add", &office.issue(&mine, "team", "team.json").await]).await;
    assert_eq!(verify(&root, &[]).await, Some(12), "another namespace");
    done(Some(any), &["add", &office.issue(&mine, "default", "node.json").await]).await;
    assert_eq!(verify(&root, &[]).await, Some(0));
    let (code, told) = compiles(&root).await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(warms(&root).await, Some(0));
    assert_eq!(compiles(&stranger).await.0, Some(12));
    assert_eq!(verify(&root, &["--signer", &mine]).await, Some(0));
    assert_eq!(verify(&stranger, &[]).await, Some(12), "another root");
    assert_eq!(kiln(any, &attest).await.0, Some(0));

    let out = office.file("out");
    let get = ["get", &key[..12], "-o", &out, "--trust-root", &root];
    let (code, told) = kiln(any, &[&get[..], &["--namespace", "team"]].concat()).await;
    assert!(code == Some(20) && !Path::new(&out).exists(), "{told}");
    let (code, told) = kiln(any, &get).await;
    assert_eq!((code, &told["namespace"]), (Some(0), &Value::from("default")), "{told}");
    for empty in ["", ",", " , "] {
        let (code, _) = kiln(any, &["get", &key, "-o", &out, "--trust-root", empty]).await;
        assert_eq!(code, Some(2), "{empty:?}");
    }
}
