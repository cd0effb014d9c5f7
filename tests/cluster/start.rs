//! What a node answers while it is still starting.

use std::{fs::OpenOptions, path::PathBuf};

use kiln_proto::pb::Outcome;
use tonic::Code;

use crate::{
    harness::{TestCluster, TestNode, code, eventually, http, saxpy, try_http},
    ports::hold_ports,
};

/// What other nodes are told that `node` compiles with.
async fn compilers(asked: &TestNode, node: u64) -> Vec<String> {
    let status = asked.status().await.unwrap();
    let told = status.nodes.into_iter().find(|n| n.id == node).unwrap();
    told.compilers.into_iter().map(|fingerprint| fingerprint.compiler).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_lives_and_joins_while_its_toolchain_is_looked_at() {
    let mut cluster = TestCluster::start(1).await;
    // Whoever loads this waits until somebody writes.
    let folder = cluster.folder.path().join("nvrtc");
    let library = folder.join("libnvrtc.so.13");
    std::fs::create_dir(&folder).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&library).status().unwrap();
    assert!(made.success());
    let new = cluster.newcomer(|_, config| config.cluster.voter = false);
    cluster.nodes[new].config.compile.nvrtc = Some(folder.clone());
    cluster.nodes[new].spawn();
    eventually("a sign of life", async || {
        let (code, _) = try_http(&cluster.nodes[new], "/healthz").await?;
        (code == 200).then_some(())
    })
    .await;
    // A sign of life comes first, and says nothing about readiness.
    let log = cluster.nodes[new].log();
    assert!(!log.contains("goes on without it"), "{log}");
    assert_eq!(http(&cluster.nodes[new], "/readyz").await.0, 503);
    assert!(cluster.nodes[new].wait_ready().await);
    assert_eq!(http(&cluster.nodes[new], "/readyz").await.0, 200);
    let (old, new) = (&cluster.nodes[0], &cluster.nodes[new]);
    assert_eq!(compilers(old, new.id).await, ["eager"]);

    // The key is made with this node's own toolchain, so it waits for that, and no longer
    // than the caller. What has a key is served at once.
    let made = old.compile(saxpy("kernel")).await.unwrap();
    assert!(new.fetch(&made.key).await.is_ok());
    let mut impatient = saxpy("kernel");
    impatient.deadline_ms = 100;
    let late = new.compile(impatient).await.unwrap_err();
    assert_eq!((late.code(), code(&late)), (Code::DeadlineExceeded, Some("C004")), "{late}");
    assert!(late.message().contains("looking at the toolchain"), "{late}");

    // The look ends in an empty file; the next one finds a library.
    std::fs::rename(&library, folder.join("held")).unwrap();
    let real = PathBuf::from(std::env::var_os("KILN_NVRTC_DIR").expect("KILN_NVRTC_DIR is set"));
    for file in std::fs::read_dir(&real).unwrap() {
        let file = file.unwrap();
        std::os::unix::fs::symlink(file.path(), folder.join(file.file_name())).unwrap();
    }
    drop(OpenOptions::new().read(true).write(true).open(folder.join("held")).unwrap());
    eventually("the compilers", async || {
        (compilers(old, new.id).await == ["cuda", "native", "eager", "mixed-eager"]).then_some(())
    })
    .await;
    assert_eq!(new.compile(saxpy("kernel")).await.unwrap().outcome, Outcome::Hit);
    assert_eq!(new.compile(saxpy("other")).await.unwrap().outcome, Outcome::Compiled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moved_is_found_where_it_is_whatever_it_compiles_with() {
    let mut cluster = TestCluster::start(1).await;
    let new = cluster.newcomer(|_, config| config.cluster.voter = false);
    cluster.nodes[new].restart().await;
    eventually("the compilers", async || {
        let told = compilers(&cluster.nodes[0], cluster.nodes[new].id).await;
        (told == ["cuda", "native", "eager", "mixed-eager"]).then_some(())
    })
    .await;
    cluster.nodes[new].terminate().await;
    // It comes back elsewhere, without a toolchain; its own index still has it as it was.
    let elsewhere = hold_ports(3).unwrap();
    let ports = &elsewhere.addresses;
    let config = &mut cluster.nodes[new].config;
    (config.grpc_listen, config.http_listen, config.transfer_listen) =
        (ports[0], ports[1], ports[2]);
    config.compile.nvrtc = Some(cluster.folder.path().join("none"));
    cluster.nodes[new].restart().await;
    let (old, new) = (&cluster.nodes[0], &cluster.nodes[new]);
    let here = new.config.grpc_listen.to_string();
    // First as it sees itself: from then on it cannot repeat what was.
    for asked in [new, old] {
        eventually("the new address", async || {
            let status = asked.status().await.ok()?;
            let told = status.nodes.into_iter().find(|node| node.id == new.id)?;
            (told.grpc == here && told.compilers.len() == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_finds_no_cluster_lives_and_is_not_ready() {
    let mut cluster = TestCluster::start(1).await;
    let new = cluster.newcomer(|_, config| config.start.join = vec!["127.0.0.1:1".into()]);
    cluster.nodes[new].spawn();
    let lost = &cluster.nodes[new];
    eventually("a sign of life", async || try_http(lost, "/healthz").await).await;
    let (code, body) = http(lost, "/readyz").await;
    assert_eq!(code, 503);
    assert!(body.contains("\"waiting\""), "{body}");
    assert_eq!(http(lost, "/metrics").await.0, 200);
}
