//! No compiler library, and operations that no compiler of a node knows.

use kiln_proto::pb::{self, FallbackPolicy as Policy};

use super::{is_eagers_own, program, rung, tried, with};
use crate::harness::{TestCluster, code, kind, metrics, saxpy};

const BLOCK: &str = "block_f32.new.pt2";

async fn without_nvrtc(nodes: usize) -> TestCluster {
    TestCluster::start_with(nodes, |_, config| {
        config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_has_a_compiler_the_graph_answers() {
    let cluster = without_nvrtc(3).await;
    let node = &cluster.nodes[0];
    let fell = node.compile(program(BLOCK)).await.unwrap();
    is_eagers_own(node, &program(BLOCK), &fell).await;
    let missing = "toolchain_missing";
    assert_eq!(tried(&fell), [("wanted".into(), missing), ("other".into(), missing)]);
    assert!(fell.fallback.as_ref().unwrap().wanted.is_empty(), "no toolchain, no key");
    // The other nodes have it from the first.
    let again = cluster.nodes[1].compile(program(BLOCK)).await.unwrap();
    assert_eq!((again.key, again.outcome), (fell.key, kiln_proto::pb::Outcome::Hit));
    let counted = r#"kiln_fallbacks_total{rung="eager",kind="toolchain_missing"} 1"#;
    let page = metrics(node).await;
    assert!(page.lines().any(|line| line == counted), "{counted} in {page}");
    assert_eq!(node.counter("fallbacks").await, 1);
    assert_eq!(node.counter("failed").await, 0, "the caller has an artifact");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_the_error_has_it_and_who_names_a_compiler_too() {
    let cluster = without_nvrtc(1).await;
    let node = &cluster.nodes[0];
    let mut native = program(BLOCK);
    native.backend = "native".into();
    for request in [with(program(BLOCK), Policy::None), native.clone()] {
        let refused = node.compile(request).await.unwrap_err();
        let told = (code(&refused), kind(&refused));
        assert_eq!(told, (Some("C005"), Some("toolchain_missing")), "{refused}");
        let advice = refused.metadata().get("kiln-advice").unwrap().to_str().unwrap();
        assert!(advice.contains("compile.nvrtc"), "{advice}");
    }
    assert_eq!(node.counter("fallbacks").await, 0);
    let any = node.compile(with(native, Policy::Any)).await.unwrap();
    is_eagers_own(node, &program(BLOCK), &any).await;
    // What has no eager form says so.
    let refused = node.compile(saxpy("a")).await.unwrap_err();
    assert_eq!(kind(&refused), Some("toolchain_missing"));
    assert!(refused.message().contains("CUDA C++ has no eager form"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_nobody_knows_is_for_pytorch_to_run() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    // In pieces it would be natively compiled but for that one: see `mixed`.
    let mut request = program("unknown.new.pt2");
    request.set_piecewise(pb::Piecewise::Never);
    let fell = node.compile(request.clone()).await.unwrap();
    is_eagers_own(node, &request, &fell).await;
    assert_eq!(tried(&fell)[0], ("wanted".into(), "unsupported_op"));
    let (_, pack) = node.fetch(&fell.key).await.unwrap();
    assert!(String::from_utf8_lossy(&pack).contains("aten.special_bessel_j0.default"));
    let refused = node.compile(with(request, Policy::None)).await.unwrap_err();
    assert_eq!(kind(&refused), Some("unsupported_op"));
    // A compiler that is there is used.
    let made = node.compile(program(BLOCK)).await.unwrap();
    assert_eq!((rung(&made), made.tried.len()), ("wanted", 0));
}
