//! Receiving an artifact that a client compiled.
//!
//! Invariant: memory is bounded by the announced, checked size; what arrives is
//! hashed on the way in, and a stream that ends early leaves nothing.

use bytes::Bytes;
use kiln_proto::{MAX_PACK_BYTES, Manifest, Token, convert, pb};
use tonic::Streaming;

use crate::{
    cache::{Blob, BlobWriter},
    error::Error,
};

/// What gives a client the right to publish.
pub(super) enum Under {
    /// The lease behind this token, for whoever shows its grant.
    Lease(Token, Bytes),
    /// The key itself, which other tools own and overwrite.
    Replace,
}

/// A received artifact and the right under which it is published.
pub(super) struct Received {
    pub(super) under: Under,
    pub(super) manifest: Manifest,
    pub(super) pack: Blob,
}

/// Reads header and pack.
pub(super) async fn receive(mut chunks: Streaming<pb::PublishChunk>) -> Result<Received, Error> {
    use pb::publish_chunk::Chunk;
    let broken = |e: tonic::Status| Error::Invalid(format!("the stream broke: {}", e.message()));
    let first = chunks.message().await.map_err(broken)?.and_then(|c| c.chunk);
    let Some(Chunk::Header(header)) = first else {
        return Err(Error::Invalid("the first message is not a header".into()));
    };
    let wire = header.manifest.ok_or(convert::InvalidField::new("manifest", "missing"))?;
    let manifest = convert::manifest(wire)?;
    manifest.validate().map_err(|e| Error::Invalid(e.to_string()))?;
    if manifest.pack_size > MAX_PACK_BYTES {
        return Err(Error::Invalid(format!("{} bytes are too many", manifest.pack_size)));
    }
    let mut writer = BlobWriter::with_size(manifest.pack_size)?;
    while let Some(message) = chunks.message().await.map_err(broken)? {
        match message.chunk {
            Some(Chunk::Data(bytes)) => writer.write(&bytes)?,
            _ => return Err(Error::Invalid("only data follows the header".into())),
        }
    }
    let pack = writer.finish_as(manifest.pack_digest)?;
    let under = match header.replace {
        true => Under::Replace,
        false => Under::Lease(Token(header.token), header.grant),
    };
    Ok(Received { under, manifest, pack })
}
