//! Sending an artifact's pack, in chunks.
//!
//! Invariant: what is sent was verified before its first byte leaves.

use bytes::Bytes;
use kiln_proto::{CHUNK_BYTES, pb, pb::fetch_chunk::Chunk};
use tokio::sync::mpsc;
use tonic::Status;

use crate::cache::Blob;

/// Sends `header` and then `pack`, until the client leaves.
pub(super) async fn send(
    header: pb::FetchHeader,
    pack: Blob,
    chunks: mpsc::Sender<Result<pb::FetchChunk, Status>>,
) {
    let chunk = |chunk| Ok(pb::FetchChunk { chunk: Some(chunk) });
    if chunks.send(chunk(Chunk::Header(header))).await.is_err() {
        return;
    }
    // Shares the sealed memory: no chunk is copied before the transport does.
    let mut rest = Bytes::from_owner(pack);
    while !rest.is_empty() {
        let next = rest.split_to(rest.len().min(CHUNK_BYTES));
        if chunks.send(chunk(Chunk::Data(next))).await.is_err() {
            return;
        }
    }
}
