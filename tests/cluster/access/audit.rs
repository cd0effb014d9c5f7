//! What is done and refused is in a log that tells when it was changed.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_and_refused_is_in_a_log_that_tells_when_it_was_changed() {
    let cluster = TestCluster::start_with(1, required).await;
    let node = &cluster.nodes[0];
    let admin = token(node, None, &["--role", "admin"]).await;
    let writer = ["--role", "write", "--namespace", "team", "--name", "ci"];
    let writer = token(node, Some(&admin), &writer).await;
    let mut writes = client(node, Some(&writer));
    let key = publish(&mut writes, "team", "a").await.unwrap();
    publish(&mut writes, "other", "a").await.unwrap_err();
    writes.pin(pb::PinRequest { key: bytes_of(&key), pinned: true }).await.unwrap();
    let remove = pb::TombstoneRequest { key: bytes_of(&key), reason: "wrong".into() };
    writes.tombstone(remove).await.unwrap();
    kiln(&grpc(node), Some(&admin), &["token", "revoke", id_of(&writer)]).await;
    publish(&mut writes, "team", "b").await.unwrap_err();

    let data = node.data().to_str().unwrap();
    let by = format!("token {} (ci)", id_of(&writer));
    let expected = [
        ("create_token", id_of(&writer), "admin"),
        ("publish", &key.to_string(), &by),
        ("denied", "Publish", &by),
        ("pin", &key.to_string(), &by),
        ("remove", &key.to_string(), &by),
        ("revoke_token", id_of(&writer), "admin"),
        ("denied", "Publish", "anyone"),
    ];
    let read = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["audit", "show", "--json", "--data-dir", data]);
        let said = command.output().await.unwrap();
        let lines = said.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect::<Vec<Value>>()
    };
    for (event, subject, who) in expected {
        eventually(event, async || {
            let found = read().await.into_iter().find(|line| {
                let by = line["who"].as_str().unwrap_or_default();
                let same = if who == "admin" { by.starts_with("token") } else { by == who };
                line["event"] == event && line["subject"] == subject && same
            });
            found.map(drop)
        })
        .await;
    }
    let files = std::fs::read_dir(node.data().join("audit")).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let log = files.next().unwrap();
    let whole = std::fs::read_to_string(&log).unwrap();
    for secret in [&admin, &writer] {
        assert!(!whole.contains(&secret[22..]), "a secret is in the audit log");
    }
    let verify = ["audit", "verify", "--data-dir", data];
    let (code, told) = kiln(&grpc(node), Some(&admin), &verify).await;
    assert_eq!((code, &told["ok"]), (Some(0), &Value::from(true)), "{told}");
    // Whoever may write to the disk, and would rather not have done it.
    let changed = whole.replacen("\"event\":\"remove\"", "\"event\":\"pinned\"", 1);
    assert_ne!(changed, whole);
    std::fs::write(&log, changed).unwrap();
    let (code, told) = kiln(&grpc(node), Some(&admin), &verify).await;
    assert_eq!(code, Some(12), "{told}");
    assert!(told["problems"][0].as_str().unwrap().contains("changed"), "{told}");
}
