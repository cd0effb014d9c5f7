//! Pieces that Inductor compiles, on nodes that have torch.
//!
//! `KILN_TORCH_PYTHON` names an interpreter that has torch (`make test-torch`
//! sets it, and runs the tests that need one: they are ignored elsewhere).

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use kiln_proto::{
    Target,
    pb::{self, Outcome, Piecewise},
};

use super::{
    manifest,
    model::{self, HEAD, PIECES, changed, in_layer},
    outcomes,
};
use crate::harness::{TestCluster, TestNode, eventually};

const COMPILERS: [&str; 2] = ["inductor", "inductor-standalone"];

fn torch() -> PathBuf {
    let python = std::env::var_os("KILN_TORCH_PYTHON");
    python.expect("KILN_TORCH_PYTHON names a Python with torch").into()
}

fn request(archive: Vec<u8>, compiler: &str) -> pb::CompileRequest {
    let mut request = model::request(archive, Piecewise::Always);
    request.targets = vec![Target::any().into()];
    request.backend = compiler.into();
    request
}

fn whole(compiler: &str) -> pb::CompileRequest {
    request(model::archive("qwen3_lm_f32_static.new"), compiler)
}

/// Nodes with torch, each of which has looked at it: a minute on a loaded machine.
async fn with_torch(count: usize) -> TestCluster {
    let cluster =
        TestCluster::start_with(count, |_, config| config.compile.python = Some(torch())).await;
    for node in &cluster.nodes {
        let mut early = whole("inductor");
        early.options.push(pb::Field { name: "runtime_shape".into(), value: "none".into() });
        early.deadline_ms = 240_000;
        node.compile(early).await.unwrap_err();
    }
    for node in &cluster.nodes {
        eventually("all to be known to have Inductor", async || {
            let status = node.status().await.ok()?;
            let has = |node: &pb::NodeStatus| {
                COMPILERS.iter().all(|name| node.compilers.iter().any(|f| f.compiler == *name))
            };
            (status.nodes.len() == count && status.nodes.iter().all(has)).then_some(())
        })
        .await;
    }
    cluster
}

/// Has the command line write the artifact, and Python load it and run it once.
fn outputs_are_equal(node: &TestNode, compiler: &str) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("out");
    let endpoint = format!("http://{}", node.config.grpc_listen);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(["compile", "qwen3_lm_f32_static.new.pt2", "--piecewise", "always"]);
    command.args(["--target", "cpu", "--backend", compiler, "--endpoint", &endpoint, "-o"]);
    command.arg(&into).current_dir(format!("{root}tests/fixtures/models"));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut python = Command::new(torch());
    python.args(["-I", &format!("{root}python/tests/check_whole.py")]).arg(&into);
    python.arg(format!("{root}tests/fixtures/models/qwen3_lm.safetensors"));
    let caches = tempfile::tempdir().unwrap();
    let done = python.env("TORCHINDUCTOR_CACHE_DIR", caches.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    println!("{compiler}: {}", String::from_utf8_lossy(&done.stdout).trim());

    // What has no torch says so, and which pieces need it.
    let inputs = format!("{root}tests/fixtures/models/qwen3_lm.safetensors");
    let mut exec = Command::new(env!("CARGO_BIN_EXE_kiln"));
    exec.arg("exec").arg(&into).args(["--inputs", &inputs, "-o"]).arg(folder.path().join("made"));
    let done = exec.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success());
    for said in ["of 5 pieces 0, 1, 2, 3, 4 were compiled by Inductor", "kiln_torch.load"] {
        assert!(told.contains(said), "{said:?} in {told}");
    }
}

fn compiled(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| **outcome == Outcome::Compiled).count()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs torch: make test-torch"]
async fn nodes_compile_pieces_with_inductor_once() {
    let cluster = with_torch(3).await;
    let compiler = "inductor-standalone";
    let first = cluster.nodes[0].compile(whole(compiler)).await.unwrap();
    assert_eq!(first.strategy.items, 50);
    assert_eq!(outcomes(&first), [Outcome::Compiled; PIECES]);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
    let nodes: BTreeSet<u64> = first.pieces.iter().map(|piece| piece.node).collect();
    assert!(nodes.len() > 1, "spread over nodes: {nodes:?}");
    let keys: BTreeSet<_> = manifest(&first).pieces.iter().map(|piece| piece.key).collect();
    assert_eq!(keys.len(), PIECES);
    for piece in &manifest(&first).pieces {
        let (header, _) = cluster.nodes[1].fetch(&piece.key).await.unwrap();
        let signed = kiln_proto::SignedManifest::from(header.manifest.unwrap());
        let artifact = signed.read_unverified().unwrap();
        assert_eq!((&*artifact.fingerprint.compiler, artifact.target), (compiler, Target::any()));
        let files: Vec<&str> = artifact.files.iter().map(|file| file.path.as_str()).collect();
        assert!(files.contains(&"artifact.bin") && files.contains(&"meta.json"), "{files:?}");
    }

    for node in &cluster.nodes[1..] {
        let again = node.compile(whole(compiler)).await.unwrap();
        assert_eq!((again.key, again.outcome), (first.key, Outcome::Hit));
        assert_eq!(outcomes(&again), [Outcome::Hit; PIECES]);
    }
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
    outputs_are_equal(&cluster.nodes[2], compiler);
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);

    // One changed layer, and then another model with the same layers.
    for (node, norm) in [(1, in_layer(7)), (2, HEAD)] {
        let other = cluster.nodes[node].compile(request(changed(norm), compiler)).await.unwrap();
        assert_ne!(other.key, first.key);
        assert_eq!(compiled(&outcomes(&other)), 1, "{:?}", outcomes(&other));
    }
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64 + 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs torch: make test-torch"]
async fn pieces_compiled_ahead_of_time_make_the_whole_too() {
    let cluster = with_torch(1).await;
    let first = cluster.nodes[0].compile(whole("inductor")).await.unwrap();
    assert_eq!(outcomes(&first), [Outcome::Compiled; PIECES]);
    outputs_are_equal(&cluster.nodes[0], "inductor");
    assert_eq!(cluster.counter("compiler_runs").await, PIECES as u64);
}
