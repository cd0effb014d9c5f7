//! Operations that the compiler that was asked for by name does not know, where the caller
//! allows others.

use std::path::PathBuf;

use kiln_proto::pb::{self, FallbackPolicy as Policy, Outcome, compile_request::Source};

use super::{program, rung, tried, with};
use crate::{
    harness::{Compiled, TestCluster, TestNode, eventually, kind},
    interpreter::interpreter,
    odd,
};

thread_local! {
    /// The interpreter for the next cluster: `Configure` is a plain function.
    static PYTHON: std::cell::RefCell<PathBuf> = const { std::cell::RefCell::new(PathBuf::new()) };
}

/// By `native`, which has no rule for one of its operations.
fn request() -> pb::CompileRequest {
    let program_of = pb::ExportedProgram { name: "odd".into(), archive: odd::archive().into() };
    pb::CompileRequest {
        source: Some(Source::Program(program_of)),
        backend: "native".into(),
        ..program("block_f32.new.pt2")
    }
}

/// Who compiled each piece.
async fn compilers(node: &TestNode, whole: &Compiled) -> Vec<String> {
    let mut by: Vec<String> = Vec::new();
    for piece in &whole.pieces {
        let key = kiln_proto::ArtifactKey::try_from(&piece.key[..]).unwrap();
        let entry = node.lookup(&key).await.unwrap().expect("it is stored");
        let manifest = kiln_proto::SignedManifest::from(entry.manifest.unwrap());
        by.push(manifest.read_unverified().unwrap().fingerprint.compiler);
    }
    by
}

#[tokio::test(flavor = "multi_thread")]
async fn what_native_does_not_know_is_a_piece_of_inductors_where_others_may_answer() {
    let (_folder, python) = interpreter("return {'artifact.bin': b'made', 'meta.json': b'{}'}");
    PYTHON.with_borrow_mut(|path| *path = python);
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.python = Some(PYTHON.with_borrow(Clone::clone));
    })
    .await;
    let node = &cluster.nodes[0];
    eventually("both compilers", async || {
        let compilers = node.status().await.ok()?.compilers;
        compilers.iter().any(|found| found.compiler == "mixed").then_some(())
    })
    .await;
    let refused = node.compile(request()).await.unwrap_err();
    assert_eq!(kind(&refused), Some("unsupported_op"), "it was asked for by name: {refused}");

    let fell = node.compile(with(request(), Policy::Any)).await.unwrap();
    assert_eq!(tried(&fell), [("wanted".into(), "unsupported_op")]);
    assert_eq!((rung(&fell), fell.outcome), ("mixed", Outcome::Compiled));
    let by = compilers(node, &fell).await;
    assert_eq!(by.iter().filter(|of| *of == "inductor-standalone").count(), 1, "{by:?}");
    assert!(by.iter().filter(|of| *of == "native").count() + 1 == by.len() && by.len() > 2);

    // It is what `mixed` makes for whoever asks for that.
    let own = pb::CompileRequest { backend: "mixed".into(), ..request() };
    let own = node.compile(own).await.unwrap();
    assert_eq!((own.key, own.outcome, rung(&own)), (fell.key, Outcome::Hit, "wanted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_has_inductor_the_rest_is_the_graph_itself() {
    let cluster = TestCluster::start(3).await;
    let node = &cluster.nodes[0];
    eventually("the compilers of all", async || {
        let known = node.status().await.ok()?.nodes;
        let has = |node: &pb::NodeStatus| {
            node.compilers.iter().any(|found| found.compiler == "mixed-eager")
        };
        (known.len() == 3 && known.iter().all(has)).then_some(())
    })
    .await;
    let auto = pb::CompileRequest { backend: String::new(), ..request() };
    let fell = node.compile(auto.clone()).await.unwrap();
    assert_eq!(tried(&fell), [("wanted".into(), "unsupported_op")]);
    assert_eq!((rung(&fell), fell.outcome), ("mixed", Outcome::Compiled));
    let by = compilers(node, &fell).await;
    let of = |name: &str| by.iter().filter(|of| *of == name).count();
    assert_eq!((of("eager"), of("native")), (1, by.len() - 1), "{by:?}");
    // That one is as it was found, for PyTorch to run.
    let graph = by.iter().position(|of| of == "eager").unwrap();
    let key = kiln_proto::ArtifactKey::try_from(&fell.pieces[graph].key[..]).unwrap();
    let (_, pack) = node.fetch(&key).await.unwrap();
    assert!(String::from_utf8_lossy(&pack).contains("aten.special_bessel_j0.default"));

    // It is what whoever asks for that has, anywhere; who wants the error has that.
    let own = pb::CompileRequest { backend: "mixed-eager".into(), ..request() };
    let own = cluster.nodes[2].compile(own).await.unwrap();
    assert_eq!((own.key, own.outcome, rung(&own)), (fell.key, Outcome::Hit, "wanted"));
    let refused = node.compile(with(auto, Policy::None)).await.unwrap_err();
    assert_eq!(kind(&refused), Some("unsupported_op"));
}
