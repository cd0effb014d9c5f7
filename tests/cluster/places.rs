//! Connections that say nothing, and lengths that are only declared, take nothing from others.

use std::{net::SocketAddr, time::Duration};

use futures::future::join_all;
use http_body_util::StreamBody;
use prost::bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::Endpoint;
use tower::{Service, ServiceExt};

use crate::{
    harness::{SOON, TestCluster, TestNode, eventually, http, try_http},
    redis::{Redis, integer, request, text},
};

/// Of gRPC 1024 have a place, of HTTP 128.
const SILENT: [usize; 2] = [1500, 160];

/// The most memory that a node's process had, in MiB.
fn peak(node: &TestNode) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = || async move { TcpStream::connect(address).await.ok() };
    join_all((0..count).map(|_| connect())).await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_or_little_leave_their_places() {
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let before = peak(node);
    let ports = [node.config.grpc_listen, node.config.http_listen];
    let (mut grpc, mut pages) = (Vec::new(), silent(ports[1], SILENT[1]).await);
    // A hundred at a time: the system drops what is more than it queues.
    eventually("every place to be taken", async || {
        // One error is no proof that all are taken; whoever comes late takes the place of those
        // whose time was over.
        let full = grpc.len() >= SILENT[0];
        if full {
            let refused = node.status().await.err();
            if refused.is_some() {
                return refused;
            }
            grpc.drain(..100);
        }
        grpc.extend(silent(ports[0], 100).await);
        None
    })
    .await;
    assert!(grpc.len() > 1000 && pages.len() > 128, "{} {}", grpc.len(), pages.len());
    // Half of them say a byte now and then, of what a client says first.
    let dribbling = async {
        let (preface, get) = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /healthz?aaaaaaaaaaaa");
        for at in 0.. {
            for (streams, words) in [(&mut grpc, &preface[..]), (&mut pages, &get[..])] {
                let Some(byte) = words.get(at) else { continue };
                for stream in streams.iter_mut().step_by(2) {
                    // Those that were ended take none.
                    let _ = stream.write_all(&[*byte]).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let served = async {
        eventually("a place for a client", async || node.status().await.ok()).await;
        eventually("a place for a probe", async || {
            try_http(node, "/healthz").await.filter(|(code, _)| *code == 200)
        })
        .await;
    };
    tokio::select! {
        () = served => {}
        () = dribbling => unreachable!(),
    }
    let after = peak(node);
    println!("{SILENT:?} silent connections: {before} MiB before, {after} MiB at most");
    assert!(after < before + 256, "{before} MiB before, {after} MiB after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_only_declared_takes_no_memory() {
    const DECLARED: usize = 512 << 20;
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let before = peak(node);

    // A frame of gRPC, and a field of a message that is as deep as it is long.
    let channel = Endpoint::from_shared(format!("http://{}", node.config.grpc_listen)).unwrap();
    let mut channel = channel.connect().await.unwrap();
    let declared = u32::try_from(DECLARED).unwrap().to_be_bytes();
    let frame = [&[0][..], &declared, b"and a few bytes"].concat();
    let nested = (0..100_000).fold(Vec::new(), |inner: Vec<u8>, _| match inner.len() {
        // Field 3 of Compile's targets, then whatever field 3 is of those: groups of bytes.
        0 => vec![0x1a, 0x00],
        _ if inner.len() > 60_000 => inner,
        _ => {
            let mut outer = vec![0x1a];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.extend_from_slice(&inner);
            outer
        }
    });
    let length = u32::try_from(nested.len()).unwrap().to_be_bytes();
    let nested = [&[0][..], &length, &nested].concat();
    for (method, bytes) in [("Lookup", &frame), ("Publish", &frame), ("Compile", &nested)] {
        let chunks = [Ok::<_, tonic::Status>(http_body::Frame::data(Bytes::from(bytes.clone())))];
        let body = tonic::body::Body::new(StreamBody::new(futures::stream::iter(chunks)));
        let call = tonic::codegen::http::Request::post(format!(
            "http://{}/kiln.v1.Kiln/{method}",
            node.config.grpc_listen
        ))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
        let answer = timeout(SOON, channel.ready().await.unwrap().call(call)).await;
        let answer = answer.expect("it is answered").unwrap();
        let code = answer.headers().get("grpc-status").cloned();
        assert!(code.is_none_or(|code| code != "0"), "{method}");
    }

    // A value of Redis, a key of it, and a list of arguments.
    for said in [
        format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${DECLARED}\r\nfew"),
        format!("*2\r\n$3\r\nGET\r\n${DECLARED}\r\nfew"),
        format!("*{DECLARED}\r\n$3\r\nSET\r\n"),
        "*1\r\n".repeat(100_000),
    ] {
        let mut stream = TcpStream::connect(node.config.resp_listen.unwrap()).await.unwrap();
        // It may be ended before all of it is sent.
        let _ = stream.write_all(said.as_bytes()).await;
        let mut redis = Redis::connect(node).await;
        assert_eq!(text(redis.command(["PING"]).await), "PONG");
    }

    // A body, and a header without an end.
    for head in [
        format!("POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: {DECLARED}\r\n\r\nfew"),
        format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(1 << 20)),
    ] {
        let mut stream = TcpStream::connect(node.config.http_listen).await.unwrap();
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = [0; 12];
        let read = timeout(SOON, stream.read(&mut answer)).await.expect("it is answered");
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{read:?}");
    }
    assert_eq!(http(node, "/readyz").await.0, 200);

    let after = peak(node);
    println!("declared lengths: {before} MiB before, {after} MiB at most");
    assert!(after < before + 128, "{before} MiB before, {after} MiB after");
    assert_eq!(text(Redis::connect(node).await.command(["PING"]).await), "PONG");
}

/// Others are served while 16 clients have 32,000 values each stored, which takes minutes and
/// is not waited for: but for the first of them, and it has to go on until the last is served.
#[tokio::test(flavor = "multi_thread")]
async fn many_pairs_from_many_clients_stay_under_the_cap() {
    const PAIRS: usize = 32_000;
    let cluster = TestCluster::start(1).await;
    let node = &cluster.nodes[0];
    let before = peak(node);
    let client = |n: usize| async move {
        let mut words = vec!["MSET".to_owned()];
        words.extend((0..PAIRS).flat_map(|v| [format!("{n}:{v}"), format!("value {n} {v}")]));
        let mut redis = Redis::connect(node).await;
        redis.send(&request(words)).await;
        redis
    };
    let sent = join_all((0..16).map(client)).await;
    let stored = || async move {
        let answer = Redis::connect(node).await.command(["DBSIZE"]).await;
        usize::try_from(integer(answer)).unwrap()
    };
    eventually("the load", async || (stored().await > 100).then_some(())).await;
    for _ in 0..20 {
        let mut other = Redis::connect(node).await;
        assert_eq!(text(other.command(["PING"]).await), "PONG");
        assert_eq!(http(node, "/healthz").await.0, 200);
        assert!(node.status().await.is_ok());
    }
    let stored = stored().await;
    assert!(stored < 16 * PAIRS, "the load ended before the last was served");
    let after = peak(node);
    println!("16 MSETs of {PAIRS} pairs: {before} MiB before, {after} MiB at most");
    // L1 has 256 MiB, and what is on its way as much again at most.
    assert!(after < before + 512, "{before} MiB before, {after} MiB after");
    drop(sent);
}
