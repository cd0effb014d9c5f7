//! The client on the same node: maps what the node verified.
//!
//! Invariant: memory is mapped only if the kernel vouches that it can neither
//! be written nor shrink any more; no byte of it is copied.

use std::{
    fmt,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use kiln_proto::{ArtifactKey, Digest, SignedManifest, pb};
use memmap2::{Mmap, MmapOptions};
use prost::Message;
use rustix::{
    fs::SealFlags,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags},
};
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::{NoAnswer, TransferError, accepted},
    frame::{self, FrameError, PREFIX},
    settings::ClientSettings,
};

/// Bytes read from the socket at once: most manifests, whole.
const READ_AT_ONCE: usize = 8 << 10;
/// What trusted memory must be sealed against.
const NEEDED: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK);

/// Gets artifacts from the node on this machine, over one connection.
pub struct LocalClient {
    path: PathBuf,
    settings: ClientSettings,
    /// Who asks, where the node wants to know.
    token: Option<String>,
    /// `None` after a failure, until the next request connects again.
    stream: Option<UnixStream>,
}

/// An artifact as the node hands it out.
#[derive(Debug)]
pub struct LocalArtifact {
    /// What it is. The node has verified it; with the producer's key, anybody can.
    pub manifest: SignedManifest,
    /// Its pack.
    pub pack: Mapped,
    /// Where the node had it from.
    pub tier: pb::Tier,
}

/// Sealed memory of the node, mapped read-only.
pub struct Mapped {
    memory: OwnedFd,
    /// `None` when empty: nothing to map.
    map: Option<Mmap>,
}

impl LocalClient {
    /// Connects to the node's socket at `path`.
    pub async fn connect(path: &Path, settings: ClientSettings) -> Result<Self, TransferError> {
        let mut client = Self { path: path.to_owned(), settings, token: None, stream: None };
        client.stream = Some(client.open().await?);
        Ok(client)
    }

    /// Shows `token` with each request from now on.
    pub fn show(&mut self, token: Option<String>) {
        self.token = token;
    }

