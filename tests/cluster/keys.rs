//! What decides a key, and what does not; `why` names the difference.

use kiln_proto::{ArtifactKey, pb};

use crate::harness::{NAMESPACE, TestCluster};

fn fixture(name: &str) -> pb::CompileRequest {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let archive = std::fs::read(format!("{folder}/{name}")).unwrap();
    let program = pb::ExportedProgram { name: name.into(), archive: archive.into() };
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Program(program)),
        targets: vec![kiln_proto::Target::cubin(90).into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    }
}

/// The key that a request would have, and what keeps it from what is stored.
async fn explain(
    cluster: &TestCluster,
    request: pb::CompileRequest,
) -> (ArtifactKey, Vec<pb::Difference>) {
    let subject = Some(pb::explain_request::Subject::Request(request));
    let asked = pb::ExplainRequest { subject };
    let found = cluster.nodes[0].client().await.explain(asked).await.unwrap().into_inner();
    (ArtifactKey::try_from(&found.key[..]).unwrap(), found.differences)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_torch_versions_do_not_count() {
    let cluster = TestCluster::start(1).await;
    let made = cluster.nodes[0].compile(fixture("block_f32.211.pt2")).await.unwrap();
    for same in ["block_f32.new.pt2", "block_f32_renamed.211.pt2", "block_f32_renamed.new.pt2"] {
        let again = cluster.nodes[0].compile(fixture(same)).await.unwrap();
        assert_eq!((again.key, again.outcome), (made.key, pb::Outcome::Hit), "{same}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts_is_named_and_nothing_else() {
    let cluster = TestCluster::start(1).await;
    let made = cluster.nodes[0].compile(fixture("block_f32.211.pt2")).await.unwrap();
    let with = |change: fn(&mut pb::CompileRequest)| {
        let mut request = fixture("block_f32.211.pt2");
        change(&mut request);
        request
    };
    let cases = [
        ("constant", fixture("block_f32_eps.211.pt2"), "graph", "constants"),
        ("dtype", fixture("block_bf16.211.pt2"), "inputs", ".dtype"),
        ("shape", fixture("block_f32_batch.211.pt2"), "inputs", ".shape"),
        ("target", with(|r| r.targets[0].compute = 80), "target", ""),
        ("namespace", with(|r| r.namespace = "other".into()), "namespace", ""),
        (
            "option",
            with(|r| {
                let option = pb::Field { name: "fast_math".into(), value: "on".into() };
                r.options.push(option);
            }),
            "options",
            "fast_math",
        ),
    ];
    for (what, request, component, field) in cases {
        let (key, differences) = explain(&cluster, request).await;
        assert_ne!(key, made.key, "{what}");
        assert!(!differences.is_empty(), "{what}");
        for difference in differences {
            assert_eq!(difference.component, component, "{what}: {difference:?}");
            assert!(difference.field.ends_with(field), "{what}: {difference:?}");
        }
    }
}

/// Two nodes with two NVRTC versions: two keys, and the version is the reason.
#[tokio::test(flavor = "multi_thread")]
async fn another_nvrtc_is_another_key() {
    let cluster = TestCluster::start_with(3, |i, config| {
        if i == 1 {
            let folder = std::env::var_os("KILN_NVRTC_ALT_DIR");
            config.compile.nvrtc =
                Some(folder.expect("`make test` sets KILN_NVRTC_ALT_DIR").into());
        }
    })
    .await;
    let made = cluster.nodes[0].compile(fixture("block_f32.211.pt2")).await.unwrap();
    let subject = Some(pb::explain_request::Subject::Request(fixture("block_f32.211.pt2")));
    let asked = pb::ExplainRequest { subject };
    let found = cluster.nodes[1].client().await.explain(asked).await.unwrap().into_inner();
    assert_ne!(&found.key[..], made.key.as_bytes());
    assert_eq!(found.nearest, made.key.as_bytes()[..]);
    assert_eq!(found.differences.len(), 1, "{:?}", found.differences);
    let only = &found.differences[0];
    assert_eq!((only.component.as_str(), only.field.as_str()), ("fingerprint", "nvrtc"));
}
