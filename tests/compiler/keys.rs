//! Keys and choices: what a node decides without compiling.

use super::*;

#[tokio::test]
async fn another_nvrtc_differs_in_that_alone() {
    let (one, other) = (Node::start().await, nvrtc("KILN_NVRTC_ALT_DIR"));
    let other = Node::with(other, |_| {}).await;
    let input = cuda(SAXPY, "sm_90");
    assert!(other.compile(&input).await.unwrap().files[0].1.starts_with(b"\x7fELF"));
    let (ours, theirs) = (one.prepare(&input).unwrap(), other.prepare(&input).unwrap());
    assert_ne!(ours.components.key(), theirs.components.key());
    let found = ours.components.differences(&theirs.components);
    let [difference] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (difference.component.as_str(), difference.field.as_str()),
        ("fingerprint", "nvrtc")
    );
    assert!(difference.ours.split('.').count() == 3, "{difference:?}");
    // A key of another toolchain is not compiled with this one.
    let compiler = one.compilers.select("cuda", &input).unwrap();
    let limits = Limits::default();
    let refused = compiler.compile(&theirs, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::ToolchainMissing, "{refused}");
}

#[tokio::test]
async fn a_graphs_key_is_named_where_it_differs() {
    let empty = tempfile::tempdir().unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let base = exported("block_f32.new.pt2");
    let compiler = node.compilers.select("native", &base).unwrap();
    let components = |input: &CompileInput, nvrtc: &str| {
        let fingerprint = Fingerprint::new("native", [("nvrtc", nvrtc)]);
        compiler.prepare(input, &fingerprint).unwrap().components
    };
    let ours = components(&base, "13.5.37");
    for same in ["block_f32.211.pt2", "block_f32_renamed.new.pt2"] {
        assert_eq!(ours.key(), components(&exported(same), "13.5.37").key(), "{same}");
    }
    let differing = |theirs| {
        let found = ours.differences(&theirs).into_iter();
        found.map(|d| format!("{}.{}", d.component, d.field)).collect::<Vec<_>>()
    };
    assert_eq!(differing(components(&base, "13.0.88")), ["fingerprint.nvrtc"]);
    let target = "sm_80".parse().unwrap();
    let other = CompileInput { target, ..base.clone() };
    assert_eq!(differing(components(&other, "13.5.37")), ["target.arch"]);
    let mut other = base.clone();
    other.options.insert("fuse".into(), "off".into());
    assert_eq!(differing(components(&other, "13.5.37")), ["options.fuse"]);
    other.options.insert("fuse".into(), "on".into());
    assert_eq!(ours.key(), components(&other, "13.5.37").key(), "the default, spelled out");
    let other = components(&exported("block_f32_eps.new.pt2"), "13.5.37");
    let found = differing(other);
    assert!(found.len() == 1 && found[0].starts_with("graph."), "{found:?}");
}

#[tokio::test]
async fn a_node_without_nvrtc_has_keys_and_says_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let input = cuda(SAXPY, "sm_90");
    let compiler = node.compilers.select("auto", &input).unwrap();
    let missing = compiler.fingerprint().unwrap_err();
    assert_eq!(missing.kind, FailureKind::ToolchainMissing);
    let path = empty.path().to_str().unwrap();
    for part in [path, "libnvrtc.so", "pip install"] {
        assert!(missing.message.contains(part), "{missing}");
    }
    // What needs no toolchain is all that it has.
    let left: Vec<String> =
        node.compilers.fingerprints().iter().map(|f| f.compiler.clone()).collect();
    assert_eq!(left, ["eager"]);

    let elsewhere = Fingerprint::new("cuda", [("nvrtc", "13.5.37")]);
    let prepared = compiler.prepare(&input, &elsewhere).unwrap();
    let limits = Limits::default();
    let failed = compiler.compile(&prepared, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failed, missing);

    // A file that is no library is named.
    std::fs::write(empty.path().join("libnvrtc.so.13"), "text").unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let missing = node.compilers.toolchain().unwrap_err();
    assert_eq!(missing.kind, FailureKind::ToolchainMissing, "{missing}");
    assert!(missing.message.contains("libnvrtc.so.13"), "{missing}");
}

#[tokio::test]
async fn a_wrong_combination_is_c003() {
    let empty = tempfile::tempdir().unwrap();
    let node = Node::with(empty.path().into(), |_| {}).await;
    let input = cuda(SAXPY, "sm_90");
    let program = exported("block_f32.new.pt2");
    assert!(node.compilers.select("cuda", &program).is_err());
    assert_eq!(node.compilers.select("auto", &program).unwrap().name(), "native");
    for backend in ["inductor", "inductor-standalone", "CUDA", "native"] {
        let Err(refused) = node.compilers.select(backend, &input) else {
            panic!("{backend} was accepted");
        };
        assert_eq!(refused.kind.code(), "C003", "{refused}");
    }
    let compiler = node.compilers.select("cuda", &input).unwrap();
    let fingerprint = Fingerprint::new("cuda", [("nvrtc", "13.5.37")]);
    let mut odd = input.clone();
    odd.options.insert("fuse".into(), "true".into());
    let lined = cuda_with(SAXPY, "sm_90", |cuda| cuda.options = vec!["-lineinfo".into()]);
    for bad in [odd, lined] {
        assert_eq!(compiler.prepare(&bad, &fingerprint).unwrap_err().kind.code(), "C003");
    }
}
