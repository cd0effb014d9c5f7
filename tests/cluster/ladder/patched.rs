//! Wholes of which one piece fails: that piece alone goes down, each rung with the failure
//! itself, and the others are kept.
//!
//! What Inductor's workers compile with is exchanged, as few machines have torch; how they
//! fail is not: they die, have no memory, or refuse.

use std::{path::PathBuf, time::Duration};

use kiln_proto::{
    ArtifactKey, Manifest, SignedManifest, Target,
    pb::{self, FallbackPolicy as Policy, Outcome, Piecewise},
};

use super::{rung, tried, wanted, with};
use crate::{
    harness::{Compiled, Configure, TestCluster, TestNode, eventually, kind, metrics},
    interpreter::interpreter,
    pieces::{model, workers::Workers},
};

const MADE: &str = "return {'artifact.bin': b'made', 'meta.json': b'{}'}";
/// Is in one piece of the model alone.
const BAD: &str = "b'embedding' in job.graph";

thread_local! {
    /// The interpreter for the next cluster: `Configure` is a plain function.
    static PYTHON: std::cell::RefCell<PathBuf> = const { std::cell::RefCell::new(PathBuf::new()) };
}

const WITH_PYTHON: Configure = |_, config| {
    config.compile.python = Some(PYTHON.with_borrow(Clone::clone));
    config.compile.memory_limit = 256 << 20;
};

/// Nodes whose Inductor is `compile`.
async fn with_python(count: usize, compile: &str) -> (TestCluster, tempfile::TempDir) {
    let (folder, python) = interpreter(compile);
    PYTHON.with_borrow_mut(|path| *path = python);
    let cluster = TestCluster::start_with(count, WITH_PYTHON).await;
    for node in &cluster.nodes {
        eventually("its compilers", async || {
            let compilers = node.status().await.ok()?.compilers;
            compilers.iter().any(|found| found.compiler == "mixed").then_some(())
        })
        .await;
    }
    (cluster, folder)
}

/// The model in pieces by Inductor.
fn inductor(target: &str, options: &[(&str, &str)]) -> pb::CompileRequest {
    let field =
        |(name, value): &(&str, &str)| pb::Field { name: (*name).into(), value: (*value).into() };
    pb::CompileRequest {
        targets: vec![target.parse::<Target>().unwrap().into()],
        backend: "inductor-standalone".into(),
        options: options.iter().map(field).collect(),
        fallback: Policy::Any.into(),
        ..model::request(model::archive("qwen3_lm_f32_static.new"), Piecewise::Always)
    }
}

async fn stored(node: &TestNode, key: &[u8]) -> Option<Manifest> {
    let key = ArtifactKey::try_from(key).unwrap();
    let entry = node.lookup(&key).await.unwrap()?;
    Some(SignedManifest::from(entry.manifest.unwrap()).read_unverified().unwrap())
}

/// The one piece that something else stands for; all others are what was wanted.
async fn the_bad_one(node: &TestNode, fell: &Compiled) -> (usize, Manifest) {
    assert_eq!(rung(fell), "patched", "{:?}", tried(fell));
    let told = fell.fallback.as_ref().unwrap();
    assert!(told.valid_seconds > 0.0, "it expires");
    let [bad] = &told.pieces[..] else { panic!("{told:?}") };
    let at = bad.index as usize;
    assert!(stored(node, &bad.wanted).await.is_none(), "nothing fills its key");
    assert!(node.lookup(&wanted(fell)).await.unwrap().is_none(), "nor that of the whole");
    assert_ne!(fell.pieces[at].key, bad.wanted);
    let made_of: Vec<_> =
        manifest(fell).pieces.iter().map(|piece| piece.key.as_bytes().to_vec()).collect();
    let told: Vec<_> = fell.pieces.iter().map(|piece| piece.key.to_vec()).collect();
    assert_eq!(made_of, told);
    (at, stored(node, &fell.pieces[at].key).await.unwrap())
}

fn manifest(compiled: &Compiled) -> Manifest {
    compiled.manifest.read_unverified().unwrap()
}

