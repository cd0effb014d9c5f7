//! The look at NVRTC: in nobody's way, and taken again where it failed.

use std::{fs::OpenOptions, io::Write};

use crate::*;

#[tokio::test]
async fn a_look_that_takes_long_holds_up_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    assert!(std::process::Command::new("mkfifo").arg(&gate).status().unwrap().success());
    // Both ends: nobody waits for us to open it, and what is written stays in it.
    let mut gate = OpenOptions::new().read(true).write(true).open(&gate).unwrap();
    let waits = format!("read _ < {}/gate\nexec {KILN} \"$@\"", folder.path().display());
    let (_script, program) = script(&waits);
    let node = Node::looking(&program, nvrtc("KILN_NVRTC_DIR"), |_| {});
    let names = |node: &Node| -> Vec<String> {
        node.compilers.fingerprints().into_iter().map(|f| f.compiler).collect()
    };
    node.until(|found| found.len() == 1).await;
    assert_eq!(names(&node), ["eager"]);
    let input = cuda(SAXPY, "sm_90");
    let compiler = node.compilers.select("auto", &input).unwrap();
    let unknown = compiler.fingerprint().unwrap_err();
    assert_eq!(unknown.kind, FailureKind::Busy, "to be had later: {unknown}");

    let changed = node.compilers.changes();
    let (mut settled, mut looked) = (Box::pin(compiler.settled()), Box::pin(changed));
    tokio::select! {
        biased;
        () = &mut settled => panic!("settled while it waits"),
        () = &mut looked => panic!("something new while it waits"),
        () = std::future::ready(()) => {}
    }
    // A line for each worker there will be.
    gate.write_all(&[b'\n'; 100]).unwrap();
    settled.await;
    looked.await;
    assert_eq!(names(&node), ["cuda", "native", "eager", "mixed-eager"]);
    node.compile(&input).await.unwrap();
}

#[tokio::test]
async fn a_library_that_could_not_be_loaded_is_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    let fails_once = format!(
        "[ -e {first} ] || {{ : > {first}; echo out of time >&2; exit 1; }}\nexec {KILN} \"$@\"",
        first = first.display()
    );
    let (_script, program) = script(&fails_once);
    let node = Node::looking(&program, nvrtc("KILN_NVRTC_DIR"), |_| {});
    node.compilers.settled().await;
    let changed = node.compilers.changes();
    let failure = node.compilers.toolchain().unwrap_err();
    assert!(failure.message.contains("out of time"), "{failure}");
    changed.await;
    node.compile(&cuda(SAXPY, "sm_90")).await.unwrap();
}
