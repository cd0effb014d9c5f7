//! A token ends on every node when it is revoked, and when its time is over.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_revoked_or_has_expired_is_refused_on_every_node() {
    let mut cluster = TestCluster::start_with(3, required).await;
    let admin = token(&cluster.nodes[0], None, &["--role", "admin"]).await;
    let words = ["--role", "write", "--namespace", "*", "--name", "stolen"];
    let stolen = token(&cluster.nodes[0], Some(&admin), &words).await;
    let mut sessions = Vec::new();
    for node in &cluster.nodes {
        eventually("the token on every node", async || {
            client(node, Some(&stolen)).list(pb::ListRequest::default()).await.ok()
        })
        .await;
        let mut redis = Redis::connect(node).await;
        assert_eq!(text(redis.command(["AUTH", &stolen]).await), "OK");
        sessions.push(redis);
    }
    let free = value::manifest("default", b"free", Digest::of(b"free"), 4, 0.0).key;
    let free = pb::LeaseRequest { key: bytes_of(&free), deadline_ms: 60_000 };
    let mut holder = client(&cluster.nodes[1], Some(&stolen));
    let mut lease = holder.lease(free).await.unwrap().into_inner();
    let granted = lease.message().await.unwrap().unwrap().event;
    assert!(matches!(granted, Some(pb::lease_event::Event::Granted(_))), "{granted:?}");
    let revoke = ["token", "revoke", id_of(&stolen)];
    let (code, told) = kiln(&grpc(&cluster.nodes[1]), Some(&admin), &revoke).await;
    assert_eq!((code, &told["changed"]), (Some(0), &Value::from(true)), "{told}");
    for (node, redis) in cluster.nodes.iter().zip(&mut sessions) {
        let refused = eventually("the revocation", async || {
            client(node, Some(&stolen)).list(pb::ListRequest::default()).await.err()
        })
        .await;
        assert_denied(&refused, "A001");
        assert!(refused.message().contains("revoked"), "{refused}");
        // A connection of before is no better.
        let told = text(redis.command(["SET", "a", "b"]).await);
        assert!(told.starts_with("NOAUTH") && told.contains("revoked"), "{told}");
        assert!(text(redis.command(["GET", "a"]).await).starts_with("NOAUTH"));
    }
    // Nor does it keep a key from others.
    assert_denied(&lease.message().await.unwrap_err(), "A001");
    let words = ["--role", "read", "--namespace", "*", "--expires", "1ms"];
    let expired = token(&cluster.nodes[2], Some(&admin), &words).await;
    for node in &cluster.nodes {
        let refused = eventually("the end", async || {
            let told = client(node, Some(&expired)).list(pb::ListRequest::default()).await.err();
            told.filter(|told| told.message().contains("expired"))
        })
        .await;
        assert_denied(&refused, "A001");
    }
    // Also after a restart; and the list says how each of them is.
    cluster.nodes[0].restart().await;
    let again = client(&cluster.nodes[0], Some(&stolen)).list(pb::ListRequest::default()).await;
    assert_denied(&again.unwrap_err(), "A001");
    let (_, list) = kiln(&grpc(&cluster.nodes[0]), Some(&admin), &["token", "list"]).await;
    let list = list.as_array().unwrap();
    let state = |token: &str| {
        let found = list.iter().find(|listed| listed["id"] == id_of(token)).unwrap();
        found["state"].as_str().unwrap()
    };
    assert_eq!((state(&stolen), state(&expired), state(&admin)), ("revoked", "expired", "good"));
    assert!(!list.iter().any(|token| token.to_string().contains(&stolen[22..])));
}
