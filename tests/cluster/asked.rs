//! The command line, asked at one node, with its answer in JSON.

use serde_json::Value;
use tokio::process::Command;

use crate::harness::TestNode;

/// The exit code, and what it said: on its error where it said nothing else.
pub(crate) async fn kiln(node: &TestNode, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(arguments).args(["--json", "--endpoint"]);
    command.arg(format!("http://{}", node.config.grpc_listen)).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].into_iter().find(|text| !text.is_empty());
    (output.status.code(), serde_json::from_slice(&said.unwrap_or_default()).unwrap_or_default())
}
