//! Bad input gives a clear error with its code, and leaves nothing behind.

use std::io::Write;

use kiln_proto::pb;
use tonic::Code;

use crate::harness::{NAMESPACE, TestCluster, code, cuda, kind, saxpy, slow};

fn program(archive: Vec<u8>) -> pb::CompileRequest {
    let program = pb::ExportedProgram { name: "m.pt2".into(), archive: archive.into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![kiln_proto::Target::cubin(90).into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cuda_that_does_not_compile_gives_its_log_to_all_waiters() {
    let cluster = TestCluster::start(3).await;
    let broken = || cuda("__global__ void f() { no_such_function(); }");
    let asked = (0..9).map(|i| cluster.nodes[i % 3].compile(broken()));
    for answer in futures::future::join_all(asked).await {
        let refused = answer.unwrap_err();
        assert_eq!((code(&refused), kind(&refused)), (Some("C001"), Some("compile_error")));
        assert!(refused.message().contains("no_such_function"), "{refused}");
    }
    assert_eq!(cluster.counter("compiler_runs").await, 1, "remembered, not tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_archives_are_refused() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let whole = fixture("block_f32.211.pt2");
    let truncated = whole[..whole.len() / 2].to_vec();
    for (what, archive) in [
        ("truncated", truncated),
        ("not a zip", b"hello".to_vec()),
        ("bomb", bomb()),
        ("empty", vec![]),
    ] {
        let refused = node.compile(program(archive)).await.unwrap_err();
        assert_eq!(
            (code(&refused), kind(&refused)),
            (Some("C001"), Some("invalid_input")),
            "{what}"
        );
    }
    assert!(node.compile(program(whole)).await.is_ok(), "the whole one is fine");
}

/// A thousand times more inside than outside.
fn bomb() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("archive/models/model.json", options).unwrap();
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..64 {
        zip.write_all(&zeros).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_op_is_named_with_its_node() {
    let cluster = TestCluster::start(1).await;
    let mut unknown = program(fixture("unknown.211.pt2"));
    unknown.set_fallback(pb::FallbackPolicy::None);
    let refused = cluster.nodes[0].compile(unknown).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C001"), Some("unsupported_op")));
    assert!(refused.message().contains("aten."), "the op: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compile_past_its_limit_is_stopped() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.time_limit = std::time::Duration::from_millis(700);
    })
    .await;
    let refused = cluster.nodes[0].compile(slow("endless", 400)).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C004"), Some("timeout")), "{refused}");
    assert!(cluster.nodes[0].compile(saxpy("next")).await.is_ok(), "the node goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_contradictory_requests_are_refused() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let mut huge = node.client().await.max_encoding_message_size(256 << 20);
    let refused = huge.compile(cuda("x".repeat(70 << 20))).await.unwrap_err();
    assert!(
        matches!(
            refused.code(),
            Code::OutOfRange
                | Code::ResourceExhausted
                | Code::Unknown
                | Code::Unavailable
                | Code::Internal
                | Code::Cancelled
        ),
        "{refused:?}"
    );

    let mut untargeted = saxpy("a");
    untargeted.targets.clear();
    let mut impossible = saxpy("a");
    impossible.targets[0].compute = 7;
    let mut sourceless = saxpy("a");
    sourceless.source = None;
    let mut odd_namespace = saxpy("a");
    odd_namespace.namespace = "../x".into();
    for request in [untargeted, impossible, sourceless, odd_namespace] {
        let refused = node.compile(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
    }
    let mut wrong_backend = saxpy("a");
    wrong_backend.backend = "native".into();
    let refused = node.compile(wrong_backend).await.unwrap_err();
    assert_eq!(code(&refused), Some("C003"), "{refused}");
    assert!(node.compile(saxpy("a")).await.is_ok());
}
