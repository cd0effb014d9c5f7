//! Programs with operations that `native` refuses: these are another compiler's pieces.

use std::collections::BTreeSet;

use kiln::compiler::{Compiler, Piecewise, StitchPiece};
use kiln_proto::Target;

use super::{interpreter::interpreter, *};

const INDUCTOR: &str = "inductor-standalone";

/// A decoder block whose activation is unknown.
fn odd() -> CompileInput {
    let archive = Bytes::from(odd::archive());
    let source = Source::Program { archive, name: "odd.pt2".into(), size: None };
    CompileInput { source, ..exported("models/llama_block_f32_static.new.pt2") }
}

/// A node with NVRTC, and with what says that it is torch.
async fn with_both() -> (Node, tempfile::TempDir) {
    let (folder, python) = interpreter("return {'artifact.bin': b'made', 'meta.json': b'{}'}");
    let node = Node::with(nvrtc("KILN_NVRTC_DIR"), |settings| {
        settings.python.interpreter = Some(python);
    })
    .await;
    (node, folder)
}

fn planned(compiler: &dyn Compiler, input: &CompileInput) -> Result<Prepared, Failure> {
    compiler.plan(input, &compiler.fingerprint()?, Piecewise::Auto)
}

fn pieces(prepared: &Prepared) -> &[StitchPiece] {
    &prepared.stitch().expect("it is in pieces").pieces
}

#[tokio::test]
async fn what_native_refuses_is_a_piece_of_inductor() {
    let (node, _python) = with_both().await;
    let native = node.compilers.select("auto", &odd()).unwrap();
    let why = planned(&*native, &odd()).unwrap_err();
    assert_eq!(why.kind, FailureKind::UnsupportedOp, "{why}");
    assert!(node.compilers.instead("native", &*native, &why).is_none(), "it was asked for");
    let mixed = node.compilers.instead("auto", &*native, &why).expect("another compiler");
    assert_eq!(mixed.name(), "mixed");
    mixed.settled().await;

    let whole = planned(&*mixed, &odd()).unwrap();
    let of = |name: &str| -> Vec<usize> {
        let all = pieces(&whole).iter().enumerate();
        all.filter(|(_, p)| p.prepared.fingerprint.compiler == name).map(|(at, _)| at).collect()
    };
    let [inductors] = of(INDUCTOR)[..] else { panic!("{:?}", of(INDUCTOR)) };
    assert!(of("native").len() > 1 && of("native").len() + 1 == pieces(&whole).len());
    let reason = format!("piece {inductors} is inductor-standalone's: ");
    let told = whole.planned.reasons.iter().find(|said| said.starts_with(&reason));
    assert!(told.is_some_and(|said| said.contains("special_bessel_j0")), "{:?}", whole.planned);

    // Each has the target that its compiler knows, and the stitching says who it is.
    let target = |at: usize| pieces(&whole)[at].prepared.target;
    assert_eq!(target(inductors).to_string(), "gpu_90");
    assert!(of("native").iter().all(|at| target(*at) == Target::cubin(90)));
    let files = whole.stitch().unwrap().files();
    let stitching: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
    for (at, piece) in pieces(&whole).iter().enumerate() {
        let said = &stitching["pieces"][at]["compiler"];
        assert_eq!(said, piece.prepared.fingerprint.compiler.as_str());
    }

    // What is native in it is the same in a program that is native.
    let known = exported("models/llama_block_f32_static.new.pt2");
    let known = native.plan(&known, &native.fingerprint().unwrap(), Piecewise::Always).unwrap();
    let keys = |prepared: &Prepared| -> BTreeSet<_> {
        pieces(prepared).iter().map(StitchPiece::key).collect()
    };
    assert!(keys(&whole).intersection(&keys(&known)).count() > 0);
    let files = known.stitch().unwrap().files();
    assert!(!String::from_utf8(files[0].1.to_vec()).unwrap().contains("compiler"));

    // Each goes to its compiler.
    let limits = Limits::default();
    for (at, file) in [(inductors, "artifact.bin"), (of("native")[0], "module.cubin")] {
        let piece = &pieces(&whole)[at].prepared;
        let made = mixed.compile(piece, &limits, CancellationToken::new()).await.unwrap();
        assert!(made.files.iter().any(|(path, _)| path == file), "{at}");
    }
}

#[tokio::test]
async fn a_toolchain_of_both_is_one_that_has_both() {
    let (node, _python) = with_both().await;
    let mixed = node.compilers.select("mixed", &odd()).unwrap();
    mixed.settled().await;
    let fingerprint = mixed.fingerprint().unwrap();
    assert!(node.compilers.having(&fingerprint).is_some());
    let bare = Node::start().await;
    let same = bare.compilers.select("mixed", &odd()).unwrap();
    let lacks = same.fingerprint().unwrap_err();
    assert_eq!(lacks.kind, FailureKind::ToolchainMissing);
    assert!(lacks.message.contains("compile.python"), "{lacks}");
    assert!(bare.compilers.having(&fingerprint).is_none());
    // It gives the key all the same, to ask for it.
    let there = mixed.plan(&odd(), &fingerprint, Piecewise::Auto).unwrap();
    let here = same.plan(&odd(), &fingerprint, Piecewise::Auto).unwrap();
    assert_eq!(here.components.key(), there.components.key());

    // Options go to the compiler that has them.
    let mut with = odd();
    with.options.insert("fast_math".into(), "on".into());
    with.options.insert("max_autotune".into(), "true".into());
    let other = mixed.plan(&with, &fingerprint, Piecewise::Auto).unwrap();
    let keys =
        |prepared: &Prepared| -> Vec<_> { pieces(prepared).iter().map(StitchPiece::key).collect() };
    assert!(keys(&other).iter().zip(keys(&there)).all(|(a, b)| *a != b));
    let never = mixed.plan(&odd(), &fingerprint, Piecewise::Never).unwrap_err();
    assert_eq!(never.kind, FailureKind::Incompatible, "{never}");
}