/// `rung kind` of all that was tried for a piece, and of all that was for the whole.
fn ways(fell: &Compiled) -> (Vec<String>, Vec<String>) {
    let all = tried(fell).into_iter().map(|(rung, kind)| format!("{rung} {kind}"));
    let all: Vec<_> = all.zip(&fell.tried).collect();
    let of = |piece: bool| {
        let own = all.iter().filter(|(_, told)| told.piece.is_some() == piece);
        own.map(|(said, _)| said.clone()).collect()
    };
    (of(true), of(false))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_dies_is_the_graph_until_it_can_be_compiled() {
    // While that file is there the piece's compiler dies, as of a bug that is mended later.
    let broken = tempfile::NamedTempFile::new().unwrap();
    let path = broken.path().display();
    let dies =
        format!("if {BAD} and os.path.exists('{path}'): os.kill(os.getpid(), 9)\n    {MADE}");
    let (cluster, _python) = with_python(3, &dies).await;
    let node = &cluster.nodes[0];
    let fell = node.compile(inductor("any", &[])).await.unwrap();
    let (at, piece) = the_bad_one(node, &fell).await;
    assert_eq!((&*piece.fingerprint.compiler, piece.target), ("eager", Target::any()));
    let (of_piece, of_whole) = ways(&fell);
    assert_eq!(of_piece, ["wanted crashed", "fewer crashed"]);
    assert_eq!(of_whole, ["wanted crashed", "again crashed"]);
    assert_eq!(fell.fallback.as_ref().unwrap().pieces[0].rung, "eager");
    // Any node has it by its key, all pieces included.
    let manifest = manifest(&fell);
    assert_eq!(manifest.pieces.len(), fell.pieces.len());
    cluster.nodes[2].fetch(&fell.key).await.unwrap();

    broken.close().unwrap();
    let node = &cluster.nodes[0];
    eventually("what was wanted", async || {
        (node.counter("fallbacks_replaced").await == 1).then_some(())
    })
    .await;
    let real = node.compile(inductor("any", &[])).await.unwrap();
    assert_eq!((rung(&real), real.key), ("wanted", wanted(&fell)));
    let theirs = |piece: usize| (real.pieces[piece].key == fell.pieces[piece].key, piece);
    let same: Vec<_> = (0..real.pieces.len()).map(theirs).filter(|(same, _)| !same).collect();
    assert_eq!(same, [(false, at)], "all others are those of the patched whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_without_memory_for_a_search_is_compiled_without_one() {
    let eats = format!(
        "if {BAD} and dict(job.options).get('max_autotune'): held = b'x' * (2 << 30)\n    {MADE}"
    );
    let (cluster, _python) = with_python(1, &eats).await;
    let node = &cluster.nodes[0];
    let request = inductor("any", &[("max_autotune", "true")]);
    // Asked for by name: what this compiler makes itself may answer.
    let fell = node.compile(with(request.clone(), Policy::Auto)).await.unwrap();
    let (at, piece) = the_bad_one(node, &fell).await;
    assert_eq!(
        ways(&fell),
        (vec!["wanted out_of_memory".into()], vec!["wanted out_of_memory".into()])
    );
    assert_eq!(piece.fingerprint.compiler, "inductor-standalone");
    assert_eq!(fell.fallback.as_ref().unwrap().pieces[0].rung, "saving");
    // It is the piece of those options, wherever they are asked for.
    let off = [("max_autotune", "false"), ("coordinate_descent_tuning", "false")];
    let own = node.compile(inductor("any", &off)).await.unwrap();
    assert_eq!(
        (&own.pieces[at].key, own.pieces[at].outcome()),
        (&fell.pieces[at].key, Outcome::Hit)
    );
    let counted = r#"kiln_piece_fallbacks_total{rung="saving",kind="out_of_memory"} 1"#;
    let page = metrics(node).await;
    assert!(page.lines().any(|line| line == counted), "{counted} in {page}");
    assert!(node.log().contains("a piece is answered by a fallback"));

    // The next request has the same, without a compile; who wants the error has that.
    let runs = node.counter("compiler_runs").await;
    let again = node.compile(request.clone()).await.unwrap();
    assert_eq!((again.key, rung(&again), again.outcome), (fell.key, "patched", Outcome::Hit));
    let refused = node.compile(with(request, Policy::None)).await.unwrap_err();
    assert_eq!(kind(&refused), Some("out_of_memory"));
    let key = ArtifactKey::try_from(&fell.fallback.unwrap().pieces[0].wanted[..]).unwrap();
    for part in [format!("piece {at} ({key})"), format!("on node {}", node.id)] {
        assert!(refused.message().contains(&part), "{part:?} in {refused}");
    }
    assert_eq!(node.counter("compiler_runs").await, runs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_inductor_refuses_is_natives() {
    // The number of an operation that is not supported.
    let (cluster, _python) =
        with_python(1, &format!("if {BAD}: raise Refused(2, 'not this one')\n    {MADE}")).await;
    let node = &cluster.nodes[0];
    let fell = node.compile(inductor("gpu_90", &[])).await.unwrap();
    let (_, piece) = the_bad_one(node, &fell).await;
    assert_eq!((&*piece.fingerprint.compiler, piece.target), ("native", Target::cubin(90)));
    assert_eq!(ways(&fell).0, ["wanted unsupported_op"]);
    assert_eq!(fell.fallback.as_ref().unwrap().pieces[0].rung, "other");
    assert_eq!(manifest(&fell).target.to_string(), "gpu_90");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_hangs_is_the_graph_and_the_others_are_kept() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.concurrency = 1;
        config.compile.time_limit = Duration::from_secs(25);
    })
    .await;
    let node = &cluster.nodes[0];
    let workers = Workers::pause(node).await;
    let request = with(model::whole(), Policy::Any);
    let fell = node.compile(request.clone()).await.unwrap();
    drop(workers);
    let (at, piece) = the_bad_one(node, &fell).await;
    assert_eq!((&*piece.fingerprint.compiler, piece.target), ("eager", Target::any()));
    assert_eq!(ways(&fell), (vec!["wanted timeout".into()], vec!["wanted timeout".into()]));
    let mut outcomes = fell.pieces.iter().map(pb::Piece::outcome);
    assert!(outcomes.all(|outcome| outcome == Outcome::Compiled));
    for (index, made) in fell.pieces.iter().enumerate().filter(|(index, _)| *index != at) {
        let by = stored(node, &made.key).await.unwrap().fingerprint.compiler;
        assert_eq!(by, "native", "piece {index}");
    }
    // Everybody is given the same, and whoever fetches it by its key has all of it.
    let again = node.compile(request).await.unwrap();
    assert_eq!((again.key, rung(&again), again.outcome), (fell.key, "patched", Outcome::Hit));
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("out");
    let mut get = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    let endpoint = format!("http://{}", node.config.grpc_listen);
    get.args(["get", &fell.key.to_string(), "--endpoint", &endpoint, "-o"]).arg(&folder);
    let done = get.output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for index in 0..fell.pieces.len() {
        let file = if index == at { "graph.json" } else { "module.cubin" };
        assert!(folder.join(format!("pieces/{index}/{file}")).is_file(), "piece {index}");
    }
}
