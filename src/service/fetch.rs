//! Sending an artifact's pack, in chunks.
//!
//! Invariant: what is sent was verified before its first byte leaves, and a reader
//! that takes less than a chunk in [`PATIENCE`] is cut off: it holds the pack.

use std::time::Duration;

use bytes::Bytes;
use kiln_proto::{CHUNK_BYTES, pb, pb::fetch_chunk::Chunk};
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use crate::cache::Blob;

/// In which a reader must take one chunk.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Sends `header` and then `pack`, until the client leaves or takes no chunk within
/// `patience`: then its stream ends early.
pub(super) async fn send(
    header: pb::FetchHeader,
    pack: Blob,
    chunks: mpsc::Sender<Result<pb::FetchChunk, Status>>,
    patience: Duration,
) {
    let chunk = |chunk| Ok(pb::FetchChunk { chunk: Some(chunk) });
    if chunks.send(chunk(Chunk::Header(header))).await.is_err() {
        return;
    }
    // Shares the sealed memory: no chunk is copied before the transport does.
    let mut rest = Bytes::from_owner(pack);
    while !rest.is_empty() {
        let next = rest.split_to(rest.len().min(CHUNK_BYTES));
        match timeout(patience, chunks.send(chunk(Chunk::Data(next)))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::debug!("a client that fetches took no chunk within {patience:?}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_reader_that_stalls_does_not_hold_the_pack() {
        let pack = Blob::copy_of(&vec![1; 4 * CHUNK_BYTES]).unwrap();
        let (sender, mut receiver) = mpsc::channel(1);
        let sending = send(pb::FetchHeader::default(), pack, sender, Duration::from_millis(20));
        let reading = async {
            // The header, and then nothing until the sender gave up.
            assert!(receiver.recv().await.unwrap().is_ok());
        };
        let both = async { tokio::join!(sending, reading) };
        timeout(Duration::from_secs(10), both).await.expect("it gives up");
    }
}
