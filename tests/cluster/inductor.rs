//! Inductor on the nodes: one node has torch, all of them have its artifacts.
//!
//! `KILN_TORCH_PYTHON` names an interpreter that has torch (`make test-torch`
//! sets it, and runs the test that needs one: it is ignored elsewhere).

use std::{path::PathBuf, process::Command, time::Duration};

use kiln_proto::{Target, pb, pb::compile_event::Event};
use tonic::Code;

use crate::harness::{NAMESPACE, TestCluster, code, eventually, kind, saxpy};

const STANDALONE: &str = "inductor-standalone";

fn torch() -> PathBuf {
    std::env::var_os("KILN_TORCH_PYTHON")
        .expect("KILN_TORCH_PYTHON names a Python with torch")
        .into()
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

fn program(backend: &str, options: &[(&str, &str)]) -> pb::CompileRequest {
    let archive = fixture("block_f32_dynamic.new.pt2");
    let program = pb::ExportedProgram { name: "block".into(), archive: archive.into() };
    let options = options.iter();
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![Target::any().into()],
        backend: backend.into(),
        namespace: NAMESPACE.into(),
        options: options
            .map(|(name, value)| pb::Field { name: (*name).into(), value: (*value).into() })
            .collect(),
        ..Default::default()
    }
}

/// Three nodes; the second one has torch.
async fn one_with_torch() -> TestCluster {
    let cluster = TestCluster::start_with(3, |i, config| {
        if i == 1 {
            config.compile.python = Some(torch());
        }
    })
    .await;
    let has = cluster.nodes[1].id;
    // A first look at torch takes a minute on a loaded machine. This one waits for it.
    let mut early = program(STANDALONE, &[("no_such_option", "1")]);
    early.deadline_ms = 240_000;
    let refused = cluster.nodes[1].compile(early).await.unwrap_err();
    assert_eq!(code(&refused), Some("C001"), "{refused}");
    for node in &cluster.nodes {
        eventually("the cluster knows who has Inductor", async || {
            let status = node.status().await.ok()?;
            let there = status.nodes.iter().find(|node| node.id == has)?;
            there.compilers.iter().any(|f| f.compiler == STANDALONE).then_some(())
        })
        .await;
    }
    cluster
}

/// The files of an artifact, in a folder of their own.
fn unpack(manifest: &kiln_proto::Manifest, pack: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in &manifest.files {
        let bytes = &pack[file.offset as usize..][..file.size as usize];
        std::fs::write(folder.path().join(&file.path), bytes).unwrap();
    }
    folder
}

