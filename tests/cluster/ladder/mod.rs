//! The failure ladder, each rung with the failure itself: no compiler, one that hangs, dies or
//! has no memory, operations that nobody knows, options that nobody has, bytes that rotted.

mod background;
mod busy;
mod cli;
mod corrupt;
mod crash;
mod inductor;
mod missing;
mod mixed;
mod options;
mod patched;
mod timeout;

use std::path::PathBuf;

use kiln_proto::{ArtifactKey, Target, pb};

use crate::harness::{Compiled, NAMESPACE, TestNode};

/// Where a fixture is.
fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures", name].iter().collect()
}

/// A request for a program on a GPU, by whatever compiler.
fn program(name: &str) -> pb::CompileRequest {
    let archive = std::fs::read(path(name)).unwrap();
    let program = pb::ExportedProgram { name: name.into(), archive: archive.into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![Target::cubin(90).into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    }
}

fn with(request: pb::CompileRequest, policy: pb::FallbackPolicy) -> pb::CompileRequest {
    pb::CompileRequest { fallback: policy.into(), ..request }
}

/// The same program by the eager compiler itself.
fn eager(request: &pb::CompileRequest) -> pb::CompileRequest {
    pb::CompileRequest {
        targets: vec![Target::any().into()],
        backend: "eager".into(),
        options: Vec::new(),
        ..request.clone()
    }
}

/// The rungs that gave nothing, with the kind that each failed of.
fn tried(compiled: &Compiled) -> Vec<(String, &'static str)> {
    let kind = |rung: &pb::Rung| {
        let failure = rung.failure.clone().unwrap();
        kiln_proto::convert::failure(failure).unwrap().kind.name()
    };
    compiled.tried.iter().map(|rung| (rung.name.clone(), kind(rung))).collect()
}

/// The rung that answered.
fn rung(compiled: &Compiled) -> &str {
    compiled.fallback.as_ref().map_or("wanted", |fallback| &fallback.rung)
}

/// The key that was asked for.
fn wanted(compiled: &Compiled) -> ArtifactKey {
    ArtifactKey::try_from(&compiled.fallback.as_ref().unwrap().wanted[..]).unwrap()
}

/// The answer is the eager compiler's own artifact, under its own key, and nothing is under
/// the key that was asked for.
async fn is_eagers_own(node: &TestNode, request: &pb::CompileRequest, fell: &Compiled) {
    assert_eq!(rung(fell), "eager", "{:?}", tried(fell));
    let own = node.compile(eager(request)).await.unwrap();
    assert_eq!((own.key, own.outcome), (fell.key, pb::Outcome::Hit));
    assert_eq!(own.manifest, fell.manifest);
    let manifest = fell.manifest.read_unverified().unwrap();
    assert_eq!((&*manifest.fingerprint.compiler, manifest.target), ("eager", Target::any()));
    let told = fell.fallback.as_ref().unwrap();
    assert!(told.valid_seconds > 0.0, "it expires");
    if !told.wanted.is_empty() {
        assert!(node.lookup(&wanted(fell)).await.unwrap().is_none(), "nothing fills its key");
    }
}
