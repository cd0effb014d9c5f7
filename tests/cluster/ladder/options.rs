//! Options that the compiler does not have, and what was refused and is remembered.

use kiln_proto::pb::{self, FallbackPolicy as Policy, Outcome};

use super::{program, rung, tried, wanted, with};
use crate::harness::{TestCluster, code, kind};

const BLOCK: &str = "block_f32.new.pt2";

fn with_option(name: &str, value: &str) -> pb::CompileRequest {
    let option = pb::Field { name: name.into(), value: value.into() };
    pb::CompileRequest { options: vec![option], ..program(BLOCK) }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_what_the_compiler_does_not_have_it_compiles_by_default() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let fell = node.compile(with_option("unroll", "on")).await.unwrap();
    assert_eq!((rung(&fell), fell.outcome), ("defaults", Outcome::Compiled));
    assert_eq!(tried(&fell), [("wanted".into(), "incompatible")]);
    let said = fell.tried[0].failure.as_ref().unwrap();
    assert!(said.message.contains("\"unroll\""), "said clearly: {said:?}");
    let plain = node.compile(program(BLOCK)).await.unwrap();
    assert_eq!((plain.key, plain.outcome, rung(&plain)), (fell.key, Outcome::Hit, "wanted"));
    let refused = node.compile(with(with_option("unroll", "on"), Policy::None)).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C003"), Some("incompatible")));
    // What it has is no reason for anything else.
    let unfused = node.compile(with_option("fuse", "off")).await.unwrap();
    assert_eq!((rung(&unfused), unfused.tried.len()), ("wanted", 0));
    assert_ne!(unfused.key, plain.key);
}

/// Macros are part of a CUDA source: without them it is another program.
#[tokio::test(flavor = "multi_thread")]
async fn a_cuda_source_is_never_compiled_without_its_options() {
    let cluster = TestCluster::start(1).await;
    let mut request = crate::harness::saxpy("macros");
    let Some(pb::compile_request::Source::Cuda(cuda)) = &mut request.source else { unreachable!() };
    cuda.options = vec!["-lineinfo".into()];
    let refused = cluster.nodes[0].compile(request).await.unwrap_err();
    assert_eq!((code(&refused), kind(&refused)), (Some("C003"), Some("incompatible")));
}

/// A failure that the cluster remembers is no reason to compile again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_is_not_tried_again() {
    let cluster = TestCluster::start_with(3, |_, config| {
        config.compile.concurrency = 1;
        config.compile.time_limit = std::time::Duration::from_secs(8);
    })
    .await;
    let asks = &cluster.nodes[0];
    let workers = crate::pieces::workers::Workers::pause(asks).await;
    let mut request = program(BLOCK);
    request.piecewise = pb::Piecewise::Never.into();
    let fell = asks.compile(request.clone()).await.unwrap();
    assert_eq!((rung(&fell), tried(&fell)), ("eager", vec![("wanted".into(), "timeout")]));
    drop(workers);
    let runs = cluster.counter("compiler_runs").await;
    for node in &cluster.nodes {
        let again = node.compile(request.clone()).await.unwrap();
        assert_eq!((rung(&again), again.key, again.outcome), ("eager", fell.key, Outcome::Hit));
        assert_eq!(wanted(&again), wanted(&fell));
    }
    assert_eq!(cluster.counter("compiler_runs").await, runs, "told at once, compiled nowhere");
}
