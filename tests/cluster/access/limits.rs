//! A client that asks for too much is told when to ask again, and others are served.

use super::*;

fn limited(i: usize, config: &mut Config) {
    required(i, config);
    config.access.calls_per_second = 5;
    config.access.failures_per_minute = 1;
    config.access.bytes_in_flight = 1000;
}

#[track_caller]
fn assert_limited(refused: &Status) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let said = |name| refused.metadata().get(name).and_then(|value| value.to_str().ok());
    assert_eq!(said("kiln-kind"), Some("limited"), "{refused:?}");
    let after = said("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(after.is_some_and(|seconds| (1..=60).contains(&seconds)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_its_share_and_no_more() {
    let cluster = TestCluster::start_with(1, limited).await;
    let node = &cluster.nodes[0];
    let admin = token(node, None, &["--role", "admin"]).await;
    let words = ["--role", "write", "--namespace", "*", "--name"];
    let busy = token(node, Some(&admin), &[&words[..], &["busy"]].concat()).await;
    let quiet = token(node, Some(&admin), &[&words[..], &["quiet"]].concat()).await;

    // As fast as it can: it saves up two seconds' worth of calls.
    let mut client_of_busy = client(node, Some(&busy));
    let mut refused = None;
    for _ in 0..500 {
        if let Err(status) = client_of_busy.list(pb::ListRequest::default()).await {
            refused = Some(status);
            break;
        }
    }
    assert_limited(&refused.expect("500 calls, one after the other"));
    assert!(client(node, Some(&quiet)).list(pb::ListRequest::default()).await.is_ok());
    assert!(super::refused(node, "grpc", "limit_calls").await >= 1.0);
    // Redis commands count as calls of the same client, and its connection stays.
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["AUTH", &busy]).await), "OK");
    let mut told = String::new();
    for _ in 0..500 {
        told = text(redis.command(["PING"]).await);
        if told.starts_with("TRYAGAIN") {
            break;
        }
    }
    assert!(told.contains("calls_per_second") && told.contains("ms"), "{told}");
    eventually("its next share", async || {
        let answer = redis.command(["PING"]).await;
        (text(answer) == "PONG").then_some(())
    })
    .await;

    // A publication that has begun is on its way until it ends.
    let mut publisher = client(node, Some(&quiet));
    let announced = |name: &str| {
        let bytes = vec![b'x'; 600];
        let digest = Digest::of(&bytes);
        let mut manifest = value::manifest("default", name.as_bytes(), digest, 600, 0.0);
        manifest.pack_size = 600;
        let header = pb::PublishHeader {
            manifest: Some((&manifest).into()),
            replace: true,
            ..Default::default()
        };
        pb::PublishChunk { chunk: Some(Chunk::Header(header)) }
    };
    let kept = eventually("a value", async || {
        publish(&mut publisher.clone(), "default", &"k".repeat(900)).await.ok()
    })
    .await;
    let (chunks, stream) = tokio::sync::mpsc::channel(4);
    chunks.send(announced("first")).await.unwrap();
    let mut first = client(node, Some(&quiet));
    let begun = tokio::spawn(async move {
        first.publish(tokio_stream::wrappers::ReceiverStream::new(stream)).await
    });
    let refused = eventually("too many bytes", async || {
        let second = futures::stream::iter([announced("second")]);
        let refused = publisher.publish(second).await.unwrap_err();
        (refused.code() == Code::ResourceExhausted && refused.message().contains("bytes"))
            .then_some(refused)
    })
    .await;
    assert_limited(&refused);
    // What would be too much beside it is not even loaded: no tier was asked for it.
    let loaded = async || {
        let status = client(node, Some(&admin)).status(pb::StatusRequest::default()).await.ok()?;
        let counters = status.into_inner().counters.into_iter();
        Some(counters.filter(|of| of.name.starts_with("hits")).map(|of| of.value).sum::<u64>())
    };
    let before = eventually("the counters", loaded).await;
    let refused = eventually("too many bytes", async || {
        let fetch = pb::FetchRequest {
            key: kept.as_bytes().to_vec().into(),
            namespace: "default".into(),
            look: false,
        };
        let refused = publisher.clone().fetch(fetch).await.err()?;
        refused.message().contains("bytes").then_some(refused)
    })
    .await;
    assert_limited(&refused);
    assert_eq!(eventually("the counters", loaded).await, before);
    drop(chunks);
    assert!(begun.await.unwrap().is_err(), "it ended early");
    eventually("room again", async || publish(&mut publisher, "default", "third").await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_many_tokens_is_not_looked_at_for_a_while() {
    let cluster = TestCluster::start_with(1, limited).await;
    let node = &cluster.nodes[0];
    let admin = token(node, None, &["--role", "admin"]).await;
    let bad = format!("{}0", &admin[..admin.len() - 1]);
    let bad = if bad == admin { format!("{}1", &admin[..admin.len() - 1]) } else { bad };
    let mut codes = Vec::new();
    for _ in 0..20 {
        let told = client(node, Some(&bad)).list(pb::ListRequest::default()).await.unwrap_err();
        codes.push(told.code());
    }
    assert!(codes[..2].iter().all(|code| *code == Code::Unauthenticated), "{codes:?}");
    assert_eq!(codes.last(), Some(&Code::ResourceExhausted), "{codes:?}");
    // Nor is a good one from there, at any door of that address; the socket has none.
    assert_limited(&client(node, Some(&admin)).list(pb::ListRequest::default()).await.unwrap_err());
    let mut redis = Redis::connect(node).await;
    let told = text(redis.command(["AUTH", &admin]).await);
    assert!(told.starts_with("TRYAGAIN"), "{told}");
    assert_eq!(page(node, "/api/v1/state", &admin).await, 429);
    let (code, _) = kiln(&socket(node), Some(&admin), &["token", "list"]).await;
    assert_eq!(code, Some(0));
    for door in ["grpc", "resp", "http"] {
        assert!(refused(node, door, "limit_failures").await >= 1.0, "{door}");
    }
}
