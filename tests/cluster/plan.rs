//! What a change of the toolchain makes miss, and what is compiled before it comes.

use std::{collections::BTreeSet, path::PathBuf};

use kiln_proto::{Target, pb};
use serde_json::Value;

use crate::{
    harness::{Configure, NAMESPACE, TestCluster, eventually},
    sizes::kiln,
};

const KEEPING: Configure = |_, config| config.compile.keep_requests = 1 << 20;

fn cuda(name: &str, target: &str) -> pb::CompileRequest {
    let source = format!("__global__ void {name}(float *x) {{ x[threadIdx.x] = 1.0f; }}");
    let source = pb::CudaSource { name: name.into(), source: source.into(), ..Default::default() };
    let target: Target = target.parse().unwrap();
    pb::CompileRequest {
        source: Some(pb::compile_request::Source::Cuda(source)),
        targets: vec![target.into()],
        namespace: NAMESPACE.into(),
        ..Default::default()
    }
}

fn keys(lines: &[Value]) -> BTreeSet<String> {
    let keys = lines.iter().filter_map(|line| line["key"].as_str());
    keys.map(str::to_owned).collect()
}

fn summary(lines: &[Value]) -> &Value {
    &lines.last().unwrap()["summary"]
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_what_misses_is_told_and_compiled_before_it_does() {
    let alternative = std::env::var_os("KILN_NVRTC_ALT_DIR").expect("KILN_NVRTC_ALT_DIR is set");
    let mut cluster = TestCluster::start_with(1, KEEPING).await;
    let mut made = std::collections::BTreeMap::new();
    for (name, target) in [("a", "sm_80"), ("b", "sm_80"), ("a", "sm_90"), ("c", "sm_90")] {
        let compiled = cluster.nodes[0].compile(cuda(name, target)).await.unwrap();
        made.insert((name, target), compiled.key.to_string());
    }
    // No toolchain made this: no change of one makes it miss.
    let eager = ["compile", "tests/fixtures/block_f32.new.pt2", "--backend", "eager"];
    let (code, _, err) = kiln(&cluster.nodes[0], &eager).await;
    assert_eq!(code, Some(0), "{err}");

    let newcomer = cluster.newcomer(|_, config| {
        config.cluster.voter = false;
        config.compile.nvrtc = std::env::var_os("KILN_NVRTC_ALT_DIR").map(PathBuf::from);
    });
    cluster.nodes[newcomer].spawn();
    assert!(cluster.nodes[newcomer].wait_ready().await, "with {alternative:?}");
    let version = eventually("the toolchain of the new node", async || {
        let compilers = cluster.nodes[newcomer].status().await.ok()?.compilers;
        let cuda = compilers.into_iter().find(|found| found.compiler == "cuda")?;
        cuda.versions.into_iter().find(|field| field.name == "nvrtc").map(|field| field.value)
    })
    .await;
    let [major, minor, ..] = version.split('.').collect::<Vec<_>>()[..] else {
        panic!("{version}")
    };
    let change = format!("cuda={major}.{minor}");

    // With it this one is there for the new toolchain already.
    let there = cluster.nodes[newcomer].compile(cuda("b", "sm_80")).await.unwrap();
    assert_ne!(there.key.to_string(), made[&("b", "sm_80")]);

    let wanted = |of: &[(&str, &str)]| of.iter().map(|at| made[at].clone()).collect();
    let plan = async |more: &[&str]| {
        let arguments = ["plan", "--toolchain", &change];
        let (code, lines, err) = kiln(&cluster.nodes[0], &[&arguments[..], more].concat()).await;
        assert_eq!(code, Some(0), "{err} {lines:?}");
        lines
    };
    let all: BTreeSet<String> = wanted(&[("a", "sm_80"), ("a", "sm_90"), ("c", "sm_90")]);
    // Requests are kept behind the answers.
    let lines = eventually("the requests to be kept", async || {
        let lines = plan(&[]).await;
        let (_, misses) = lines.split_last().unwrap();
        misses.iter().all(|miss| miss["kept"] == true).then_some(lines)
    })
    .await;
    assert_eq!(keys(&lines), all);
    assert_eq!(summary(&lines)["targets"]["sm_90"]["misses"], 2, "{:?}", summary(&lines));
    assert_eq!(keys(&plan(&["--target", "sm_80"]).await), wanted(&[("a", "sm_80")]));

    let lines = plan(&["--target", "sm_90", "--prewarm"]).await;
    let compiled: Vec<_> = lines.iter().filter(|line| line["new_key"].is_string()).collect();
    assert_eq!(compiled.len(), 2, "{lines:?}");
    for one in compiled {
        assert_eq!((&one["outcome"], &one["node"]), (&"compiled".into(), &2.into()), "{one}");
    }
    assert_eq!(summary(&lines)["misses"], 0, "{lines:?}");
    assert_eq!(keys(&plan(&[]).await), wanted(&[("a", "sm_80")]));
    let hit = cluster.nodes[newcomer].compile(cuda("c", "sm_90")).await.unwrap();
    assert_eq!(hit.outcome, pb::Outcome::Hit);

    // Nobody there is certified by this root: what they compile is not what was asked for.
    let root = ed25519_dalek::SigningKey::from_bytes(&[9; 32]).verifying_key();
    let (root, pinned) = (hex::encode(root.as_bytes()), ["--prewarm", "--trust-root"]);
    let arguments = [&["plan", "--toolchain", &change][..], &pinned, &[&root]].concat();
    let (code, lines, err) = kiln(&cluster.nodes[0], &arguments).await;
    assert_eq!(code, Some(1), "{err} {lines:?}");
    let failed = lines.iter().find(|line| line["outcome"] == "failed").expect("one that failed");
    assert_eq!((&failed["error"]["code"], &failed["new_key"]), (&"C002".into(), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_toolchain_that_nobody_has_is_refused_with_those_that_are_there() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    node.compile(cuda("a", "sm_90")).await.unwrap();
    let (code, lines, _) = kiln(node, &["plan", "--toolchain", "cuda=1.2", "--prewarm"]).await;
    assert_eq!(code, Some(21), "{lines:?}");
    let message = lines[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("cuda nvrtc=") && message.contains("learner"), "{message}");
    let (code, lines, _) = kiln(node, &["plan", "--toolchain", "gcc=12"]).await;
    assert_eq!(code, Some(2), "{lines:?}");
    assert!(lines[0]["error"]["message"].as_str().unwrap().contains("they name"), "{lines:?}");
    // Without a change there is the next day, which needs a day behind it.
    let (code, lines, _) = kiln(node, &["plan"]).await;
    assert_eq!((code, &summary(&lines)["next_day"]), (Some(0), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_and_no_toolchain_makes_any_more_is_compiled_again_unasked() {
    let mut cluster = TestCluster::start_with(1, KEEPING).await;
    let old = cluster.nodes[0].compile(cuda("used", "sm_90")).await.unwrap();
    let unused = cluster.nodes[0].compile(cuda("unused", "sm_90")).await.unwrap();
    assert_eq!(
        cluster.nodes[0].compile(cuda("used", "sm_90")).await.unwrap().outcome,
        pb::Outcome::Hit
    );
    let listed = async |kept: usize| {
        let mut client = cluster.nodes[0].client().await;
        let entries = client.list(pb::ListRequest::default()).await.unwrap().into_inner().entries;
        let used = entries.iter().filter(|entry| entry.hits > 0).count();
        (entries.len() == 2 + kept && used == 1).then_some(())
    };
    eventually("uses to be counted, and requests kept", async || listed(2).await).await;

    cluster.nodes[0].terminate().await;
    cluster.nodes[0].config.compile.nvrtc =
        std::env::var_os("KILN_NVRTC_ALT_DIR").map(PathBuf::from);
    cluster.nodes[0].restart().await;
    let node = &cluster.nodes[0];
    eventually("the used one to be compiled again", async || {
        (node.counter("compiler_runs").await > 0).then_some(())
    })
    .await;
    let new = node.compile(cuda("used", "sm_90")).await.unwrap();
    assert_ne!((new.key, new.outcome), (old.key, pb::Outcome::Compiled));
    assert_eq!(node.counter("compiler_runs").await, 1, "what nobody uses is left");
    let again = node.compile(cuda("unused", "sm_90")).await.unwrap();
    assert_eq!(again.outcome, pb::Outcome::Compiled);
    assert_ne!(again.key, unused.key);
}