    /// The artifact of `key`, which is of the tenant `namespace`, if this node can get it
    /// without compiling. Empty: the node's own tenant.
    pub async fn fetch(
        &mut self,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<LocalArtifact, TransferError> {
        self.artifact(key, namespace, false).await
    }

    /// [`Self::fetch`] for who does not use it: counts as no hit.
    pub async fn look(
        &mut self,
        key: &ArtifactKey,
        namespace: &str,
    ) -> Result<LocalArtifact, TransferError> {
        self.artifact(key, namespace, true).await
    }

    async fn artifact(
        &mut self,
        key: &ArtifactKey,
        namespace: &str,
        look: bool,
    ) -> Result<LocalArtifact, TransferError> {
        let subject = pb::transfer_request::Subject::Key(key.as_bytes().to_vec().into());
        let (header, pack) = self.request(subject, namespace, look).await?;
        let manifest = header.manifest.as_ref().ok_or_else(|| no("an answer without manifest"))?;
        let (manifest, tier) = (SignedManifest::from(manifest.clone()), header.tier());
        Ok(LocalArtifact { manifest, pack, tier })
    }

    /// The blob `digest`, if this node has it itself.
    pub async fn fetch_blob(&mut self, digest: &Digest) -> Result<Mapped, TransferError> {
        let subject = pb::transfer_request::Subject::Digest(digest.as_bytes().to_vec().into());
        Ok(self.request(subject, "", false).await?.1)
    }

    async fn open(&self) -> Result<UnixStream, TransferError> {
        let opened = timeout(self.settings.connect, UnixStream::connect(&self.path)).await;
        opened.map_err(io::Error::from).flatten().map_err(|source| TransferError::Unreachable {
            address: self.path.display().to_string(),
            source,
        })
    }

    async fn request(
        &mut self,
        subject: pb::transfer_request::Subject,
        namespace: &str,
        look: bool,
    ) -> Result<(pb::TransferResponse, Mapped), TransferError> {
        let request = pb::TransferRequest {
            subject: Some(subject),
            namespace: namespace.to_owned(),
            look,
            token: self.token.clone().unwrap_or_default(),
            ..Default::default()
        };
        // Taken out: a request that is dropped half-way leaves no connection
        // behind on which the next one would read the wrong answer.
        let (answer, stream) = match self.stream.take() {
            Some(mut stream) => match exchange(&mut stream, &request, &self.settings).await {
                // The node closed it while it was idle, or was restarted.
                Err(NoAnswer::Lost(e)) if e.kind() != io::ErrorKind::TimedOut => {
                    self.ask_anew(&request).await?
                }
                answer => (answer.map_err(|no_answer| no_answer.at(0))?, stream),
            },
            None => self.ask_anew(&request).await?,
        };
        self.stream = Some(stream);
        let (response, memory) = answer;
        let header = accepted(response)?;
        let memory = memory.ok_or_else(|| no("an answer without a descriptor"))?;
        let pack = Mapped::new(memory, header.size)?;
        Ok((header, pack))
    }

    async fn ask_anew(
        &self,
        request: &pb::TransferRequest,
    ) -> Result<(Answer, UnixStream), TransferError> {
        let mut stream = self.open().await?;
        let answer = exchange(&mut stream, request, &self.settings).await;
        Ok((answer.map_err(|no_answer| no_answer.at(0))?, stream))
    }
}

type Answer = (pb::TransferResponse, Option<OwnedFd>);

async fn exchange(
    stream: &mut UnixStream,
    request: &pb::TransferRequest,
    settings: &ClientSettings,
) -> Result<Answer, NoAnswer> {
    frame::write(stream, request, frame::MAX_REQUEST, settings.progress).await?;
    let (mut bytes, mut memory) = (Vec::new(), None);
    let mut deadline = Instant::now() + settings.answer;
    let whole = loop {
        let came = stream.async_io(Interest::READABLE, || receive(stream, &mut bytes, &mut memory));
        let came = timeout_at(deadline, came).await.map_err(FrameError::from)??;
        if came == 0 {
            return Err(NoAnswer::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        if came == bytes.len() {
            deadline = Instant::now() + settings.progress;
        }
        if let Some(prefix) = bytes.first_chunk() {
            let whole = PREFIX + frame::announced(*prefix, frame::MAX_RESPONSE)?;
            if bytes.len() >= whole {
                break whole;
            }
        }
    };
    if bytes.len() > whole {
        return Err(NoAnswer::Nonsense("bytes behind the answer".into()));
    }
    let response = pb::TransferResponse::decode(&bytes[PREFIX..]).map_err(FrameError::from)?;
    Ok((response, memory))
}

/// One read from the socket: bytes, and perhaps a descriptor.
fn receive(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    memory: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let mut buffer = [0; READ_AT_ONCE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    // Close-on-exec: a compiler that this process starts gets no artifact.
    let got = rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            // Of several the last is kept, and the others are closed.
            *memory = descriptors.last().or(memory.take());
        }
    }
    bytes.extend_from_slice(&buffer[..got.bytes]);
    Ok(got.bytes)
}

impl Mapped {
    /// Maps `size` bytes of `memory`, if it is sealed and has that size.
    fn new(memory: OwnedFd, size: u64) -> Result<Self, TransferError> {
        let seals = rustix::fs::fcntl_get_seals(&memory)
            .map_err(|e| no(&format!("a descriptor that cannot be sealed: {e}")))?;
        if !seals.contains(NEEDED) {
            return Err(no("memory that is not sealed"));
        }
        let stat = rustix::fs::fstat(&memory).map_err(|e| TransferError::Memory(e.into()))?;
        if u64::try_from(stat.st_size) != Ok(size) {
            return Err(no(&format!("{} bytes of memory for {size}", stat.st_size)));
        }
        let length =
            usize::try_from(size).map_err(|e| TransferError::Memory(io::Error::other(e)))?;
        let map = match length {
            0 => None,
            // SAFETY: sealed, as was just checked: nobody can write or truncate it.
            _ => Some(unsafe { MmapOptions::new().len(length).map_copy_read_only(&memory) }),
        };
        let map = map.transpose().map_err(TransferError::Memory)?;
        Ok(Self { memory, map })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsFd for Mapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapped({} bytes)", self.len())
    }
}

fn no(why: &str) -> TransferError {
    TransferError::Protocol(why.into())
}
