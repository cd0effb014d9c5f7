//! Ports by audience, and TLS between members and with clients: who is kept out, and how a
//! running cluster gets there.

mod certs;
mod joined;

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use kiln::{
    config::Proofs,
    net::tls::{ClientTls, Mode, Verify},
};
use kiln_proto::pb;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code, Request, Status,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use crate::{
    harness::{TestCluster, TestNode, eventually},
    metrics::sum,
};

/// Every method of the peers' service.
fn peers_methods() -> Vec<String> {
    let text = include_str!("../../cluster/proto/kiln/cluster/v1/cluster.proto");
    let methods = text.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    methods.filter_map(|line| Some(line.split_once('(')?.0.to_owned())).collect()
}

/// Calls a method of the peers' service with an empty message, as the node `from`.
async fn call(channel: Channel, method: &str, from: Option<u64>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = format!("/kiln.cluster.v1.Peer/{method}").parse::<PathAndQuery>().unwrap();
    let mut request = Request::new(());
    if let Some(from) = from {
        request.metadata_mut().insert("kiln-from", from.into());
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    grpc.unary(request, path, codec).await.map(drop)
}

fn plain(address: impl std::fmt::Display) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

fn encrypted(node: &TestNode, ca: &Path, own: Option<(&Path, &Path)>) -> Channel {
    let tls = ClientTls::new(ca, own).unwrap();
    let address = node.config.transfer_listen;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            tls.connect(&address.ip().to_string(), address.port()).await.map(TokioIo::new)
        }
    }))
}

/// A metric of `node`, over all labels but those named.
async fn metric(node: &TestNode, name: &str, labels: &[(&str, &str)]) -> f64 {
    let asked = node.client().await.metrics(pb::MetricsRequest { cluster: false }).await.unwrap();
    sum(&asked.into_inner().nodes[0].metrics, name, labels)
}

/// Runs `kiln certs`.
fn certs(arguments: &str) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("certs").args(arguments.split(' ')).output().unwrap()
}

/// Authorities in `folder`, and a certificate for each member.
struct Authority(PathBuf);

impl Authority {
    fn new(folder: PathBuf) -> Self {
        let made = certs(&format!("init --dir {}", folder.display()));
        assert!(made.status.success(), "{made:?}");
        Self(folder)
    }

    fn ca(&self) -> PathBuf {
        self.0.join("members-ca.pem")
    }

    /// A member's certificate and key, with `more` arguments.
    fn member(&self, name: &str, more: &str) -> (PathBuf, PathBuf) {
        let folder = self.0.display();
        let made = certs(&format!(
            "issue member --dir {folder} --out {folder} --name {name} --host 127.0.0.1{more}"
        ));
        assert!(made.status.success(), "{made:?}");
        let file = |end: &str| self.0.join(format!("{name}-member.{end}"));
        (file("pem"), file("key"))
    }
}

