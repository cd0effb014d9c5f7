//! A cluster of three with or without all that is there against strangers, and a client's way in.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use kiln::{
    config::Config,
    net::tls::{ClientTls, Mode},
};
use kiln_proto::{ArtifactKey, Digest, pb, pb::kiln_client::KilnClient, value};
use pb::publish_chunk::Chunk;
use prost::bytes::Bytes;
use rustix::process::Signal;
use serde_json::Value;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::nodes::{Nodes, program};

pub(crate) const NODES: usize = 3;
pub(crate) const NAMESPACE: &str = "default";
/// Bound on anything that is waited for.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Between two questions: how exact a time is.
const POLL: Duration = Duration::from_millis(2);

/// Shows a token, or nothing.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(shown) = &self.0 {
            request.metadata_mut().insert("authorization", shown.clone());
        }
        Ok(request)
    }
}

pub(crate) type Client = KilnClient<InterceptedService<Channel, Bearer>>;

/// Three nodes, and what a client needs to be let in.
pub(crate) struct Cluster {
    nodes: Nodes,
    /// Of the authorities, where there is TLS.
    authority: Option<PathBuf>,
    admin: Option<String>,
}

/// What `kiln` printed, as JSON.
fn kiln(words: &[&str]) -> Value {
    let mut command = Command::new(program());
    for name in ["KILN_TOKEN", "KILN_TOKEN_FILE", "KILN_ENDPOINT"] {
        command.env_remove(name);
    }
    let output = command.args(words).arg("--json").output().unwrap();
    assert!(output.status.success(), "kiln {words:?}: {output:?}");
    let last = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    serde_json::from_slice(last.unwrap()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A certificate for the node with these settings, which names its key, and one for its clients;
/// the authorities are made with the first.
fn encrypted(folder: &Path, config: &mut Config) {
    let ca = folder.join("ca");
    if !ca.exists() {
        kiln(&["certs", "init", "--dir", text(&ca)]);
    }
    let name = config.data_dir.file_name().unwrap().to_str().unwrap().to_owned();
    let issue = |kind: &str, more: &[&str]| {
        let of = ["certs", "issue", kind, "--dir", text(&ca), "--out", text(&ca), "--name", &name];
        kiln(&[&of[..], &["--host", "127.0.0.1"], more].concat());
        let file = |end: &str| Some(ca.join(format!("{name}-{kind}.{end}")));
        (file("pem"), file("key"))
    };
    let members = &mut config.tls.members;
    (members.cert, members.key) = issue("member", &["--data-dir", text(&config.data_dir)]);
    members.ca = Some(ca.join("members-ca.pem"));
    (members.mode, members.named) = (Mode::Require, true);
    let clients = &mut config.tls.clients;
    (clients.cert, clients.key) = issue("server", &[]);
    clients.mode = Mode::Require;
}

impl Cluster {
    /// In plain text, and everybody may do everything.
    pub(crate) async fn plain() -> Self {
        let nodes = Nodes::start(|_, _| {}).await;
        nodes.settled().await;
        Self { nodes, authority: None, admin: None }
    }

    /// In TLS alone, with tokens; without a word of the cluster they are good for `offline`. With
    /// `root`, signers need its certificate, and have it.
    pub(crate) async fn secure(offline: Duration, root: bool) -> Self {
        let authority = std::cell::RefCell::new(PathBuf::new());
        let nodes = Nodes::start(|folder, config| {
            encrypted(folder, config);
            config.access.required = true;
            config.access.offline = offline;
            config.socket = Some(config.data_dir.with_extension("sock"));
            *authority.borrow_mut() = folder.join("ca");
        })
        .await;
        let mut cluster = Self { nodes, authority: Some(authority.into_inner()), admin: None };
        // Whoever runs the node is an admin at its socket, until there is an admin's token.
        let socket = cluster.nodes.config(0).socket.as_ref().unwrap();
        let at = ["--endpoint".to_owned(), format!("unix:{}", socket.display())];
        let at = at.each_ref().map(String::as_str);
        if root {
            believe_by_root(&cluster.file("root"), &at);
        }
        let made = kiln(&[&["token", "create", "--role", "admin"][..], &at].concat());
        cluster.admin = Some(made["token"].as_str().unwrap().to_owned());
        cluster.settled().await;
        cluster
    }

    fn file(&self, name: &str) -> PathBuf {
        self.authority.as_ref().unwrap().join(name)
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// A new connection to a node, as its admin.
    pub(crate) async fn client(&self, i: usize) -> Client {
        self.client_as(i, self.admin.as_deref()).await
    }

    /// A new connection to a node, with this token.
    pub(crate) async fn client_as(&self, i: usize, token: Option<&str>) -> Client {
        let shown = token.map(|token| format!("Bearer {token}").parse().unwrap());
        let address = self.nodes.config(i).grpc_listen;
        let tls = self
            .authority
            .is_some()
            .then(|| ClientTls::new(&self.file("clients-ca.pem"), None).unwrap());
        let channel = connect(address, tls).await.unwrap();
        KilnClient::with_interceptor(channel, Bearer(shown))
    }

    /// A member's port, asked with the certificate of the node `whose`: whether it is served.
    pub(crate) async fn serves_member(&self, at: usize, whose: usize) -> bool {
        let file = |end: &str| self.file(&format!("node-{whose}-member.{end}"));
        let (cert, key) = (file("pem"), file("key"));
        let tls = ClientTls::new(&self.file("members-ca.pem"), Some((&cert, &key))).unwrap();
        let Ok(channel) = connect(self.nodes.config(at).transfer_listen, Some(tls)).await else {
            return false;
        };
        let mut grpc = tonic::client::Grpc::new(channel);
        if grpc.ready().await.is_err() {
            return false;
        }
        let path =
            tonic::codegen::http::uri::PathAndQuery::from_static("/kiln.cluster.v1.Peer/Hello");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let answer = grpc.unary(Request::new(()), path, codec).await;
        // An empty hello is read, and found wanting: by a member.
        use tonic::Code::{Cancelled, PermissionDenied, Unauthenticated, Unavailable, Unknown};
        let refused = [Unavailable, Unknown, Cancelled, PermissionDenied, Unauthenticated];
        answer.err().is_none_or(|status| !refused.contains(&status.code()))
    }

    /// The leader, once all nodes name the same one, have a quorum and applied as much.
    pub(crate) async fn settled(&self) -> usize {
        let end = Instant::now() + SOON;
        loop {
            let all = futures::future::join_all((0..NODES).map(async |i| {
                let mut client = self.client(i).await;
                Some(client.status(pb::StatusRequest::default()).await.ok()?.into_inner())
            }));
            let all: Option<Vec<_>> = all.await.into_iter().collect();
            if let Some(all) = all {
                let same = |s: &pb::StatusResponse| (s.leader, s.applied, s.term, s.quorum);
                let first = same(&all[0]);
                let leader = (0..NODES).find(|i| self.nodes.id(*i) == first.0);
                if let (true, Some(leader)) = (first.3, leader)
                    && all.iter().all(|status| same(status) == first)
                {
                    return leader;
                }
            }
            assert!(Instant::now() < end, "the nodes did not settle");
            tokio::time::sleep(POLL * 10).await;
        }
    }

    pub(crate) fn signal(&self, i: usize, signal: Signal) {
        self.nodes.signal(i, signal);
    }

    /// Publishes `bytes` at a node, unless the cluster has them, and has each node in `at` fetch them, which then has them in
    /// memory.
    pub(crate) async fn spread(&self, from: usize, at: &[usize], bytes: Vec<u8>) -> ArtifactKey {
        let pack = Digest::of(&bytes);
        let size = bytes.len() as u64;
        let manifest = value::manifest(NAMESPACE, pack.to_string().as_bytes(), pack, size, 0.0);
        let key = manifest.key;
        let header = pb::PublishHeader {
            manifest: Some((&manifest).into()),
            replace: true,
            ..Default::default()
        };
        let data = Bytes::from(bytes);
        let mut chunks = vec![Chunk::Header(header)];
        chunks.extend(
            (0..data.len()).step_by(kiln_proto::CHUNK_BYTES).map(|at| {
                Chunk::Data(data.slice(at..data.len().min(at + kiln_proto::CHUNK_BYTES)))
            }),
        );
        let chunks = chunks.into_iter().map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
        let mut client = self.client(from).await;
        client.publish(futures::stream::iter(chunks)).await.unwrap();
        for i in at {
            let mut client = self.client(*i).await;
            until(async || fetch(&mut client, &key, |_| {}).await.is_ok()).await;
        }
        key
    }
}

/// A root, whose certificate each node has and is to have.
fn believe_by_root(folder: &Path, at: &[&str]) {
    std::fs::create_dir(folder).unwrap();
    let file = |name: &str| text(&folder.join(name)).to_owned();
    let root = file("root.key");
    kiln(&["signer", "root", "init", &root]);
    let signers = kiln(&[&["signer", "list"][..], at].concat());
    let signers = signers.as_array().unwrap();
    let cluster = signers[0]["cluster"].as_str().unwrap();
    let add = |statement: &str| kiln(&[&["signer", "add", statement][..], at].concat());
    let says = |name: &str, more: &[&str]| {
        let out = file(name);
        let of = ["signer", "root", "sign", "--root", &root, "--out", &out, "--cluster", cluster];
        kiln(&[&of[..], more].concat());
        add(&out);
    };
    says("root.json", &[]);
    for (n, signer) in signers.iter().enumerate() {
        let (key, out) = (signer["key"].as_str().unwrap(), file(&format!("{n}.json")));
        let of = ["signer", "issue", key, "--root", &root, "--namespace", "*", "--out", &out];
        kiln(&[&of[..], &["--cluster", cluster]].concat());
        add(&out);
    }
    says("required.json", &["--required"]);
}

async fn connect(
    address: std::net::SocketAddr,
    tls: Option<ClientTls>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
    let Some(tls) = tls else { return endpoint.connect().await };
    let dial = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move { tls.connect(&address.ip().to_string(), address.port()).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(dial).await
}

/// Fetches an artifact, each piece of which is given to `piece`; its header.
pub(crate) async fn fetch(
    client: &mut Client,
    key: &ArtifactKey,
    mut piece: impl FnMut(&[u8]),
) -> Result<pb::FetchHeader, Status> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let request = pb::FetchRequest { key, namespace: NAMESPACE.into(), ..Default::default() };
    let mut chunks = client.fetch(request).await?.into_inner();
    let mut header = None;
    while let Some(chunk) = chunks.message().await? {
        match chunk.chunk {
            Some(pb::fetch_chunk::Chunk::Header(first)) => header = Some(first),
            Some(pb::fetch_chunk::Chunk::Data(data)) => piece(&data),
            None => {}
        }
    }
    header.ok_or_else(|| Status::data_loss("no header"))
}

/// Asks until it holds; when it did.
pub(crate) async fn until(mut holds: impl AsyncFnMut() -> bool) -> Instant {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "in vain");
        tokio::time::sleep(POLL).await;
    }
    Instant::now()
}
