use std::{io::IoSlice, mem::MaybeUninit, os::fd::AsFd, path::PathBuf};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use tokio::net::UnixListener;

use super::*;
use crate::transfer::frame;

struct Node {
    path: PathBuf,
    _file: SocketFile,
    _dir: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    fn start(shelf: Arc<Shelf>, settings: ServerSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        let (listener, file) = bind_socket(&path, 0o600).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve_socket(listener, shelf, settings, stop.clone()));
        Self { path, _file: file, _dir: dir, stop, task }
    }

    async fn client(&self) -> LocalClient {
        LocalClient::connect(&self.path, ClientSettings::default()).await.unwrap()
    }
}

fn key_of(blob: &Blob) -> ArtifactKey {
    ArtifactKey::from_bytes(*blob.digest().as_bytes())
}

#[tokio::test]
async fn an_artifact_arrives_as_the_nodes_own_memory() {
    for size in [0, 1, 5 << 20] {
        let wanted = blob(size);
        let node = Node::start(Shelf::of(&[&wanted]), ServerSettings::default());
        let mut client = node.client().await;
        let got = client.fetch(&key_of(&wanted), "").await.unwrap();
        assert_eq!(*got.pack, *wanted);
        assert_eq!((got.tier, got.manifest.signer), (pb::Tier::Disk, 3));
        // Larger than one read: the descriptor came with the first.
        assert_eq!(got.manifest.bytes.len(), 32_000);
        let inode = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
        assert_eq!(inode(&got.pack), inode(&wanted));
        assert_eq!(*client.fetch_blob(&wanted.digest()).await.unwrap(), *wanted);
        // It outlives the node.
        node.stop.cancel();
        node.task.await.unwrap();
        assert_eq!(*got.pack, *wanted);
    }
}

#[tokio::test]
async fn what_the_node_lacks_is_not_found_and_the_connection_stays() {
    let (there, missing) = (blob(10), blob(11));
    let node = Node::start(Shelf::of(&[&there]), ServerSettings::default());
    let mut client = node.client().await;
    for _ in 0..3 {
        let refused = client.fetch(&key_of(&missing), "").await.unwrap_err();
        assert!(matches!(refused, TransferError::NotFound));
        client.fetch(&key_of(&there), "").await.unwrap();
    }
}

#[tokio::test]
async fn a_client_names_its_tenant() {
    let wanted = blob(10);
    let shelf = Shelf::of(&[&wanted]);
    let node = Node::start(shelf.clone(), ServerSettings::default());
    let mut client = node.client().await;
    for namespace in ["", "team-b", "default"] {
        client.fetch(&key_of(&wanted), namespace).await.unwrap();
    }
    assert_eq!(*shelf.tenants.lock(), ["", "team-b", "default"]);
    for bad in ["a/b", "..\n", &"n".repeat(65)] {
        let refused = client.fetch(&key_of(&wanted), bad).await.unwrap_err();
        assert!(refused.to_string().contains("namespace"), "{bad}: {refused}");
    }
    assert_eq!(shelf.tenants.lock().len(), 3, "the node was asked for what is no namespace");
}

#[tokio::test]
async fn a_client_outlives_a_restart_of_its_node() {
    let wanted = blob(10);
    let node = Node::start(Shelf::of(&[&wanted]), ServerSettings::default());
    let mut client = node.client().await;
    client.fetch(&key_of(&wanted), "").await.unwrap();
    node.stop.cancel();
    node.task.await.unwrap();
    let away = client.fetch(&key_of(&wanted), "").await.unwrap_err();
    assert!(matches!(away, TransferError::Unreachable { .. }), "{away:?}");
    let (listener, _file) = bind_socket(&node.path, 0o600).unwrap();
    let (shelf, stop) = (Shelf::of(&[&wanted]), CancellationToken::new());
    tokio::spawn(serve_socket(listener, shelf, ServerSettings::default(), stop));
    client.fetch(&key_of(&wanted), "").await.unwrap();
}

