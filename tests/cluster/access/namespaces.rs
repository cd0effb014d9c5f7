//! A namespace is closed to the tokens of another.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_closed_to_the_tokens_of_another() {
    let cluster = TestCluster::start_with(1, required).await;
    let node = &cluster.nodes[0];
    let admin = token(node, None, &["--role", "admin"]).await;
    let of = async |namespace: &str| {
        token(node, Some(&admin), &["--role", "write", "--namespace", namespace]).await
    };
    let (ours, theirs) = (of("ours").await, of("theirs").await);
    let (mut our, mut their) = (client(node, Some(&ours)), client(node, Some(&theirs)));
    let key = publish(&mut our, "ours", "secret").await.unwrap();
    let shared = publish(&mut client(node, Some(&admin)), "release", "common").await.unwrap();

    let told = publish(&mut their, "ours", "secret").await.unwrap_err();
    assert_denied(&told, "A002");
    assert_denied(&publish(&mut their, "release", "common").await.unwrap_err(), "A002");
    let bytes = bytes_of(&key);
    let named = |namespace: &str| namespace.to_owned();
    let get = pb::FetchRequest { key: bytes.clone(), namespace: named("ours"), look: true };
    assert_denied(&their.fetch(get.clone()).await.unwrap_err(), "A002");
    our.fetch(get).await.unwrap();
    let get = pb::FetchRequest { key: bytes.clone(), namespace: named("theirs"), look: true };
    assert_eq!(their.fetch(get).await.unwrap_err().code(), Code::NotFound);
    let look = |namespace: &str| {
        let (key, namespace) = (bytes.clone(), namespace.to_owned());
        pb::LookupRequest { key, namespace, linearizable: false }
    };
    assert_denied(&their.lookup(look("ours")).await.unwrap_err(), "A002");
    assert!(their.lookup(look("theirs")).await.unwrap().into_inner().entry.is_none());

    let listed = async |client: &mut Client, namespace: &str| {
        let request =
            pb::ListRequest { namespace: namespace.into(), count: true, ..Default::default() };
        client.list(request).await.map(tonic::Response::into_inner)
    };
    assert_denied(&listed(&mut their, "ours").await.unwrap_err(), "A002");
    let seen = listed(&mut their, "").await.unwrap();
    assert_eq!((seen.entries.len(), seen.matching.unwrap().entries), (1, 1), "what is shared");
    assert_eq!(listed(&mut our, "").await.unwrap().entries.len(), 2);

    // By the key alone it is as if it were not there.
    let subject = Some(pb::explain_request::Subject::Key(bytes.clone()));
    let why = pb::ExplainRequest { subject };
    assert_eq!(their.explain(why.clone()).await.unwrap_err().code(), Code::NotFound);
    assert!(our.explain(why).await.unwrap().into_inner().stored);
    let pin = pb::PinRequest { key: bytes.clone(), pinned: true };
    assert_eq!(their.pin(pin.clone()).await.unwrap_err().code(), Code::NotFound);
    let lease = pb::LeaseRequest { key: bytes.clone(), deadline_ms: 1000 };
    assert_eq!(their.lease(lease).await.unwrap_err().code(), Code::NotFound);
    let remove = pb::TombstoneRequest { key: bytes.clone(), reason: "mine now".into() };
    assert!(!their.tombstone(remove.clone()).await.unwrap().into_inner().existed);
    let of_shared = pb::TombstoneRequest { key: bytes_of(&shared), reason: "mine now".into() };
    assert_denied(&their.tombstone(of_shared).await.unwrap_err(), "A002");
    our.pin(pin).await.unwrap();
    let subject = Some(pb::explain_request::Subject::Key(bytes_of(&shared)));
    let near = their.explain(pb::ExplainRequest { subject }).await.unwrap().into_inner();
    assert!(near.nearest.is_empty(), "another's key is no neighbour");
    let plan = pb::PlanRequest { namespace: "ours".into(), ..Default::default() };
    assert_denied(&their.plan(plan).await.unwrap_err(), "A002");
    let compile = pb::CompileRequest { namespace: "ours".into(), ..Default::default() };
    assert_denied(&their.compile(compile).await.unwrap_err(), "A002");
    assert_denied(&their.overview(pb::OverviewRequest::default()).await.unwrap_err(), "A002");
    assert!(refused(node, "grpc", "namespace").await >= 13.0);

    // Redis: a token of one namespace is at home there, and another's is closed.
    let mut redis = Redis::connect(node).await;
    assert_eq!(text(redis.command(["AUTH", &ours]).await), "OK");
    redis.set("name", "value").await;
    let mut other = Redis::connect(node).await;
    let told = text(other.command(["AUTH", "ours", &theirs]).await);
    assert!(told.starts_with("WRONGPASS"), "{told}");
    assert_eq!(text(other.command(["AUTH", "default", &theirs]).await), "OK");
    assert_eq!(other.get("name").await, None);
    assert_eq!(integer(other.command(["DBSIZE"]).await), 0);
    assert!(array(array(other.command(["SCAN", "0"]).await).remove(1)).is_empty());
    assert_eq!(integer(other.command(["DEL", "name"]).await), 0);
    assert_eq!(redis.get("name").await.as_deref(), Some(&b"value"[..]));
    let mut reader = Redis::connect(node).await;
    assert_eq!(text(reader.command(["AUTH", "release", &theirs]).await), "OK", "what is shared");
    assert!(text(reader.command(["SET", "a", "b"]).await).starts_with("NOPERM"));

    // The dashboard shows all namespaces: to who may read them.
    assert_eq!(page(node, "/api/v1/state", &theirs).await, 403);
    let artifact = format!("/api/v1/artifacts/{key}");
    assert_eq!(page(node, &artifact, &theirs).await, 403);
    assert_eq!(page(node, &artifact, &admin).await, 200);

    // The socket of this machine: descriptors for who may read, blobs for who may read all.
    let path = node.config.socket.as_ref().unwrap();
    let local = async |token: Option<&str>| {
        let mut local = LocalClient::connect(path, ClientSettings::default()).await.unwrap();
        local.show(token.map(str::to_owned));
        local
    };
    let blob = Digest::of(b"secret");
    for shown in [None, Some(theirs.as_str())] {
        let told = local(shown).await.fetch(&key, "ours").await.unwrap_err();
        assert!(matches!(told, TransferError::Denied(_)), "{told:?}");
        let told = local(shown).await.fetch_blob(&blob).await.unwrap_err();
        assert!(matches!(told, TransferError::Denied(_)), "{told:?}");
    }
    let told = local(Some(&theirs)).await.fetch(&key, "theirs").await.unwrap_err();
    assert!(matches!(told, TransferError::NotFound), "{told:?}");
    let mapped = local(Some(&ours)).await.fetch(&key, "ours").await.unwrap();
    assert_eq!(&*mapped.pack, b"secret");
    assert!(local(Some(&ours)).await.fetch_blob(&blob).await.is_err());
    local(Some(&admin)).await.fetch_blob(&blob).await.unwrap();
    assert!(refused(node, "socket", "namespace").await >= 3.0);

    // The owner removes what is its own.
    assert!(our.tombstone(remove).await.unwrap().into_inner().existed);
}
