//! What clients do meanwhile: publish once, and read without end.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use kiln_proto::{
    Digest, SignedManifest, pb, pb::kiln_client::KilnClient, pb::publish_chunk::Chunk, value,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{nodes::Nodes, table::Reads};

/// Values that are read in turns.
pub(crate) const KEYS: usize = 16;
const VALUE: [u8; 1024] = [b'v'; 1024];
/// Between two reads of one connection.
const BETWEEN: Duration = Duration::from_millis(1);
/// Between two tries of a publish that was refused.
const RETRY: Duration = Duration::from_millis(20);
/// A try that takes longer is given up, as a client's deadline would.
const TRY: Duration = Duration::from_secs(30);

/// Stores the values that are read.
pub(crate) async fn fill(nodes: &Nodes) {
    let mut stream = TcpStream::connect(nodes.resp(0)).await.unwrap();
    for key in 0..KEYS {
        let name = name(key);
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n${}\r\n", name.len(), VALUE.len());
        let command = [head.as_bytes(), &VALUE, b"\r\n"].concat();
        stream.write_all(&command).await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }
}

/// Returns when each of `survivors` answers every key.
pub(crate) async fn wait_readable(nodes: &Nodes, survivors: &[usize]) {
    for i in survivors {
        let mut stream = TcpStream::connect(nodes.resp(*i)).await.unwrap();
        let began = Instant::now();
        for key in 0..KEYS {
            while !get(&mut stream, key).await.unwrap() {
                assert!(began.elapsed() < TRY, "a value is gone before the failure");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Publishes a value of its own until that is acknowledged; the time since `began`.
pub(crate) async fn publish(mut node: KilnClient<Channel>, began: Instant) -> Duration {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        // A key and bytes of its own each time: what is there already proves nothing.
        let bytes = NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let (digest, name) = (Digest::of(&bytes), format!("written-{bytes:?}"));
        let size = bytes.len() as u64;
        let manifest = value::manifest("default", name.as_bytes(), digest, size, 0.0);
        let header = pb::PublishHeader {
            manifest: Some((&manifest).into()),
            replace: true,
            ..Default::default()
        };
        let chunks = [Chunk::Header(header), Chunk::Data(bytes.to_vec().into())];
        let chunks = chunks.map(|chunk| pb::PublishChunk { chunk: Some(chunk) });
        let asked = node.publish(futures::stream::iter(chunks));
        match tokio::time::timeout(TRY, asked).await {
            // Not `committed` alone: a node that repeats a write whose answer it missed
            // finds the key with these very bytes.
            Ok(Ok(answer)) if holds(answer.get_ref(), digest) => return began.elapsed(),
            Ok(Ok(answer)) => panic!("another value was acknowledged: {answer:?}"),
            Ok(Err(_)) | Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

fn holds(answer: &pb::PublishResponse, digest: Digest) -> bool {
    let signed = SignedManifest::from(answer.manifest.clone().unwrap());
    signed.read_unverified().unwrap().pack_digest == digest
}

/// One connection that reads until it is told to stop.
pub(crate) struct Reader {
    stop: CancellationToken,
    task: JoinHandle<Reads>,
}

impl Reader {
    pub(crate) fn start(address: SocketAddr, keys: usize) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(read(address, keys, stop.clone())), stop }
    }

    pub(crate) async fn stop(self) -> Reads {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

async fn read(address: SocketAddr, keys: usize, stop: CancellationToken) -> Reads {
    let mut reads = Reads::default();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut last_hit = Instant::now();
    for key in (0..keys).cycle() {
        match get(&mut stream, key).await {
            Ok(true) => {
                reads.hits += 1;
                reads.longest_gap = reads.longest_gap.max(last_hit.elapsed());
                last_hit = Instant::now();
            }
            Ok(false) => reads.misses += 1,
            Err(_) => {
                reads.errors += 1;
                if let Ok(again) = TcpStream::connect(address).await {
                    stream = again;
                }
            }
        }
        if stop.is_cancelled() {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    reads.longest_gap = reads.longest_gap.max(last_hit.elapsed());
    reads
}

fn name(key: usize) -> String {
    format!("value-{key:04}")
}

/// Whether the key is there, with the bytes that it was given.
async fn get(stream: &mut TcpStream, key: usize) -> std::io::Result<bool> {
    let name = name(key);
    let command = format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len());
    stream.write_all(command.as_bytes()).await?;
    // The shortest answers are `$-1\r\n` and `_\r\n`; only the first is RESP2's.
    let mut head = [0; 5];
    stream.read_exact(&mut head).await?;
    match &head {
        b"$-1\r\n" => Ok(false),
        b"$1024" => {
            let mut rest = [0; 2 + VALUE.len() + 2];
            stream.read_exact(&mut rest).await?;
            assert_eq!(rest[2..2 + VALUE.len()], VALUE, "other bytes than were SET");
            Ok(true)
        }
        // An error reply: the connection is of no more use to a reader this simple.
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}
