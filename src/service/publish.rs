//! Receiving an artifact that a client compiled.
//!
//! Invariant: no byte of a pack is taken before its right to be published was checked
//! and memory for all of it was set aside; what arrives is hashed on the way in, and a
//! stream that ends early leaves nothing.

use std::time::Duration;

use bytes::Bytes;
use kiln_cluster::{Put, PutMode};
use kiln_proto::{MAX_PACK_BYTES, Manifest, Token, convert, pb, value};
use pb::publish_chunk::Chunk;
use tokio::time::timeout;
use tonic::{Request, Status, Streaming};

use super::{guard, leases::ClientLeases, parts::Parts};
use crate::{
    cache::{Arrivals, Arriving, Blob, BlobError, BlobWriter},
    error::Error,
    net::Progress,
};

/// Longer messages are hashed on a thread of their own.
const LONG: usize = 1 << 20;

/// What gives a client the right to publish.
enum Under {
    /// The lease behind this token, for whoever shows its grant.
    Lease(Token, Bytes),
    /// The key itself, which other tools own and overwrite.
    Replace,
}

/// What a publication says of itself before its bytes come.
struct Announced {
    under: Under,
    manifest: Manifest,
}

/// Serves one publication: the right to it, then its bytes, then the commit.
pub(super) async fn receive(
    parts: &Parts,
    leases: &ClientLeases,
    request: Request<Streaming<pb::PublishChunk>>,
) -> Result<pb::PublishResponse, Status> {
    let inside = parts.manager.gate().enter()?;
    let (asks, mut chunks) = guard::asks(request)?;
    let Announced { under, manifest } = announced(&mut chunks, parts.patience).await?;
    parts.may(&asks, asks.writes(&manifest.namespace))?;
    parts.has_own_pieces(&manifest).await?;
    let _held = parts.hold(&asks, manifest.pack_size)?;
    let published = (manifest.key, manifest.namespace.clone());
    // A folder is published piece by piece, each time over what it has: its client
    // says itself whether what it restored was of use.
    if manifest.fingerprint.compiler != value::FOLDER_FAMILY {
        parts.manager.note_publication(&manifest.key);
    }
    let (committed, manifest) = match under {
        Under::Lease(token, grant) => {
            let lease = leases.get(token, &grant)?;
            let (pack, _arriving) =
                pack(chunks, &manifest, &parts.arrivals, parts.patience).await?;
            parts.manager.save(&inside, &lease, manifest, pack).await?
        }
        Under::Replace => {
            if !manifest.replaceable() {
                let why = "only a lease's holder may publish this key";
                return Err(Error::Invalid(why.into()).into());
            }
            let mode = PutMode::Replace;
            let (pack, _arriving) =
                pack(chunks, &manifest, &parts.arrivals, parts.patience).await?;
            // A slow sender is in nobody's way: it arrives when its last byte does.
            let (key, of) = (&manifest.key, &manifest.namespace);
            parts.manager.clear_unbelieved(key, of).await?;
            let turn = parts.index.turn(key, mode).map_err(Error::from)?;
            match parts.manager.put(&inside, turn, manifest, &pack, mode).await? {
                Put::Superseded => return Err(Error::Superseded.into()),
                Put::Committed(entry) => (true, entry.manifest),
                Put::Unchanged(entry) | Put::Existing(entry) => (false, entry.manifest),
            }
        }
    };
    // Where the key had an artifact already, that one counts, and nothing was published.
    if committed {
        parts.did(&asks, "publish", |event| event.of(published.0).within(&published.1));
    }
    let manifest = Some((&*manifest).into());
    Ok(pb::PublishResponse { committed, manifest })
}

fn broken(e: &tonic::Status) -> Error {
    Error::Invalid(format!("the stream broke: {}", e.message()))
}

/// Reads the header, which must come within `patience`. Nothing is set aside for the
/// pack yet.
async fn announced(
    chunks: &mut Streaming<pb::PublishChunk>,
    patience: Duration,
) -> Result<Announced, Error> {
    let first = timeout(patience, chunks.message()).await;
    let first = first.map_err(|_| Error::Invalid(format!("no header within {patience:?}")))?;
    let first = first.map_err(|e| broken(&e))?.and_then(|c| c.chunk);
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

/// Reads the pack that `manifest` announced. It keeps its place among what arrives
/// until it is stored. A sender must give 64 KiB in each `patience`.
async fn pack(
    mut chunks: Streaming<pb::PublishChunk>,
    manifest: &Manifest,
    arrivals: &Arrivals,
    patience: Duration,
) -> Result<(Blob, Arriving), Error> {
    let size = manifest.pack_size;
    let (charge, arriving) = arrivals.admit(size).await.map_err(BlobError::from)?;
    let mut writer = BlobWriter::charged(charge, size)?;
    let mut progress = Progress::new(patience);
    while let Some(bytes) = next(&mut chunks, &mut progress).await? {
        writer = write(writer, bytes).await?;
    }
    Ok((writer.finish_as(manifest.pack_digest)?, arriving))
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
