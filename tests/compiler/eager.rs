//! The eager compiler: every node has it, whatever it lacks.

use kiln_native::eager::Eager;
use kiln_proto::Target;

use super::*;

async fn bare() -> Node {
    let empty = tempfile::tempdir().unwrap();
    Node::with(empty.path().into(), |_| {}).await
}

fn on_cpu(name: &str) -> CompileInput {
    CompileInput { target: Target::any(), ..exported(name) }
}

#[tokio::test]
async fn nodes_without_a_toolchain_give_one_graph_the_same_bytes() {
    let (one, other) = (bare().await, bare().await);
    let first = one.compile(&on_cpu("block_f32.211.pt2")).await.unwrap();
    let names: Vec<&str> = first.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["graph.json", "plan.json"]);
    for same in ["block_f32.new.pt2", "block_f32_renamed.211.pt2"] {
        let (input, again) = (on_cpu(same), other.compile(&on_cpu(same)).await.unwrap());
        assert_eq!(again.files, first.files, "{same}");
        let keys = [one.prepare(&on_cpu("block_f32.211.pt2")), other.prepare(&input)];
        let [a, b] = keys.map(|prepared| prepared.unwrap().components.key());
        assert_eq!(a, b, "{same}");
    }
    let file = |name: &str| {
        let found = first.files.iter().find(|(file, _)| file == name);
        found.map(|(_, bytes)| bytes.to_vec()).ok_or("no such file")
    };
    assert_eq!(Eager::load(file).unwrap().plan().target, "any");

    // Sizes that the native compiler leaves open are no hindrance.
    let dynamic = one.compile(&on_cpu("block_f32_dynamic.new.pt2")).await.unwrap();
    assert_ne!(dynamic.files, first.files);
}

#[tokio::test]
async fn what_it_cannot_do_is_told_and_its_kind() {
    let node = bare().await;
    let compiler = node.compilers.select("eager", &on_cpu("unknown.new.pt2")).unwrap();
    let fingerprint = compiler.fingerprint().unwrap();
    let refused = |input: &CompileInput| compiler.prepare(input, &fingerprint).unwrap_err();
    let mut of_a_size = on_cpu("unknown.new.pt2");
    if let Source::Program { size, .. } = &mut of_a_size.source {
        *size = Some(StaticSize { symbol: String::new(), size: 8 });
    }
    let unknown = refused(&of_a_size);
    assert_eq!(unknown.kind, FailureKind::UnsupportedOp);
    assert!(unknown.message.contains("special_bessel_j0"), "{unknown}");
    let on_gpu = refused(&exported("block_f32.new.pt2"));
    assert_eq!(on_gpu.kind, FailureKind::Incompatible);
    assert!(on_gpu.message.contains("sm_90") && on_gpu.message.contains("cpu"), "{on_gpu}");
    let mut odd = on_cpu("block_f32.new.pt2");
    odd.options.insert("fuse".into(), "on".into());
    assert_eq!(refused(&odd).kind, FailureKind::Incompatible);
    assert!(node.compilers.select("eager", &cuda(SAXPY, "sm_90")).is_err());

    let older = Fingerprint::new("eager", [("interpreter", "0")]);
    let prepared = compiler.prepare(&on_cpu("block_f32.new.pt2"), &older).unwrap();
    let limits = Limits::default();
    let failed = compiler.compile(&prepared, &limits, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failed.kind, FailureKind::ToolchainMissing, "{failed}");
}

/// Whoever has PyTorch can run it: the graph is told as `rebuilt.py` reads it.
#[tokio::test]
async fn a_graph_that_the_interpreter_does_not_know_is_for_pytorch() {
    let node = bare().await;
    let made = node.compile(&on_cpu("unknown.new.pt2")).await.unwrap();
    let names: Vec<&str> = made.files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["plan.json", "portable.json"]);
    let text = String::from_utf8(made.files[1].1.to_vec()).unwrap();
    assert!(text.contains("aten.special_bessel_j0.default"), "{text}");
    let plan: kiln_native::Plan = serde_json::from_slice(&made.files[0].1).unwrap();
    assert!(!plan.inputs.is_empty() && !plan.outputs.is_empty() && plan.target == "any");
    let prepared = node.prepare(&on_cpu("unknown.new.pt2")).unwrap();
    assert!(prepared.program().is_none(), "nobody here can check it");
}

#[tokio::test]
async fn auto_takes_it_where_the_target_is_the_cpu() {
    let node = bare().await;
    let name = |input: &CompileInput| node.compilers.select("auto", input).unwrap().name();
    assert_eq!(name(&on_cpu("block_f32.new.pt2")), "eager");
    assert_eq!(name(&exported("block_f32.new.pt2")), "native");
    assert_eq!(name(&cuda(SAXPY, "compute_90")), "cuda");
}
