//! `kiln warm`: a list of models for a list of targets.

use serde_json::Value;

use super::model::archive;
use crate::harness::TestCluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_compiled_and_then_is_there() {
    let cluster = TestCluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("block.pt2", &archive("llama_block_f32_static.new"));
    write("kernel.cu", b"__global__ void k(float* x) { x[0] = 1; }");
    let warm = async |more: &[&str]| {
        let endpoint = format!("http://{}", cluster.nodes[0].config.grpc_listen);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["warm", "--targets", "sm_80,sm_90", "--piecewise", "auto", "--json"]);
        command.args(["--endpoint", &endpoint]).args(more).current_dir(folder.path());
        let output = command.output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        (output.status.code(), lines)
    };
    let (code, lines) = warm(&["block.pt2", "kernel.cu"]).await;
    assert_eq!(code, Some(0), "{lines:?}");
    let summary = &lines[4]["summary"];
    assert_eq!((&summary["compiled"], &summary["failed"]), (&4.into(), &0.into()));
    let (code, lines) = warm(&["block.pt2", "kernel.cu"]).await;
    let summary = &lines[4]["summary"];
    assert_eq!((code, &summary["hits"]), (Some(0), &4.into()));
    assert_eq!(cluster.counter("compiler_runs").await, 4);

    // What fails leaves the rest.
    write("broken.cu", b"this is no program");
    let (code, lines) = warm(&["broken.cu", "kernel.cu"]).await;
    assert_eq!(code, Some(1), "{lines:?}");
    let summary = lines.iter().find_map(|line| line.get("summary")).unwrap();
    assert_eq!((&summary["hits"], &summary["failed"]), (&2.into(), &2.into()));
    let failed = lines.iter().find(|line| line["outcome"] == "failed").unwrap();
    assert_eq!((&failed["file"], &failed["error"]["code"]), (&"broken.cu".into(), &"C001".into()));
}
