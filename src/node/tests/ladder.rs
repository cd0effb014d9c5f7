//! What the ladder tells whoever watches a node.

use kiln_proto::{FailureKind, Target, pb};

use super::*;
use crate::manager::{Event, Request, Rung};

fn program(name: &str, target: Target, deadline: Instant) -> Request {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let archive = std::fs::read(format!("{folder}/{name}.new.pt2")).unwrap();
    let program = pb::ExportedProgram { name: "block".into(), archive: archive.into() };
    let wire = pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![target.into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    };
    Request::read(wire, deadline).unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_and_a_time_out_are_told() {
    let running = Running::start(None, 1 << 30).await;
    let manager = running.node.manager.clone();
    let mut events = manager.events();
    let fell = manager
        .compile(program("block_f32", Target::cubin(90), Instant::now() + SOON), |_, _| {})
        .await;
    let fell = fell.unwrap();
    let told = events.recv().await.unwrap();
    let kind = FailureKind::ToolchainMissing;
    assert_eq!(told, Event::Fell { wanted: None, kind, rung: Rung::Eager });
    assert_eq!(fell.fallback.unwrap().rung, Rung::Eager);

    // Somebody else compiles it, for ever, and nothing is below eager.
    let soon = || Instant::now() + Duration::from_millis(500);
    let request = program("block_bf16", Target::any(), soon());
    let key = manager.prepare(&request).await.unwrap().components.key();
    let _lease = running.lease(&key).await;
    let late = manager.compile(Request { deadline: soon(), ..request }, |_, _| {}).await;
    assert!(matches!(late.unwrap_err(), Error::Failed(why) if why.kind == FailureKind::Timeout));
    let told = events.recv().await.unwrap();
    assert!(matches!(told, Event::TimedOut { key: Some(of), .. } if of == key));
    running.stop().await;
}
