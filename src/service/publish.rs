//! Receiving an artifact that a client compiled.
//!
//! Invariant: no byte of a pack is taken before its right to be published was checked,
//! and all that are received at once have at most [`RECEIVED_KIB`], or one larger one
//! alone; what arrives is hashed on the way in, and a stream that ends early leaves
//! nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kiln_proto::{Failure, FailureKind, MAX_PACK_BYTES, Manifest, Token, convert, pb};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::Streaming;

use crate::{
    cache::{Blob, BlobWriter},
    error::Error,
};

/// KiB of packs that are received at once.
const RECEIVED_KIB: u32 = 1 << 20;
/// What the smallest pack counts: each has a descriptor.
const LEAST_KIB: u64 = 256;
/// How long a publication waits for the room of others.
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
    use pb::publish_chunk::Chunk;
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
    use pb::publish_chunk::Chunk;
    let mut writer = BlobWriter::with_size(manifest.pack_size)?;
    while let Some(message) = chunks.message().await.map_err(|e| broken(&e))? {
        match message.chunk {
            Some(Chunk::Data(bytes)) => writer.write(&bytes)?,
            _ => return Err(Error::Invalid("only data follows the header".into())),
        }
    }
    Ok(writer.finish_as(manifest.pack_digest)?)
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
