//! What a client makes of an artifact: names beside its files, `kiln inspect`,
//! `kiln exec`.

use std::{path::Path, process::Output};

use serde_json::Value;
use tokio::process::Command;

use crate::harness::TestCluster;

const ARCHIVE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/block_f32_renamed.211.pt2");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/block_f32.safetensors");

async fn kiln(endpoint: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).env("KILN_ENDPOINT", endpoint).kill_on_drop(true);
    command.output().await.unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    serde_json::from_str(text.trim()).unwrap_or_else(|e| panic!("{e}: {all}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_has_the_names_of_the_program_it_was_asked_for() {
    let cluster = TestCluster::start(1).await;
    let endpoint = format!("http://{}", cluster.nodes[0].config.grpc_listen);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let target = ["--target", "sm_90"];
    let compile = [&["compile", ARCHIVE, "-o", out, "--json"][..], &target].concat();
    let made = json(&kiln(&endpoint, &compile).await);
    let signature: Value =
        serde_json::from_slice(&std::fs::read(Path::new(out).join("signature.json")).unwrap())
            .unwrap();
    let inputs = signature["inputs"].as_array().unwrap();
    assert_eq!(inputs.len(), 5);

    // The folder and the key show the same kernels; only the folder has names.
    let of_folder = json(&kiln(&endpoint, &["inspect", out, "--json"]).await);
    let key = &made["key"].as_str().unwrap()[..12];
    let of_key = json(&kiln(&endpoint, &["inspect", key, "--json"]).await);
    assert_eq!(of_folder["kernels"], of_key["kernels"]);
    assert!(of_key["kernels"][0]["registers"].as_u64().unwrap() > 0);
    assert_eq!(of_folder["tensors"][4]["name"], inputs[4]["name"]);
    assert_eq!(of_key["tensors"][4]["name"], Value::Null);

    // Where there is no GPU, that is what is said; where there is one, it runs.
    let result = folder.path().join("out.safetensors");
    let exec = ["exec", out, "--inputs", GOLDEN, "-o", result.to_str().unwrap()];
    let ran = kiln(&endpoint, &exec).await;
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success()
            || said.contains("no CUDA driver")
            || said.contains("no device")
            || said.contains("no input \"out0\""),
        "{said}"
    );
}
