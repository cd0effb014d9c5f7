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
    // It has that already.
    assert_eq!(publish(&mut writes, "team", "a").await.unwrap(), key);
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
    let published = read().await.into_iter().filter(|line| line["event"] == "publish");
    assert_eq!(published.count(), 1, "what changes nothing is no deed");
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

/// The lines of an event about Redis values.
fn values(node: &TestNode, event: &str) -> Vec<Value> {
    let files = std::fs::read_dir(node.data().join("audit/values")).into_iter().flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
    let lines = texts.collect::<String>();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).collect()
}

/// A value for which there is no room is not published, and no line says that it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_mset_has_a_line_for_each_value_that_it_stores() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.audit.values = true;
        config.resp.max_value = 1024;
        config.resp.wait = Duration::ZERO;
    })
    .await;
    let node = &cluster.nodes[0];
    let mut redis = Redis::connect(node).await;
    let large = vec![b'x'; 1025];
    let words: [&[u8]; 7] = [b"MSET", b"a", b"1", b"large", &large, b"c", b"3"];
    assert_eq!(text(redis.command(words).await), "OK");
    assert_eq!(redis.get("a").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(redis.get("c").await.as_deref(), Some(&b"3"[..]));
    assert_eq!(redis.get("large").await, None);
    let lines = |event: &str| values(node, event);
    // Lines are in the order of the commands: with this one there is each before it.
    assert_eq!(integer(redis.command(["DEL", "a"]).await), 1);
    let removed = eventually("its line", async || lines("remove").pop()).await;
    let stored = lines("publish");
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert_ne!(stored[0]["subject"], stored[1]["subject"]);
    assert!(stored.iter().any(|line| line["subject"] == removed["subject"]), "{stored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_stores_nothing_has_no_line() {
    let cluster = TestCluster::start_with(1, |_, config| {
        config.audit.values = true;
        config.resp.wait = Duration::ZERO;
    })
    .await;
    let node = &cluster.nodes[0];
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["SET", "a", "1"]).await), "OK");
    for in_vain in [
        &["SET", "a", "2", "NX"][..],
        &["SETNX", "a", "3"],
        &["SET", "a", "4", "NX", "GET"],
        &["SET", "none", "5", "XX"],
        &["SET", "none", "6", "XX", "GET"],
        // It has that value.
        &["SET", "a", "1"],
    ] {
        let answer = redis.command(in_vain).await;
        assert_eq!(redis.get("a").await.as_deref(), Some(&b"1"[..]), "{in_vain:?}: {answer:?}");
        assert_eq!(redis.get("none").await, None, "{in_vain:?}: {answer:?}");
    }
    assert_eq!(text(redis.command(["SET", "a", "7", "XX"]).await), "OK");
    assert_eq!(text(redis.command(["SET", "b", "8", "NX"]).await), "OK");
    // Lines are in the order of the commands: with this one there is each before it.
    assert_eq!(integer(redis.command(["DEL", "a"]).await), 1);
    let removed = eventually("its line", async || values(node, "remove").pop()).await;
    let stored = values(node, "publish");
    let of_a = stored.iter().filter(|line| line["subject"] == removed["subject"]);
    assert_eq!((of_a.count(), stored.len()), (2, 3), "{stored:?}");
}
