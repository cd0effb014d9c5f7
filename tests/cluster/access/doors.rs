//! Nobody unknown is served at any door, and a reader changes nothing.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_unknown_is_served_at_any_door_and_a_reader_changes_nothing() {
    let cluster = TestCluster::start_with(1, required).await;
    let node = &cluster.nodes[0];
    let all = methods();
    assert!(all.len() > 25, "{all:?}");
    let never_made = "kiln_0000000000000001_".to_owned() + &"0".repeat(64);
    for method in &all {
        for shown in [None, Some(never_made.as_str()), Some("no token")] {
            let told = call(&grpc(node), method, shown).await.unwrap_err();
            assert_denied(&told, "A001");
            assert!(!told.message().contains("no token\""), "{told}");
        }
    }
    let times = all.len() as f64;
    assert_eq!(refused(node, "grpc", "no_credential").await, times);
    assert_eq!(refused(node, "grpc", "unknown").await, times);
    assert_eq!(refused(node, "grpc", "malformed").await, times);
    let (exit, told) = kiln(&grpc(node), None, &["ls"]).await;
    assert_eq!((exit, &told["error"]["code"]), (Some(22), &Value::from("A001")), "{told}");
    assert!(told["error"]["advice"].as_str().unwrap().contains("kiln token create"));

    // The members' port has members' calls alone.
    let members = format!("http://{}", node.config.transfer_listen);
    for method in ["Publish", "Tombstone", "CreateToken", "List", "RevokeSigner"] {
        let told = call(&members, method, None).await.unwrap_err();
        assert_denied(&told, "A002");
    }

    // Redis, and what a browser asks. Health and metrics are for whoever probes.
    let mut redis = Redis::connect(node).await;
    for words in [&["GET", "a"][..], &["SET", "a", "b"], &["SCAN", "0"], &["DBSIZE"], &["INFO"]] {
        assert!(text(redis.command(words).await).starts_with("NOAUTH"), "{words:?}");
    }
    for words in [&["AUTH", "x"][..], &["AUTH", "default", "x"], &["AUTH", "team", &never_made]] {
        assert!(text(redis.command(words).await).starts_with("WRONGPASS"), "{words:?}");
    }
    let told = refused(node, "resp", "no_credential").await;
    assert!(told >= 5.0, "{told}: those are counted, too");
    for page in ["/api/v1/state", "/api/v1/events", "/api/v1/artifacts/00"] {
        assert_eq!(crate::harness::http(node, page).await.0, 401, "{page}");
    }
    for page in ["/healthz", "/readyz", "/metrics", "/ui/"] {
        assert_eq!(crate::harness::http(node, page).await.0, 200, "{page}");
    }

    // Its own user may make the first admin, and is none once there is one.
    let admin = token(node, None, &["--role", "admin"]).await;
    let (exit, told) = kiln(&socket(node), None, &["token", "list"]).await;
    assert_eq!((exit, &told["error"]["code"]), (Some(22), &Value::from("A001")), "{told}");
    // What its pod needs it may: to ask how it is, and to leave. A probe says nothing.
    assert_eq!(kiln(&socket(node), None, &["status"]).await.0, Some(0));
    let (exit, told) = kiln(&grpc(node), None, &["status", "--probe"]).await;
    assert_eq!((exit, &told["answers"]), (Some(0), &Value::from(true)), "{told}");
    let reader = token(node, Some(&admin), &["--role", "read", "--namespace", "*"]).await;
    let mut writes = 0;
    for method in &all {
        let told = call(&grpc(node), method, Some(&reader)).await;
        let refused = told.as_ref().err().filter(|told| code(told) == Some("A002"));
        if let Some(told) = refused {
            assert_denied(told, "A002");
            writes += 1;
        }
    }
    assert_eq!(refused(node, "grpc", "role").await, f64::from(writes));
    let reads = [
        "Attest", "Explain", "Fetch", "List", "Loaded", "Lookup", "Metrics", "Monitor", "Overview",
    ];
    assert_eq!(all.len() as i32 - writes, reads.len() as i32 + 3, "and Plan, Signers, Status");
    let mut reading = client(node, Some(&reader));
    assert_denied(&publish(&mut reading, "default", "a").await.unwrap_err(), "A002");
    reading.list(pb::ListRequest::default()).await.unwrap();
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["AUTH", &reader]).await), "OK");
    for words in [&["SET", "a", "b"][..], &["MSET", "a", "b"], &["DEL", "a"], &["SETNX", "a", "b"]]
    {
        assert!(text(redis.command(words).await).starts_with("NOPERM"), "{words:?}");
    }
    assert_eq!(integer(redis.command(["DBSIZE"]).await), 0);
    let shown = node.log();
    for secret in [&admin, &reader] {
        assert!(!shown.contains(&secret[22..]), "a secret is in the log");
    }
}
