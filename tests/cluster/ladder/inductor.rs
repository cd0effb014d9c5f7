//! Inductor's workers, in processes of their own: those that die, and those that have no
//! memory. What they compile with is exchanged, as few machines have torch; how they fail is
//! not.

use std::path::PathBuf;

use kiln_proto::{Target, pb};

use super::{is_eagers_own, program, rung, tried};
use crate::{
    harness::{TestCluster, kind},
    interpreter::interpreter,
};

const BLOCK: &str = "block_f32_dynamic.new.pt2";
const MADE: &str = "return {'artifact.bin': b'made', 'meta.json': b'{}'}";

thread_local! {
    /// The interpreter for the next cluster: `Configure` is a plain function.
    static PYTHON: std::cell::RefCell<PathBuf> = const { std::cell::RefCell::new(PathBuf::new()) };
}

/// A node whose Inductor is `compile`, and nothing else.
async fn with_python(compile: &str) -> (TestCluster, tempfile::TempDir) {
    let (folder, python) = interpreter(compile);
    PYTHON.with_borrow_mut(|path| *path = python);
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
        config.compile.python = Some(PYTHON.with_borrow(Clone::clone));
        config.compile.memory_limit = 256 << 20;
        config.compile.python_workers = 2;
    })
    .await;
    (cluster, folder)
}

fn inductor() -> pb::CompileRequest {
    let mut request = program(BLOCK);
    request.targets = vec![Target::any().into()];
    request.backend = "inductor-standalone".into();
    request
}

fn rungs(compiled: &crate::harness::Compiled) -> Vec<String> {
    tried(compiled).into_iter().map(|(rung, kind)| format!("{rung} {kind}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_of_an_optimisation_is_compiled_without() {
    let dies = format!(
        "if dict(job.options).get('pattern_matcher', True): os.kill(os.getpid(), 9)\n    {MADE}"
    );
    let (cluster, _python) = with_python(&dies).await;
    let node = &cluster.nodes[0];
    let fell = node.compile(inductor()).await.unwrap();
    assert_eq!(rungs(&fell), ["wanted crashed", "again crashed"]);
    assert_eq!(rung(&fell), "fewer");
    // It is the artifact of those options, wherever they are asked for.
    let mut fewer = inductor();
    let off = ["coordinate_descent_tuning", "epilogue_fusion", "max_autotune", "pattern_matcher"];
    fewer.options = off
        .iter()
        .chain(&["split_reductions"])
        .map(|name| pb::Field { name: (*name).into(), value: "false".into() })
        .collect();
    let own = node.compile(fewer).await.unwrap();
    assert_eq!((own.key, own.outcome, rung(&own)), (fell.key, pb::Outcome::Hit, "wanted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_always_dies_ends_as_the_graph_where_that_is_allowed() {
    let (cluster, _python) = with_python("os.kill(os.getpid(), 9)").await;
    let node = &cluster.nodes[0];
    let refused = node.compile(inductor()).await.unwrap_err();
    assert_eq!(kind(&refused), Some("crashed"), "it was asked for by name");
    for way in ["again: ", "fewer: ", "pieces: "] {
        assert!(refused.message().contains(way), "{way} in {refused}");
    }
    let any = super::with(inductor(), pb::FallbackPolicy::Any);
    let fell = node.compile(any.clone()).await.unwrap();
    is_eagers_own(node, &any, &fell).await;
    // While that is to be used nobody lets it die again, but for one compile behind it.
    let runs = node.counter("compiler_runs").await;
    let again = node.compile(any).await.unwrap();
    assert_eq!((again.key, rung(&again)), (fell.key, "eager"));
    let more = node.counter("compiler_runs").await - runs;
    assert!(more <= 1, "{more} more compiles");
}

/// The memory of both workers is enough: what it makes is what was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_too_little_memory_beside_others_is_compiled_alone() {
    let eats = format!("held = b'x' * (300 << 20)\n    {MADE}");
    let (cluster, _python) = with_python(&eats).await;
    let request = super::with(inductor(), pb::FallbackPolicy::None);
    let made = cluster.nodes[0].compile(request).await.unwrap();
    assert_eq!((rung(&made), made.tried.len()), ("wanted", 0));
    let log = cluster.nodes[0].log();
    assert!(log.contains("out of memory: once more, alone"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_memory_for_a_search_it_is_compiled_without_one() {
    let eats =
        format!("if dict(job.options).get('max_autotune'): held = b'x' * (2 << 30)\n    {MADE}");
    let (cluster, _python) = with_python(&eats).await;
    let mut tuned = inductor();
    tuned.options = vec![pb::Field { name: "max_autotune".into(), value: "true".into() }];
    let fell = cluster.nodes[0].compile(tuned).await.unwrap();
    assert_eq!(rungs(&fell), ["wanted out_of_memory"]);
    assert_eq!(rung(&fell), "saving");
    let log = cluster.nodes[0].log();
    assert!(log.contains("out of memory: once more, alone"), "{log}");
}

/// Each compiler has its own form of the target, and is the other one's next.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_compiler_of_native_is_inductor() {
    let (cluster, _python) = with_python(MADE).await;
    let node = &cluster.nodes[0];
    let mut on_gpu = program("block_f32.new.pt2");
    on_gpu.options = vec![pb::Field { name: "fuse".into(), value: "off".into() }];
    let fell = node.compile(on_gpu.clone()).await.unwrap();
    assert_eq!(rungs(&fell), ["wanted toolchain_missing"]);
    assert_eq!(rung(&fell), "other");
    let manifest = fell.manifest.read_unverified().unwrap();
    assert_eq!(manifest.fingerprint.compiler, "inductor-standalone");
    assert_eq!(manifest.target.to_string(), "gpu_90");
    // It is Inductor's own, without the options that were the first one's.
    let target = "gpu_90".parse::<Target>().unwrap().into();
    let backend = "inductor-standalone".into();
    let own = pb::CompileRequest { targets: vec![target], backend, options: vec![], ..on_gpu };
    let own = node.compile(own).await.unwrap();
    assert_eq!((own.key, own.outcome), (fell.key, pb::Outcome::Hit));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_compiler_of_inductor_is_native() {
    // The number of an operation that is not supported.
    let (_folder, python) = interpreter("raise Refused(2, 'not this one')");
    PYTHON.with_borrow_mut(|path| *path = python);
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.python = Some(PYTHON.with_borrow(Clone::clone));
    })
    .await;
    let node = &cluster.nodes[0];
    let mut on_gpu = program("block_f32.new.pt2");
    on_gpu.targets = vec!["gpu_90".parse::<Target>().unwrap().into()];
    on_gpu.backend = "inductor-standalone".into();
    let refused = node.compile(on_gpu.clone()).await.unwrap_err();
    assert_eq!(kind(&refused), Some("unsupported_op"), "{refused}");
    let any = super::with(on_gpu, pb::FallbackPolicy::Any);
    let fell = node.compile(any).await.unwrap();
    assert_eq!(rungs(&fell), ["wanted unsupported_op"]);
    assert_eq!(rung(&fell), "other");
    let native = node.compile(program("block_f32.new.pt2")).await.unwrap();
    assert_eq!((native.key, native.outcome), (fell.key, pb::Outcome::Hit));
}
