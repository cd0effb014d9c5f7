//! Who may ask for what: each of those who may not, at each door, refused with a code and
//! counted, on every node.

use std::time::Duration;

use kiln::{
    config::Config,
    transfer::{ClientSettings, LocalClient, TransferError},
};
use kiln_proto::{
    ArtifactKey, Digest, pb,
    pb::{kiln_client::KilnClient, publish_chunk::Chunk},
    value,
};
use serde_json::Value;
use tokio::process::Command;
use tonic::{
    Code, Request, Status,
    codegen::http::uri::PathAndQuery,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    harness::{TestCluster, TestNode, bytes_of, code, eventually, metrics},
    redis::{Redis, array, integer, text},
};

fn required(_: usize, config: &mut Config) {
    config.access.required = true;
    config.access.shared = vec!["release".into()];
    config.resp.wait = Duration::ZERO;
}

/// `kiln`, as a client of the endpoint, with a token or without.
async fn kiln(endpoint: &str, token: Option<&str>, words: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(words).args(["--json", "--endpoint", endpoint]).kill_on_drop(true);
    command.env_remove("KILN_TOKEN").env_remove("KILN_TOKEN_FILE");
    if let Some(token) = token {
        command.env("KILN_TOKEN", token);
    }
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].into_iter().find(|text| !text.is_empty());
    let said = said.unwrap_or_default();
    let first = said.split(|byte| *byte == b'\n').next().unwrap_or_default();
    (output.status.code(), serde_json::from_slice(first).unwrap_or_default())
}

fn grpc(node: &TestNode) -> String {
    format!("http://{}", node.config.grpc_listen)
}

fn socket(node: &TestNode) -> String {
    format!("unix:{}", node.config.socket.as_ref().unwrap().display())
}

/// A token, made by who has `by`, or at the node's socket.
async fn token(node: &TestNode, by: Option<&str>, words: &[&str]) -> String {
    let endpoint = if by.is_some() { grpc(node) } else { socket(node) };
    let (code, made) = kiln(&endpoint, by, &[&["token", "create"], words].concat()).await;
    assert_eq!(code, Some(0), "{made}");
    made["token"].as_str().unwrap().to_owned()
}

fn id_of(token: &str) -> &str {
    token.split('_').nth(1).unwrap()
}

#[derive(Clone)]
struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

type Client = KilnClient<InterceptedService<Channel, Bearer>>;

fn client(node: &TestNode, token: Option<&str>) -> Client {
    let channel = Endpoint::from_shared(grpc(node)).unwrap().connect_lazy();
    KilnClient::with_interceptor(channel, Bearer(token.map(str::to_owned)))
}

/// Calls a method by its name, with an empty message.
async fn call(address: &str, method: &str, token: Option<&str>) -> Result<(), Status> {
    let channel = Endpoint::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
    let bearer = Bearer(token.map(str::to_owned));
    let mut grpc = tonic::client::Grpc::new(InterceptedService::new(channel, bearer));
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = format!("/kiln.v1.Kiln/{method}").parse::<PathAndQuery>().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    grpc.unary(Request::new(()), path, codec).await.map(drop)
}

fn methods() -> Vec<&'static str> {
    let text = include_str!("../../proto/proto/kiln/v1/kiln.proto");
    let methods = text.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    methods.filter_map(|line| Some(line.split_once('(')?.0)).collect()
}

/// Publishes the value `name` in `namespace`.
async fn publish(client: &mut Client, namespace: &str, name: &str) -> Result<ArtifactKey, Status> {
    let bytes = name.as_bytes();
    let manifest = value::manifest(namespace, bytes, Digest::of(bytes), bytes.len() as u64, 0.0);
    let (key, manifest) = (manifest.key, Some((&manifest).into()));
    let header = pb::PublishHeader { manifest, replace: true, ..Default::default() };
    let data = prost::bytes::Bytes::copy_from_slice(bytes);
    let chunks = [Chunk::Header(header), Chunk::Data(data)];
    let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
    client.publish(futures::stream::iter(chunks)).await?;
    Ok(key)
}

#[track_caller]
fn assert_denied(refused: &Status, as_code: &str) {
    let expected = if as_code == "A001" { Code::Unauthenticated } else { Code::PermissionDenied };
    assert_eq!((refused.code(), code(refused)), (expected, Some(as_code)), "{refused:?}");
    assert!(refused.metadata().contains_key("kiln-advice"), "{refused:?}");
}

