//! A new node is let in by a token, once, and opens nothing else with it.

use super::*;

fn closed(i: usize, config: &mut Config) {
    required(i, config);
    config.cluster.join_needs_token = true;
}

/// The exit code of a node that is not let in, which says why in its log.
async fn refused_for(node: &mut TestNode, why: &str) {
    node.spawn();
    assert!(!node.wait_ready().await, "it was let in");
    assert_eq!(node.exit_code().await, Some(22), "{}", node.log());
    let log = node.log();
    assert!(log.contains("A001 not_admitted") && log.contains(why), "{why}: {log}");
    assert!(log.contains("--role join"), "what to do: {log}");
}

/// The lines of a part of the audit log.
fn audited(node: &TestNode, part: &str) -> String {
    let files = std::fs::read_dir(node.data().join("audit").join(part)).unwrap();
    files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_lets_one_node_in_and_opens_nothing_else() {
    let mut cluster = TestCluster::start_with(1, closed).await;
    let admin = token(&cluster.nodes[0], None, &["--role", "admin"]).await;
    let endpoint = grpc(&cluster.nodes[0]);
    let (_, status) = kiln(&endpoint, Some(&admin), &["status"]).await;
    assert_eq!(status["access"]["join_needs_token"], Value::from(true), "{status}");
    let file = cluster.folder.path().join("join.token");
    let made = ["token", "create", "--role", "join", "--out", file.to_str().unwrap()];
    let (code, made) = kiln(&endpoint, Some(&admin), &made).await;
    assert_eq!(code, Some(0), "{made}");
    let id = made["id"].as_str().unwrap().to_owned();
    let secret = std::fs::read_to_string(&file).unwrap().trim().to_owned();

    // It is no client's.
    let told = client(&cluster.nodes[0], Some(&secret)).list(pb::ListRequest::default()).await;
    assert_denied(&told.unwrap_err(), "A001");

    let one = cluster.newcomer(|_, _| {});
    refused_for(&mut cluster.nodes[one], "none was shown").await;
    cluster.nodes[one].config.start.join_token_file = Some(file.clone());
    cluster.nodes[one].restart().await;
    let other = cluster.newcomer(|_, _| {});
    cluster.nodes[other].config.start.join_token_file = Some(file.clone());
    refused_for(&mut cluster.nodes[other], "used up").await;
    let first = &cluster.nodes[0];
    assert!(refused(first, "members", "join_no_token").await >= 1.0);

    // A member comes back without, also where the file is gone.
    std::fs::remove_file(&file).unwrap();
    cluster.nodes[one].terminate().await;
    cluster.nodes[one].restart().await;
    // Whichever of the two was asked has it in its log.
    let whose = |part: &str| [0, one].map(|node| audited(&cluster.nodes[node], part)).concat();
    eventually("the audit log", async || {
        let (done, denied) = (whose(""), whose("refused"));
        let let_in = done.contains("\"let_in\"") && done.contains(&format!("join token {id}"));
        (let_in && denied.contains("join_no_token") && denied.contains("join_used_up"))
            .then_some(())
    })
    .await;
    let (_, list) = kiln(&endpoint, Some(&admin), &["token", "list"]).await;
    let listed = list.as_array().unwrap().iter().find(|token| token["id"] == id.as_str()).unwrap();
    assert_eq!((&listed["state"], &listed["used"]), (&"used".into(), &1.into()), "{list}");

    // A token for a fleet, revoked; and then the cluster is opened.
    let file = cluster.folder.path().join("fleet.token");
    let fleet = ["token", "create", "--role", "join", "--uses", "0", "--out"];
    let fleet = [&fleet[..], &[file.to_str().unwrap()]].concat();
    let (_, fleet) = kiln(&endpoint, Some(&admin), &fleet).await;
    let revoke = ["token", "revoke", fleet["id"].as_str().unwrap()];
    let (code, told) = kiln(&endpoint, Some(&admin), &revoke).await;
    assert_eq!((code, &told["changed"]), (Some(0), &Value::from(true)), "{told}");
    cluster.nodes[other].config.start.join_token_file = Some(file);
    refused_for(&mut cluster.nodes[other], "revoked").await;
    let (code, told) = kiln(&endpoint, Some(&admin), &["cluster", "joining", "nothing"]).await;
    assert_eq!((code, &told["changed"]), (Some(0), &Value::from(true)), "{told}");
    cluster.nodes[other].config.start.join_token_file = None;
    cluster.nodes[other].restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_that_makes_no_sense_is_refused_with_what_to_do() {
    let cluster = TestCluster::start_with(1, required).await;
    let endpoint = socket(&cluster.nodes[0]);
    for (words, told) in [
        (&["--role", "join", "--expires", "8d"][..], "7 days"),
        (&["--role", "join", "--namespace", "a"], "no namespace"),
        (&["--role", "read", "--namespace", "a", "--uses", "2"], "--role join"),
        (&["--role", "join", "--expires", "0s"], "expire at once"),
    ] {
        let (code, said) = kiln(&endpoint, None, &[&["token", "create"], words].concat()).await;
        let message = said["error"]["message"].as_str().unwrap_or_default();
        assert!(code == Some(2) && message.contains(told), "{words:?}: {code:?} {said}");
    }
}