/// Loads the artifact in a process of its own and compares it with eager's numbers.
fn outputs_are_equal(folder: &std::path::Path, rows: usize) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/tests/check_artifact.py");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/block_f32.safetensors");
    let caches = tempfile::tempdir().unwrap();
    let done = Command::new(torch())
        .args(["-I", script])
        .arg(folder)
        .arg(golden)
        .arg(rows.to_string())
        .env("TORCHINDUCTOR_CACHE_DIR", caches.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs torch: make test-torch"]
async fn one_torch_serves_the_cluster() {
    let cluster = one_with_torch().await;
    a_request_goes_to_the_node_that_has_torch(&cluster).await;
    shapes_and_options_are_keys_of_their_own_and_bad_ones_are_named(&cluster).await;
}

async fn a_request_goes_to_the_node_that_has_torch(cluster: &TestCluster) {
    let runs = cluster.counter("compiler_runs").await;
    let mut stages = Vec::new();
    let first = cluster.nodes[0]
        .compile_watching(program(STANDALONE, &[]), |event| {
            stages.push(matches!(event, Event::Compiling(_)));
        })
        .await
        .unwrap();
    assert_eq!((first.outcome, first.tier), (pb::Outcome::Compiled, pb::Tier::Peer));
    assert!(stages.contains(&true), "what happens there is told here");
    assert_eq!(cluster.nodes[0].counter("forwarded_compiles").await, 1);
    assert_eq!(cluster.nodes[0].counter("compiler_runs").await, 0);

    let (header, pack) = cluster.nodes[2].fetch(&first.key).await.unwrap();
    let again = cluster.nodes[2].compile(program(STANDALONE, &[])).await.unwrap();
    assert_eq!((again.key, again.outcome), (first.key, pb::Outcome::Hit));
    assert_eq!(cluster.counter("compiler_runs").await, runs + 1, "once in the cluster");
    assert_eq!(again.manifest, first.manifest);

    let manifest = first.manifest.read_unverified().unwrap();
    assert_eq!(manifest.producer, cluster.nodes[1].id);
    assert_eq!(manifest.target, Target::any());
    assert_eq!(header.manifest.unwrap().manifest, first.manifest.bytes);
    let folder = unpack(&manifest, &pack);
    outputs_are_equal(folder.path(), 7);
}

async fn shapes_and_options_are_keys_of_their_own_and_bad_ones_are_named(cluster: &TestCluster) {
    let node = &cluster.nodes[2];
    let fixed = node.compile(program("inductor", &[("runtime_shape", "5")])).await.unwrap();
    let (_, pack) = node.fetch(&fixed.key).await.unwrap();
    let folder = unpack(&fixed.manifest.read_unverified().unwrap(), &pack);
    outputs_are_equal(folder.path(), 5);

    let merged = &[("runtime_shape", "5"), ("coordinate_descent_tuning", "True")];
    let same = node.compile(program("inductor", merged)).await.unwrap();
    assert_eq!((same.key, same.outcome), (fixed.key, pb::Outcome::Hit), "it is the default");

    // What node 2's worker refuses is told here, with its code; python/tests has the rest.
    let asked = program(STANDALONE, &[("max_autotune", "7")]);
    let refused = node.compile(asked).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C001"), Some("invalid_input")));
    assert!(refused.message().contains("max_autotune"), "{refused}");
    let mut wrong = program(STANDALONE, &[]);
    wrong.targets = vec![Target::cubin(90).into()];
    let refused = node.compile(wrong).await.unwrap_err();
    assert_eq!(code(&refused), Some("C003"), "{refused}");
}

/// A node that has NVRTC serves one that has not, in the same way.
#[tokio::test(flavor = "multi_thread")]
async fn cuda_goes_to_a_node_that_has_nvrtc() {
    let cluster = TestCluster::start_with(3, |i, config| {
        if i != 2 {
            config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
        }
    })
    .await;
    eventually("node 1 knows who has NVRTC", async || {
        let status = cluster.nodes[0].status().await.ok()?;
        let mut all = status.nodes.iter().flat_map(|node| &node.compilers);
        all.any(|f| f.compiler == "cuda").then_some(())
    })
    .await;
    let made = cluster.nodes[0].compile(saxpy("routed")).await.unwrap();
    assert_eq!(made.outcome, pb::Outcome::Compiled);
    assert_eq!(made.manifest.read_unverified().unwrap().producer, cluster.nodes[2].id);
    let again = cluster.nodes[1].compile(saxpy("routed")).await.unwrap();
    assert_eq!((again.key, again.outcome), (made.key, pb::Outcome::Hit));
    assert_eq!(cluster.counter("compiler_runs").await, 1);

    let broken = crate::harness::cuda("__global__ void f() { no_such_function(); }");
    let refused = cluster.nodes[1].compile(broken).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C001"), Some("compile_error")));
    assert!(refused.message().contains("no_such_function"), "{refused}");

    // What was sent on once is not sent on again.
    let mut marked = saxpy("marked");
    marked.forwarded = true;
    let refused = cluster.nodes[0].compile(marked).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C005"), Some("toolchain_missing")));
    assert_eq!(cluster.nodes[0].counter("forwarded_compiles").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compiling_node_dies_and_the_caller_is_told() {
    let mut cluster = TestCluster::start_with(3, |i, config| {
        if i != 2 {
            config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
        }
    })
    .await;
    eventually("node 1 knows who has NVRTC", async || {
        let status = cluster.nodes[0].status().await.ok()?;
        let mut all = status.nodes.iter().flat_map(|node| &node.compilers);
        all.any(|f| f.compiler == "cuda").then_some(())
    })
    .await;
    let client = cluster.nodes[0].client().await;
    let asked = tokio::spawn(async move {
        let mut client = client;
        let request = crate::harness::slow("orphan", 400);
        let mut events = client.compile(request).await?.into_inner();
        while events.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    });
    eventually("it compiles", async || {
        let count = cluster.nodes[0].counter("forwarded_compiles").await;
        (count == 1).then_some(())
    })
    .await;
    cluster.nodes[2].kill().await;
    let ended = tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_torch_anywhere_the_setting_is_named() {
    let cluster = TestCluster::start(1).await;
    for backend in ["inductor", STANDALONE] {
        let refused = cluster.nodes[0].compile(program(backend, &[])).await.unwrap_err();
        assert_eq!((code(&refused), kind(&refused)), (Some("C005"), Some("toolchain_missing")));
        assert!(refused.message().contains("compile.python"), "{refused}");
    }
    let status = cluster.nodes[0].status().await.unwrap();
    assert!(status.compilers.iter().all(|f| !f.compiler.starts_with("inductor")));
    let native = cluster.nodes[0].compile(saxpy("goes_on")).await;
    assert!(native.is_ok(), "the other compilers go on");
}

/// Interpreters that are none: each is a clear C005, and the node goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_interpreter_is_no_toolchain() {
    use std::os::unix::fs::PermissionsExt;
    for (text, told) in [
        ("exit 7", "exit status: 7"),
        ("kill -SEGV $$", "signal: 11"),
        ("echo nonsense", "sensibly"),
        ("echo no torch in here >&2; exit 1", "no torch in here"),
    ] {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(script.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = script.into_temp_path();
        SCRIPT.with_borrow_mut(|path| *path = script.to_path_buf());
        let cluster = TestCluster::start_with(1, |_, config| {
            config.compile.python = Some(SCRIPT.with_borrow(Clone::clone));
        })
        .await;
        let refused = cluster.nodes[0].compile(program(STANDALONE, &[])).await.unwrap_err();
        assert_eq!(
            (code(&refused), kind(&refused)),
            (Some("C005"), Some("toolchain_missing")),
            "{text}: {refused}"
        );
        assert!(refused.message().contains(told), "{text}: {refused}");
        assert!(cluster.nodes[0].compile(saxpy("well")).await.is_ok());
    }
}

thread_local! {
    /// The interpreter for the next cluster: `Configure` is a plain function.
    static SCRIPT: std::cell::RefCell<PathBuf> = const { std::cell::RefCell::new(PathBuf::new()) };
}
