//! What any node tells of the others, and which node is which.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use crate::harness::{SOON, TestCluster, TestNode, eventually};

async fn kiln(arguments: &[&str], node: &TestNode) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let endpoint = node.config.grpc_listen.to_string();
    command.args(arguments).args(["--json", "--endpoint", &endpoint]).kill_on_drop(true);
    command.output().await.unwrap()
}

async fn status(node: &TestNode) -> Value {
    let output = kiln(&["status"], node).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What `status` tells of the node of that id.
fn node(status: &Value, id: u64) -> Option<&Value> {
    status["nodes"].as_array().unwrap().iter().find(|node| node["id"] == id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_tells_which_other_follower_is_down_and_who_left() {
    let mut cluster = TestCluster::start(3).await;
    let ids: Vec<u64> = cluster.nodes.iter().map(|node| node.id).collect();
    assert_eq!(ids, [1, 2, 3], "in the order of the list of peers");
    let leader = cluster.leader(&[0, 1, 2]).await;
    let (asked, other) = ((leader + 1) % 3, (leader + 2) % 3);
    eventually("both to be up", async || {
        let status = status(&cluster.nodes[asked]).await;
        let up = ids.iter().all(|id| node(&status, *id).unwrap()["reachable"] == true);
        (up && status["seen_by"] == ids[leader]).then_some(())
    })
    .await;

    cluster.nodes[other].kill().await;
    eventually("the other one to be down", async || {
        let status = status(&cluster.nodes[asked]).await;
        let other = node(&status, ids[other]).unwrap();
        let silent = other["silent_ms"].as_u64()?;
        (other["reachable"] == false && silent > 0).then_some(())
    })
    .await;

    cluster.nodes[other].restart().await;
    let left = kiln(&["cluster", "leave"], &cluster.nodes[other]).await;
    assert!(left.status.success(), "{left:?}");
    let said: Value = serde_json::from_slice(&left.stdout).unwrap();
    assert_eq!((&said["left"], &said["node"]), (&Value::Bool(true), &ids[other].into()));
    eventually("the one that left to be named", async || {
        let status = status(&cluster.nodes[asked]).await;
        let gone = node(&status, ids[other]).is_none();
        (gone && status["left"] == serde_json::json!([ids[other]])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_object_tier_has_what_the_index_says() {
    let cluster = TestCluster::start(1).await;
    let mut redis = crate::redis::Redis::connect(&cluster.nodes[0]).await;
    redis.set("k", "12345").await;
    eventually("the upload to be counted", async || {
        let status = status(&cluster.nodes[0]).await;
        let tiers = status["tiers"].as_array().unwrap();
        let object = tiers.iter().find(|tier| tier["name"] == "object").unwrap();
        (object["entries"] == 1 && object["bytes"] == 5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_of_kiln_dev_have_the_ids_of_their_folders() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(["dev", "--nodes", "4", "--ready-timeout", "100s", "--dir"]).arg(folder.path());
    command.stdout(Stdio::piped()).kill_on_drop(true);
    let mut dev = command.spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
    let line = timeout(SOON, lines.next_line()).await.expect("it is ready").unwrap().unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let ids: Vec<_> = ready["nodes"].as_array().unwrap().iter().map(|n| n["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    for (at, node) in (1..).zip(ready["nodes"].as_array().unwrap()) {
        assert!(node["data"].as_str().unwrap().contains(&format!("node-{at}")), "{node}");
    }
    let pid = rustix::process::Pid::from_raw(dev.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(timeout(SOON, dev.wait()).await.expect("it ends").unwrap().success());
}

/// `script` gives it a terminal, and ctrl-C as a person does.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_kiln_dev_says_what_to_type_next() {
    use tokio::io::AsyncWriteExt;
    let folder = tempfile::tempdir().unwrap();
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let dir = folder.path().display();
    // No shell stays between the terminal and kiln, whose own exit code is what counts.
    let line = format!("exec '{kiln}' dev --nodes 1 --ready-timeout 100s --dir '{dir}'");
    let mut command = Command::new("script");
    command.env("SHELL", "/bin/sh");
    command.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut terminal = command.spawn().expect("script, of bsdutils, is there");
    let mut lines = BufReader::new(terminal.stdout.take().unwrap()).lines();
    let mut shown = Vec::new();
    while !shown.iter().any(|line: &String| line.contains("Ctrl-C stops all nodes")) {
        let line = timeout(SOON, lines.next_line()).await.expect("it is ready").unwrap();
        shown.push(line.expect("more to come").trim_end().to_owned());
    }
    let endpoint = shown.iter().find_map(|line| line.trim().strip_prefix("export KILN_ENDPOINT="));
    let endpoint = endpoint.unwrap_or_else(|| panic!("nothing to paste in {shown:#?}"));
    let why = shown.iter().find(|line| line.trim_start().starts_with("inductor"));
    assert!(why.is_some_and(|why| why.contains("KILN_COMPILE_PYTHON")), "{shown:#?}");
    let mut status = Command::new(kiln);
    let status = status.args(["status", "--json", "--endpoint", endpoint]).output().await.unwrap();
    assert!(status.status.success(), "{status:?}");
    terminal.stdin.take().unwrap().write_all(b"\x03").await.unwrap();
    assert!(timeout(SOON, terminal.wait()).await.expect("it ends").unwrap().success());
}