/// A node that hands out whatever descriptor it is told to.
async fn hand_out(memory: rustix::fd::OwnedFd, size: u64, copies: usize) -> TransferError {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = stream;
        let patience =
            frame::Patience { first: Duration::from_secs(5), rest: Duration::from_secs(5) };
        let _: Option<pb::TransferRequest> =
            frame::read(&mut stream, frame::MAX_REQUEST, patience).await.unwrap();
        let header = pb::TransferResponse {
            code: pb::TransferCode::Ok.into(),
            size,
            length: size,
            ..Default::default()
        };
        let bytes = frame::encode(&header, frame::MAX_RESPONSE).unwrap();
        let fds = vec![memory.as_fd(); copies];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if copies > 0 {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let sent = rustix::net::sendmsg(
            &stream,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent.unwrap(), bytes.len());
        stream
    };
    let mut client = LocalClient::connect(&path, ClientSettings::default()).await.unwrap();
    let digest = Digest::of(b"");
    let (answer, _stream) = tokio::join!(client.fetch_blob(&digest), server);
    answer.unwrap_err()
}

fn memfd(size: u64, seals: SealFlags) -> rustix::fd::OwnedFd {
    let memory = rustix::fs::memfd_create("kiln-blob", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, size).unwrap();
    rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
    memory
}

#[tokio::test]
async fn memory_that_could_change_is_never_mapped() {
    let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    let wrong = [
        (memfd(100, SealFlags::empty()), 100, 1),
        (memfd(100, SealFlags::WRITE), 100, 1),
        (memfd(100, SealFlags::SHRINK), 100, 1),
        (memfd(100, all), 101, 1),
        (memfd(100, all), 100, 0),
        (std::fs::File::open("/dev/null").unwrap().into(), 0, 1),
        (tempfile::tempfile().unwrap().into(), 0, 1),
    ];
    for (memory, size, copies) in wrong {
        let refused = hand_out(memory, size, copies).await;
        assert!(matches!(refused, TransferError::Protocol(_)), "{refused:?}");
    }
}

#[test]
fn fetches_and_stray_descriptors_leak_nothing() {
    alone("transfer::tests::local::fetches_and_stray_descriptors_leak_nothing", many_fetches);
}

async fn many_fetches() {
    let wanted = blob(5000);
    let node = Node::start(Shelf::of(&[&wanted]), ServerSettings::default());
    let mut client = node.client().await;
    let mut before = None;
    for i in 0..2000 {
        client.fetch(&key_of(&wanted), "").await.unwrap();
        let now = descriptors();
        assert!(now <= *before.get_or_insert(now), "after {i} fetches");
    }
    let before = descriptors();
    let refused = hand_out(memfd(1, SealFlags::empty()), 1, 4).await;
    assert!(matches!(refused, TransferError::Protocol(_)));
    assert!(descriptors() <= before);
}

#[tokio::test]
async fn one_client_too_many_is_told_that_the_node_is_busy() {
    let wanted = blob(10);
    let settings = ServerSettings { max_connections: 1, ..Default::default() };
    let node = Node::start(Shelf::of(&[&wanted]), settings);
    let mut first = node.client().await;
    first.fetch(&key_of(&wanted), "").await.unwrap();
    let refused = node.client().await.fetch(&key_of(&wanted), "").await.unwrap_err();
    assert!(matches!(refused, TransferError::Busy), "{refused:?}");
}

#[tokio::test]
async fn an_artifact_can_be_asked_for_again_after_a_dropped_request() {
    let (slow, quick) = (blob(10), blob(20));
    let shelf = Arc::new(Shelf {
        blobs: [&slow, &quick].map(|b| (b.digest(), b.clone())).into(),
        gate: Some(Notify::new()),
        ..Shelf::default()
    });
    let node = Node::start(shelf.clone(), ServerSettings::default());
    let mut client = node.client().await;
    {
        let key = key_of(&slow);
        let dropped = client.fetch(&key, "");
        tokio::pin!(dropped);
        while shelf.asked.load(Ordering::SeqCst) == 0 {
            assert!(futures::poll!(&mut dropped).is_pending());
            tokio::task::yield_now().await;
        }
    }
    let gate = shelf.gate.as_ref().unwrap();
    gate.notify_one();
    let key = key_of(&quick);
    let fetch = client.fetch(&key, "");
    let open = async {
        while shelf.asked.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        gate.notify_one();
    };
    let (got, ()) = tokio::join!(fetch, open);
    assert_eq!(*got.unwrap().pack, *quick);
}