/// The status code of a page for who shows `token` as a browser or a program does.
async fn page(node: &TestNode, path: &str, token: &str) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(node.config.http_listen).await.unwrap();
    let shown = format!("Authorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    let request = format!("GET {path} HTTP/1.1\r\nHost: kiln\r\n{shown}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// How often `why` was counted at `door`.
async fn refused(node: &TestNode, door: &str, why: &str) -> f64 {
    let page = metrics(node).await;
    let line = format!("kiln_access_refused_total{{door=\"{door}\",why=\"{why}\"}} ");
    let found = page.lines().find_map(|found| found.strip_prefix(&line));
    found.map_or(0.0, |value| value.parse().unwrap())
}

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
    let reads = ["Explain", "Fetch", "List", "Loaded", "Lookup", "Metrics", "Monitor", "Overview"];
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
    let log = std::fs::read_dir(node.data().join("audit")).unwrap().next().unwrap().unwrap().path();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_has_the_rights_of_its_row() {
    let mut cluster = TestCluster::start_with(1, required).await;
    let folder = cluster.folder.path().join("ca");
    let certs = |arguments: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        let made = command.arg("certs").args(arguments.split(' ')).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    let dir = folder.display().to_string();
    certs(&format!("init --dir {dir}"));
    certs(&format!("issue server --dir {dir} --out {dir} --name node --host 127.0.0.1"));
    for (name, host) in [("trainer", "trainer.kiln"), ("stranger", "stranger.kiln")] {
        certs(&format!("issue client --dir {dir} --out {dir} --name {name} --host {host}"));
    }
    let file = |name: &str| folder.join(name);
    let admin = token(&cluster.nodes[0], None, &["--role", "admin"]).await;
    let node = &mut cluster.nodes[0];
    node.terminate().await;
    let clients = &mut node.config.tls.clients;
    clients.mode = kiln::net::tls::Mode::Require;
    clients.verify = kiln::net::tls::Verify::Optional;
    (clients.cert, clients.key) = (Some(file("node-server.pem")), Some(file("node-server.key")));
    clients.ca = Some(file("clients-ca.pem"));
    node.config.access.certificates = vec!["trainer.kiln write team".into()];
    node.spawn();
    assert!(node.wait_ready().await);
    let node = &cluster.nodes[0];
    let endpoint = format!("https://{}", node.config.grpc_listen);
    let ask = async |who: Option<&str>, words: &[&str]| {
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["--ca".into(), format!("{dir}/clients-ca.pem")]);
        if let Some(who) = who {
            arguments.extend(["--cert".into(), format!("{dir}/{who}-client.pem")]);
            arguments.extend(["--cert-key".into(), format!("{dir}/{who}-client.key")]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        kiln(&endpoint, None, &arguments).await
    };
    let (code, told) = ask(Some("trainer"), &["status"]).await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told["access"]["caller"], "certificate trainer.kiln", "{told}");
    assert_eq!(told["access"]["role"], "write", "{told}");
    for (who, words, refused) in [
        (None, &["status"][..], "A001"),
        (Some("stranger"), &["status"], "A001"),
        (Some("trainer"), &["ls", "--namespace", "other"], "A002"),
        (Some("trainer"), &["token", "list"], "A002"),
    ] {
        let (code, told) = ask(who, words).await;
        assert_eq!((code, &told["error"]["code"]), (Some(22), &Value::from(refused)), "{told}");
    }

    // Redis in TLS: the certificate's namespace, or that of a token.
    let resp = async |who: Option<&str>, commands: &[&[&str]]| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let pair = who.map(|who| {
            let file = |end: &str| folder.join(format!("{who}-client.{end}"));
            (file("pem"), file("key"))
        });
        let own = pair.as_ref().map(|(cert, key)| (&**cert, &**key));
        let tls = kiln::net::tls::ClientTls::new(&folder.join("clients-ca.pem"), own).unwrap();
        let port = node.config.resp_listen.unwrap().port();
        let mut stream = tls.connect("127.0.0.1", port).await.unwrap();
        let words = commands.iter().copied().chain([&["QUIT"][..]]);
        for words in words {
            stream.write_all(&crate::redis::request(words)).await.unwrap();
        }
        let mut said = Vec::new();
        // Who is told goodbye may be cut off without TLS's own.
        let _ = stream.read_to_end(&mut said).await;
        let said = String::from_utf8(said).unwrap();
        said.split("\r\n")
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let set = ["SET", "name", "value"];
    assert_eq!(resp(Some("trainer"), &[&set, &["DBSIZE"]]).await[..2], ["+OK", ":1"]);
    for nobody in [None, Some("stranger")] {
        let said = resp(nobody, &[&set, &["GET", "name"]]).await;
        assert_eq!(said[..2], ["-NOAUTH", "-NOAUTH"], "{nobody:?}");
    }
    let said = resp(None, &[&["AUTH", "team", &admin], &["GET", "name"]]).await;
    assert_eq!(said[..3], ["+OK", "$5", "value"]);
}