/// A value set at one node is had from another.
async fn is_shared(from: &TestNode, to: &TestNode, value: &str) {
    let command = |words: &[&str]| {
        let words: String = words.iter().map(|w| format!("${}\r\n{w}\r\n", w.len())).collect();
        words
    };
    let ask = async |node: &TestNode, words: &[&str]| {
        let mut stream = TcpStream::connect(node.config.resp_listen.unwrap()).await.ok()?;
        let text = format!("*{}\r\n{}", words.len(), command(words));
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = [0; 256];
        let came = stream.read(&mut answer).await.ok()?;
        Some(String::from_utf8_lossy(&answer[..came]).into_owned())
    };
    // Between two leaders a SET is answered and not stored: then once more.
    eventually("the value", async || {
        ask(from, &["SET", value, value]).await?;
        ask(to, &["GET", value]).await?.contains(&format!("\r\n{value}\r\n")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_send_a_peers_command() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let methods = peers_methods();
    assert!(methods.len() >= 10, "{methods:?}");
    for method in &methods {
        let refused = call(plain(node.config.grpc_listen), method, Some(1)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{method}: {refused}");
        assert!(refused.message().contains("clients' port"), "{method}: {refused}");
        assert_eq!(crate::harness::code(&refused), Some("A002"), "{method}: {refused:?}");
        let taken = call(plain(node.config.transfer_listen), method, Some(1)).await;
        let code = taken.err().map(|e| e.code());
        assert_ne!(code, Some(Code::Unimplemented), "{method} is no method");
    }
    let counted = metric(node, "kiln_refused_peers_total", &[("why", "clients_port")]).await;
    assert_eq!(counted, methods.len() as f64);
    let told = [("door", "grpc"), ("why", "clients_port")];
    assert_eq!(metric(node, "kiln_access_refused_total", &told).await, counted);
    // And it is in the audit log, by its name.
    eventually("the line", async || refusals(node).contains("\"event\":\"denied\"").then_some(()))
        .await;
}

/// What the audit log of `node` has of callers that were refused.
fn refusals(node: &TestNode) -> String {
    let files = std::fs::read_dir(node.data().join("audit/refused")).into_iter().flatten();
    files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok()).collect()
}

/// Its lines about `who` that say this.
fn told_of(node: &TestNode, who: &str, said: &str) -> Vec<String> {
    let who = format!("\"who\":\"{who}\"");
    let lines = refusals(node).lines().map(str::to_owned).collect::<Vec<_>>();
    lines.into_iter().filter(|line| line.contains(&who) && line.contains(said)).collect()
}

/// From plain text to TLS while values are written; then those who are no members.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_cluster_gets_tls_and_keeps_out_who_is_no_member() {
    let mut cluster =
        TestCluster::start_with(3, |_, config| config.resp.wait = std::time::Duration::ZERO).await;
    let authority = Authority::new(cluster.folder.path().join("ca"));
    for (i, node) in cluster.nodes.iter_mut().enumerate() {
        let data = node.config.data_dir.display();
        let more = format!(" --node {} --data-dir {data}", node.id);
        let (cert, key) = authority.member(&format!("node-{i}"), &more);
        let members = &mut node.config.tls.members;
        (members.cert, members.key) = (Some(cert), Some(key));
        members.ca = Some(authority.ca());
    }
    for (step, mode) in [Mode::Accept, Mode::Dial, Mode::Require].into_iter().enumerate() {
        for i in 0..3 {
            cluster.nodes[i].terminate().await;
            // The two others are a quorum.
            let (one, other) = ((i + 1) % 3, (i + 2) % 3);
            let value = format!("value-{step}-{i}");
            is_shared(&cluster.nodes[one], &cluster.nodes[other], &value).await;
            cluster.nodes[i].config.tls.members.mode = mode;
            cluster.nodes[i].restart().await;
            is_shared(&cluster.nodes[other], &cluster.nodes[i], &format!("{value}-back")).await;
        }
    }

    let node = &cluster.nodes[0];
    let stranger = Authority::new(cluster.folder.path().join("stranger"));
    let of_stranger = stranger.member("stranger", "");
    let expired = expired(&authority.0);
    let ca = authority.ca();
    let own = |pair: &'_ (PathBuf, PathBuf)| (pair.0.clone(), pair.1.clone());
    let attackers = [
        ("plain_text", None),
        ("no_certificate", Some(None)),
        ("unknown_issuer", Some(Some(own(&of_stranger)))),
        ("expired", Some(Some(own(&expired)))),
    ];
    for (why, shown) in attackers {
        let labels = [("port", "members"), ("why", why)];
        let before = metric(node, "kiln_tls_refused_total", &labels).await;
        let channel = match &shown {
            None => plain(node.config.transfer_listen),
            Some(shown) => {
                let shown = shown.as_ref().map(|(cert, key)| (&**cert, &**key));
                encrypted(node, &ca, shown)
            }
        };
        let refused = call(channel, "Hello", None).await.unwrap_err();
        let answered = [Code::Ok, Code::InvalidArgument, Code::Unimplemented];
        assert!(!answered.contains(&refused.code()), "{why}: {refused}");
        eventually("the refusal to be counted", async || {
            let now = metric(node, "kiln_tls_refused_total", &labels).await;
            (now > before).then_some(())
        })
        .await;
        eventually("the refusal in the audit log", async || {
            let said = format!("{why} at members");
            refusals(node).lines().any(|line| line.contains(&said)).then_some(())
        })
        .await;
    }

    let nine = authority.member("nine", " --node 9");
    let channel = || encrypted(node, &ca, Some((&nine.0, &nine.1)));
    for method in ["Vote", "PreVote", "TransferLeader", "Ask", "Append", "Snapshot", "Acquire"] {
        for claimed in [Some(cluster.nodes[1].id), None] {
            let refused = call(channel(), method, claimed).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{method}: {refused}");
            assert!(refused.message().contains("names node 9"), "{method}: {refused}");
        }
    }
    assert!(metric(node, "kiln_refused_peers_total", &[("why", "wrong_node")]).await >= 14.0);
    eventually("who it was, in the audit log", async || {
        (!told_of(node, "node 9", "wrong_node at members").is_empty()).then_some(())
    })
    .await;
    // However often it tries, the log has ten lines a second of it, and says how many there were.
    let (tries, began, channel) = (500, std::time::Instant::now(), channel());
    for _ in 0..tries {
        call(channel.clone(), "Vote", None).await.unwrap_err();
    }
    let counted = metric(node, "kiln_refused_peers_total", &[("why", "wrong_node")]).await;
    eventually("all of them to be told of", async || {
        // One more after each second tells of those that had no line.
        call(channel.clone(), "Vote", None).await.unwrap_err();
        let lines = told_of(node, "node 9", "wrong_node at members");
        let left_out = |line: &String| {
            let said = line.split_once("and ")?.1.split_once(" more before it")?.0;
            said.parse::<usize>().ok()
        };
        let all = lines.len() + lines.iter().filter_map(left_out).sum::<usize>();
        (all as f64 >= counted).then_some(())
    })
    .await;
    // Those before are a few.
    let most = 20 + 10 * (began.elapsed().as_secs() as usize + 2);
    let lines = told_of(node, "node 9", "wrong_node at members");
    assert!(lines.len() <= most, "{} lines of {tries} tries, and not {most}", lines.len());
    assert!(lines.iter().all(|line| line.contains("127.0.0.1: node 9 speaks for")), "{lines:?}");
}

/// A certificate of the authority in `folder` that is over.
fn expired(folder: &Path) -> (PathBuf, PathBuf) {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let signing = rcgen::KeyPair::from_pem(&read("members-ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("members-ca.pem"), signing).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    let (at, key_at) = (folder.join("expired.pem"), folder.join("expired.key"));
    std::fs::write(&at, cert.pem()).unwrap();
    std::fs::write(&key_at, key.serialize_pem()).unwrap();
    (at, key_at)
}

/// Clients in TLS, with certificates that are exchanged while the node runs.
#[tokio::test(flavor = "multi_thread")]
async fn clients_speak_tls_with_certificates_that_change() {
    let mut cluster = TestCluster::start(1).await;
    let folder = cluster.folder.path().join("ca");
    let authority = Authority::new(folder.clone());
    let issue = |kind: &str, name: &str, more: &str| {
        let folder = authority.0.display();
        let made =
            certs(&format!("issue {kind} --dir {folder} --out {folder} --name {name}{more}"));
        assert!(made.status.success(), "{made:?}");
    };
    issue("server", "a", " --host 127.0.0.1");
    issue("server", "b", " --host 127.0.0.1");
    issue("client", "ada", "");
    let file = |name: &str| folder.join(name);
    for end in ["pem", "key"] {
        std::fs::copy(file(&format!("a-server.{end}")), file(&format!("now.{end}"))).unwrap();
    }
    cluster.nodes[0].terminate().await;
    let clients = &mut cluster.nodes[0].config.tls.clients;
    (clients.mode, clients.verify) = (Mode::Accept, Verify::Optional);
    (clients.cert, clients.key) = (Some(file("now.pem")), Some(file("now.key")));
    clients.ca = Some(file("clients-ca.pem"));
    cluster.nodes[0].restart().await;
    let node = &cluster.nodes[0];

    let status = async |arguments: Vec<String>| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        let endpoint = format!("https://{}", node.config.grpc_listen);
        command.args(["status", "--json", "--endpoint", &endpoint]).args(arguments);
        command.output().await.unwrap()
    };
    let text = |path: PathBuf| path.display().to_string();
    let ca = vec!["--ca".to_owned(), text(file("clients-ca.pem"))];
    let own = ["--cert".to_owned(), text(file("ada-client.pem"))];
    let own = [own, ["--cert-key".to_owned(), text(file("ada-client.key"))]].concat();
    let answered = status(ca.clone()).await;
    assert!(answered.status.success(), "{answered:?}");
    let answered = status([ca.clone(), own].concat()).await;
    assert!(answered.status.success(), "{answered:?}");
    let refused = status(vec!["--ca".into(), text(file("members-ca.pem"))]).await;
    assert_eq!(refused.status.code(), Some(3), "another authority: {refused:?}");
    let refused = status(Vec::new()).await;
    assert!(String::from_utf8_lossy(&refused.stdout).contains("--ca"), "{refused:?}");

    let reloads = async |result: &str| {
        let labels = [("audience", "clients"), ("result", result)];
        metric(node, "kiln_tls_reloads_total", &labels).await
    };
    let expiry = [("audience", "clients")];
    assert!(metric(node, "kiln_tls_certificate_expiry_seconds", &expiry).await > 89.0 * 86400.0);
    std::fs::write(file("now.pem"), "no certificate").unwrap();
    eventually("the bad file to be refused", async || {
        (reloads("refused").await > 0.0).then_some(())
    })
    .await;
    assert!(status(ca.clone()).await.status.success(), "the old one stays in force");
    assert!(metric(node, "kiln_tls_reload_failed", &expiry).await > 0.0);
    for end in ["key", "pem"] {
        std::fs::copy(file(&format!("b-server.{end}")), file(&format!("now.{end}"))).unwrap();
    }
    eventually("the new file to be taken", async || (reloads("taken").await > 0.0).then_some(()))
        .await;
    assert!(status(ca).await.status.success());
}

#[test]
fn other_machines_get_no_plain_text_unless_told_so() {
    let start = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        let open = ["serve", "--print-config", "--grpc-listen", "0.0.0.0:0", "--advertise", "a"];
        command.args(open).args(more).env_clear().output().unwrap()
    };
    let refused = start(&[]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("grpc_listen") && told.contains("--insecure"), "{told}");
    assert!(start(&["--insecure"]).status.success());
}

/// The nodes in TLS alone, each with a certificate of its own.
async fn in_tls(cluster: &mut TestCluster) -> Authority {
    in_tls_with(cluster, Proofs::Require).await
}

/// The same, with that done to who proves nothing.
async fn in_tls_with(cluster: &mut TestCluster, proofs: Proofs) -> Authority {
    let authority = Authority::new(cluster.folder.path().join("ca"));
    for (i, node) in cluster.nodes.iter_mut().enumerate() {
        node.terminate().await;
        let data = node.config.data_dir.display();
        let more = format!(" --node {} --data-dir {data}", node.id);
        let (cert, key) = authority.member(&format!("node-{i}"), &more);
        let members = &mut node.config.tls.members;
        (members.cert, members.key) = (Some(cert), Some(key));
        (members.ca, members.mode) = (Some(authority.ca()), Mode::Require);
        members.proofs = proofs;
    }
    for node in &mut cluster.nodes {
        node.spawn();
    }
    for node in &mut cluster.nodes {
        assert!(node.wait_ready().await);
    }
    authority
}

/// Whoever has the certificate of a node after it left, or after somebody had its disk, is
/// no member: its connections end, and it gets no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_does_not_outlive_its_node() {
    let mut cluster = TestCluster::start(3).await;
    let authority = in_tls(&mut cluster).await;
    let ids: Vec<u64> = cluster.nodes.iter().map(|node| node.id).collect();
    let pair = |i: usize| {
        let file = |end: &str| authority.0.join(format!("node-{i}-member.{end}"));
        (file("pem"), file("key"))
    };
    let address = cluster.nodes[0].config.transfer_listen;
    let dial = async |pair: &(PathBuf, PathBuf)| {
        let tls = ClientTls::new(&authority.ca(), Some((&pair.0, &pair.1))).unwrap();
        tls.connect(&address.ip().to_string(), address.port()).await.unwrap()
    };
    let says = async |node: &TestNode, pair: &(PathBuf, PathBuf), id: u64| {
        let channel = encrypted(node, &authority.ca(), Some((&pair.0, &pair.1)));
        call(channel, "Hello", Some(id)).await.err().map(|e| e.code())
    };
    let ends = async |mut conn: kiln::net::Conn| {
        let mut all = Vec::new();
        // An end or a reset: either way there is no more of it.
        let read = tokio::time::timeout(crate::harness::SOON, conn.read_to_end(&mut all));
        read.await.expect("the connection lives on").ok();
    };

    let (removed, revoked) = (pair(2), pair(1));
    let (of_removed, of_revoked) = (dial(&removed).await, dial(&revoked).await);
    let served = says(&cluster.nodes[0], &removed, ids[2]).await;
    assert!(
        !matches!(served, Some(Code::Unavailable | Code::Unknown | Code::Cancelled)),
        "{served:?}"
    );
    cluster.nodes[2].kill().await;
    let asked = &cluster.nodes[0];
    let remove = pb::RemoveNodeRequest { id: ids[2] };
    asked.client().await.remove_node(remove).await.unwrap();
    ends(of_removed).await;
    eventually("the refusal of the node that was removed", async || {
        let said = says(asked, &removed, ids[2]).await;
        matches!(said, Some(Code::Unavailable | Code::Unknown | Code::Cancelled)).then_some(())
    })
    .await;
    assert!(metric(asked, "kiln_refused_peers_total", &[("why", "left")]).await >= 1.0);

    let revoke = pb::RevokeSignerRequest {
        node: ids[1],
        reason: "its disk was sold".into(),
        keep: false,
        ..Default::default()
    };
    asked.client().await.revoke_signer(revoke).await.unwrap();
    ends(of_revoked).await;
    eventually("the refusal of the node that was revoked", async || {
        let counted = metric(asked, "kiln_refused_peers_total", &[("why", "revoked")]).await;
        (counted >= 1.0).then_some(())
    })
    .await;
    for gone in [ids[2], ids[1]] {
        eventually("the refusal in the audit log", async || {
            let who = format!("\"who\":\"node {gone}\"");
            refusals(asked)
                .lines()
                .any(|l| l.contains("\"denied\"") && l.contains(&who))
                .then_some(())
        })
        .await;
    }
}

/// A certificate of the right authority that names nobody could speak for any member.
#[tokio::test(flavor = "multi_thread")]
async fn where_names_are_wanted_a_certificate_without_one_is_no_members() {
    let mut cluster =
        TestCluster::start_with(3, |_, config| config.resp.wait = std::time::Duration::ZERO).await;
    let authority = in_tls(&mut cluster).await;
    let nobody = authority.member("nobody", "");
    let says = async |node: &TestNode| {
        let channel = encrypted(node, &authority.ca(), Some((&nobody.0, &nobody.1)));
        call(channel, "Hello", None).await.err().map(|e| e.code())
    };
    let served = says(&cluster.nodes[0]).await;
    assert!(
        !matches!(served, Some(Code::Unavailable | Code::Unknown | Code::Cancelled)),
        "{served:?}"
    );
    for node in &mut cluster.nodes {
        node.terminate().await;
        node.config.tls.members.named = true;
    }
    for node in &mut cluster.nodes {
        node.spawn();
    }
    for node in &mut cluster.nodes {
        assert!(node.wait_ready().await);
    }
    let node = &cluster.nodes[0];
    let refused = says(node).await;
    assert!(
        matches!(refused, Some(Code::Unavailable | Code::Unknown | Code::Cancelled)),
        "{refused:?}"
    );
    eventually("the refusal to be counted", async || {
        let labels = [("port", "members"), ("why", "nameless")];
        (metric(node, "kiln_tls_refused_total", &labels).await >= 1.0).then_some(())
    })
    .await;
    // Those that name their nodes are a cluster.
    is_shared(&cluster.nodes[0], &cluster.nodes[1], "by name").await;
}
