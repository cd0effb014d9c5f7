//! What a person reads where a command cannot do what it was asked: the right cause, and what
//! to do; and that nothing is destroyed that nobody agreed to.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::{
    harness::{SOON, TestCluster, TestNode, eventually, saxpy},
    nodes::kiln,
};

/// The error that a command with `--json` prints.
fn error(output: &Output) -> (String, String) {
    let text = String::from_utf8_lossy(&output.stdout);
    let line: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let word = |name: &str| line["error"][name].as_str().unwrap_or_default().to_owned();
    (word("kind"), word("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_no_node_is_ends_the_command_that_adds_it() {
    let cluster = TestCluster::start(1).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    for address in [address, "no-such-host.invalid:7400".into(), silent, "no address".into()] {
        let (line, nodes) = (["cluster", "add", &address], [&cluster.nodes[0]]);
        let added = timeout(SOON, kiln(&line, &nodes)).await;
        let added = added.unwrap_or_else(|_| panic!("{address}: it hangs"));
        assert!(!added.status.success(), "{address}: {added:?}");
        let (_, message) = error(&added);
        assert!(message.contains(&address), "{address}: {message}");
    }
    let members = cluster.nodes[0].status().await.unwrap().nodes;
    assert_eq!(members.len(), 1, "nothing of them stays: {members:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_command_says_so_and_not_that_no_node_runs() {
    let mut cluster = TestCluster::start(3).await;
    let made = cluster.nodes[2].compile(saxpy("known")).await.unwrap();
    cluster.nodes[0].kill().await;
    cluster.nodes[1].kill().await;
    let alone = &cluster.nodes[2];
    eventually("loss of quorum in the status", async || {
        (!alone.status().await.unwrap().quorum).then_some(())
    })
    .await;
    let key = made.key.to_string();
    for line in [vec!["pin", &key], vec!["rm", &key, "--reason", "wrong", "--yes"]] {
        let refused = kiln(&line, &[alone]).await;
        let (kind, message) = error(&refused);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(message.contains("cannot commit now"), "{line:?}: {kind}: {message}");
        assert!(!message.contains("kiln serve"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_an_artifact_for_each_target_names_them() {
    let cluster = TestCluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("k.cu");
    std::fs::write(&source, "extern \"C\" __global__ void k() {}").unwrap();
    let out = folder.path().join("out");
    let (source, out) = (source.to_str().unwrap(), out.to_str().unwrap());
    let targets = ["--target", "sm_90", "--target", "sm_80"];
    let line = [&["compile", source, "-o", out], &targets[..]].concat();
    let made = kiln(&line, &[&cluster.nodes[0]]).await;
    assert!(made.status.success(), "{made:?}");
    let refused = kiln(&["inspect", out], &[&cluster.nodes[0]]).await;
    let (kind, message) = error(&refused);
    assert_eq!(kind, "usage", "{refused:?}");
    assert!(message.contains("sm_80") && message.contains("sm_90"), "{message}");
    let one = format!("{out}/sm_90");
    let shown = kiln(&["inspect", &one], &[&cluster.nodes[0]]).await;
    assert!(shown.status.success(), "{shown:?}");
}

/// A command on a terminal, as `script` makes one, where somebody types `answer`: all that is
/// shown, and its exit code.
async fn answered(line: &str, node: &TestNode, answer: &str) -> (String, Option<i32>) {
    let (program, endpoint) = (env!("CARGO_BIN_EXE_kiln"), node.config.grpc_listen);
    let line = format!("exec '{program}' {line} --endpoint {endpoint}");
    let mut command = Command::new("script");
    command.env("SHELL", "/bin/sh");
    command.args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut terminal = command.spawn().expect("script, of bsdutils, is there");
    // It waits in the terminal until it is asked for.
    terminal.stdin.as_mut().unwrap().write_all(answer.as_bytes()).await.unwrap();
    let output = timeout(SOON, terminal.wait_with_output()).await.expect("it ends").unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_destroys_names_its_object_and_asks_on_a_terminal() {
    let cluster = TestCluster::start(3).await;
    let node = &cluster.nodes[0];
    let made = node.compile(saxpy("asked")).await.unwrap();
    let (key, other) = (made.key.to_string(), cluster.nodes[1].id);
    let of_other = cluster.nodes[1].config.grpc_listen.to_string();
    for (line, object) in [
        ("cluster leave".to_owned(), format!("node {}", node.id)),
        (format!("cluster remove {other}"), of_other),
        (format!("rm {key} --reason wrong"), key.clone()),
        ("rm --compiler cuda --reason wrong".to_owned(), "1 entry".to_owned()),
    ] {
        let (shown, code) = answered(&line, node, "n\n").await;
        assert_eq!(code, Some(21), "{line}: {shown}");
        assert!(shown.contains(&object) && shown.contains("[y/N]"), "{line}: {shown}");
        assert!(shown.contains("nothing was done"), "{line}: {shown}");
    }
    assert_eq!(node.status().await.unwrap().nodes.len(), 3);
    assert!(node.lookup(&made.key).await.unwrap().is_some());
    let (shown, code) = answered(&format!("rm {key} --reason wrong"), node, "y\n").await;
    assert_eq!(code, Some(0), "{shown}");
    assert!(node.lookup(&made.key).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_says_nothing_alarming() {
    let mut cluster = TestCluster::start(3).await;
    let leader = cluster.leader(&[0, 1, 2]).await;
    for at in [(leader + 1) % 3, leader] {
        cluster.nodes[at].terminate().await;
        let log = cluster.nodes[at].log();
        assert!(!log.is_empty(), "it has a log");
        let alarming = |line: &&str| {
            line.contains("ERROR") || line.contains("panicked") || line.contains("RaftMetrics")
        };
        let lines: Vec<_> = log.lines().filter(alarming).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}
