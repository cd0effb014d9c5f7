//! Who may ask for what: each of those who may not, at each door, refused with a code and
//! counted, on every node.

mod audit;
mod certificates;
mod doors;
mod joining;
mod limits;
mod namespaces;
mod oidc;
mod tokens;

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
    let text = include_str!("../../../proto/proto/kiln/v1/kiln.proto");
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
