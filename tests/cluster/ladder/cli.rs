//! The ladder from the command line.

use serde_json::Value;
use tokio::process::Command;

use super::path;
use crate::harness::{TestCluster, TestNode};

/// Runs `kiln`: exit code, stdout, stderr.
async fn kiln(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).kill_on_drop(true);
    for name in ["KILN_ENDPOINT", "KILN_SOCKET", "KILN_TARGET", "KILN_NAMESPACE"] {
        command.env_remove(name);
    }
    let done = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

async fn compile(node: &TestNode, more: &[&str]) -> (Option<i32>, String, String) {
    let (file, endpoint) = (path("block_bf16.new.pt2"), node.config.grpc_listen.to_string());
    let endpoint = format!("http://{endpoint}");
    let arguments = ["compile", file.to_str().unwrap(), "--endpoint", &endpoint];
    kiln(&[&arguments[..], more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_ends_well_and_says_so_on_both_sides() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.compile.nvrtc = Some(config.data_dir.join("no-nvrtc-here"));
    })
    .await;
    let node = &cluster.nodes[0];
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("out");
    let (code, out, err) = compile(node, &["--json", "-o", folder.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["fallback"]["rung"], &told["target"]), (&"eager".into(), &"any".into()));
    assert!(told["fallback"]["valid_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(told["tried"][0]["error"]["kind"], "toolchain_missing");
    assert!(told["tried"][0]["error"]["advice"].is_string());
    assert!(err.contains("fallback: eager answers in place of"), "{err}");
    assert!(folder.join("graph.json").exists(), "what answers can be run");
    let (code, out, err) = compile(node, &["--explain"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("tried wanted: C005 toolchain_missing: no NVRTC"), "{out}");
    assert!(err.contains("(wanted: C005 toolchain_missing: "), "{err}");

    let (code, out, _) = compile(node, &["--no-fallback", "--json"]).await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["error"]["code"]), (Some(15), &"C005".into()));
    assert!(told["error"]["advice"].as_str().unwrap().contains("compile.nvrtc"), "{told}");
    let (code, _, err) = compile(node, &["--backend", "native"]).await;
    assert_eq!(code, Some(15), "it was asked for by name");
    assert!(err.contains("what to do: install the library"), "{err}");
    let (code, _, err) = compile(node, &["--backend", "native", "--fallback"]).await;
    assert_eq!(code, Some(0), "{err}");
    let (code, ..) = compile(node, &["--no-fallback", "--fallback"]).await;
    assert_eq!(code, Some(2), "one of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_explained_without_a_node() {
    let (code, out, _) = kiln(&["explain", "C004"]).await;
    assert_eq!(code, Some(0));
    assert!(out.contains("C004 timeout") && out.contains("compile.time_limit"), "{out}");
    let (_, out, _) = kiln(&["explain", "--json"]).await;
    let kinds: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (failures, refusals) = kinds.split_at(kiln_proto::CLASSES.len());
    let codes: Vec<_> = refusals.iter().map(|kind| &kind["code"]).collect();
    assert_eq!(codes, ["A001", "A001", "A002"]);
    assert_eq!(
        (failures[0]["code"].as_str(), failures[0]["exit_code"].as_u64()),
        (Some("C001"), Some(11))
    );
    assert_eq!(kiln(&["explain", "C999"]).await.0, Some(2));
}
