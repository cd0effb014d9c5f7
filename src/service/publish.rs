//! Receiving an artifact that a client compiled.
//!
//! Invariant: no byte of a pack is taken before its right to be published was checked,
//! and all that are received at once have at most [`RECEIVED_KIB`], or one larger one
//! alone; what arrives is hashed on the way in, and a stream that ends early leaves
//! nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kiln_proto::{Failure, FailureKind, MAX_PACK_BYTES, Manifest, Token, convert, pb};
use pb::publish_chunk::Chunk;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::Streaming;

use crate::{
    cache::{Blob, BlobWriter},
    error::Error,
    net::Progress,
};

/// KiB of packs that are received at once.
const RECEIVED_KIB: u32 = 1 << 20;
/// What the smallest pack counts: each has a descriptor.
const LEAST_KIB: u64 = 256;
/// Longer messages are hashed on a thread of their own.
const LONG: usize = 1 << 20;
/// How long a publication waits for the room of others, and the window in which its
/// sender must give 64 KiB.
const PATIENCE: Duration = Duration::from_secs(10);

/// What gives a client the right to publish.
pub(super) enum Under {
    /// The lease behind this token, for whoever shows its grant.
    Lease(Token, Bytes),
    /// The key itself, which other tools own and overwrite.
    Replace,
}

/// What a publication says of itself before its bytes come.
pub(super) struct Announced {
    pub(super) under: Under,
    pub(super) manifest: Manifest,
}

fn broken(e: &tonic::Status) -> Error {
    Error::Invalid(format!("the stream broke: {}", e.message()))
}

/// Reads the header. Nothing is set aside for the pack yet.
pub(super) async fn announced(
    chunks: &mut Streaming<pb::PublishChunk>,
) -> Result<Announced, Error> {
    let first = chunks.message().await.map_err(|e| broken(&e))?.and_then(|c| c.chunk);
    let Some(Chunk::Header(header)) = first else {
        return Err(Error::Invalid("the first message is not a header".into()));
    };
    let wire = header.manifest.ok_or(convert::InvalidField::new("manifest", "missing"))?;
    let manifest = convert::manifest(wire)?;
    manifest.validate().map_err(|e| Error::Invalid(e.to_string()))?;
    if manifest.pack_size > MAX_PACK_BYTES {
        return Err(Error::Invalid(format!("{} bytes are too many", manifest.pack_size)));
    }
    let under = match header.replace {
        true => Under::Replace,
        false => Under::Lease(Token(header.token), header.grant),
    };
    Ok(Announced { under, manifest })
}

/// Reads the pack that `manifest` announced.
pub(super) async fn pack(
    mut chunks: Streaming<pb::PublishChunk>,
    manifest: &Manifest,
) -> Result<Blob, Error> {
    let mut writer = BlobWriter::with_size(manifest.pack_size)?;
    let mut progress = Progress::new(PATIENCE);
    while let Some(bytes) = next(&mut chunks, &mut progress).await? {
        writer = write(writer, bytes).await?;
    }
    Ok(writer.finish_as(manifest.pack_digest)?)
}

/// The next bytes; a client that sends too slowly holds room that others wait for.
async fn next(
    chunks: &mut Streaming<pb::PublishChunk>,
    progress: &mut Progress,
) -> Result<Option<Bytes>, Error> {
    let mut came = Ok(None);
    let step = async {
        came = chunks.message().await;
        let data = came.as_ref().ok().and_then(Option::as_ref);
        Ok(data.map_or(0, |message| match &message.chunk {
            Some(Chunk::Data(bytes)) => bytes.len(),
            _ => 0,
        }))
    };
    progress.step(step).await.map_err(|e| Error::Invalid(format!("the stream {e}")))?;
    match came.map_err(|e| broken(&e))?.map(|message| message.chunk) {
        None => Ok(None),
        Some(Some(Chunk::Data(bytes))) => Ok(Some(bytes)),
        Some(_) => Err(Error::Invalid("only data follows the header".into())),
    }
}

/// Writes and hashes; long messages not on a runtime thread.
async fn write(mut writer: BlobWriter, bytes: Bytes) -> Result<BlobWriter, Error> {
    if bytes.len() < LONG {
        writer.write(&bytes)?;
        return Ok(writer);
    }
    let writing = tokio::task::spawn_blocking(move || writer.write(&bytes).map(|()| writer));
    Ok(writing.await.map_err(|e| Error::Storage(e.to_string()))??)
}

/// Memory for packs that are received: at most so much at once, whoever sends them.
#[derive(Clone)]
pub(super) struct Room {
    kib: Arc<Semaphore>,
    most: u32,
}

impl Default for Room {
    fn default() -> Self {
        let most = RECEIVED_KIB;
        Self { kib: Arc::new(Semaphore::new(most as usize)), most }
    }
}

impl Room {
    /// Sets `bytes` aside, or says that this node has too much to do. A pack that is
    /// larger than all the room is received alone.
    pub(super) async fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10).max(LEAST_KIB)).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.kib).acquire_many_owned(kib.min(self.most));
        match timeout(PATIENCE, taken).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                let why = "too many artifacts are published at once: try again";
                Err(Failure::new(FailureKind::Busy, why).into())
            }
        }
    }
}
