//! Frames: four bytes of length, big-endian, then a protobuf message.
//!
//! Invariant: no peer makes us hold more than the limit of its kind of frame,
//! nor even that before the bytes have come.

use std::{io, time::Duration};

use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{error::Elapsed, timeout},
};

/// Largest request in bytes: a digest or a key, and an offset.
pub(super) const MAX_REQUEST: usize = 64 << 10;
/// Largest response in bytes: it may carry a manifest of thousands of files.
pub(super) const MAX_RESPONSE: usize = 8 << 20;

/// Bytes of a frame's length.
pub(super) const PREFIX: usize = 4;

/// Why a frame did not come or go.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The connection failed or ended: try again, here or elsewhere.
    #[error(transparent)]
    Connection(#[from] io::Error),
    /// The other end went silent: give it up.
    #[error("no frame in time")]
    Silent(#[from] Elapsed),
    /// Larger than its kind may be: the other end speaks something else.
    #[error("a frame of {length} bytes, at most {limit}")]
    TooLong {
        /// Bytes announced.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not a message: the other end speaks something else.
    #[error("a frame that is no message: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// How long a reader waits for the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until the length is there.
    pub(super) first: Duration,
    /// From then on until the message is whole.
    pub(super) rest: Duration,
}

/// A frame as bytes, refused when it is over `limit`.
pub(super) fn encode(message: &impl Message, limit: usize) -> Result<Vec<u8>, FrameError> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= limit);
    let prefix = prefix.ok_or(FrameError::TooLong { length, limit })?;
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.extend_from_slice(&prefix.to_be_bytes());
    message.encode_raw(&mut bytes);
    Ok(bytes)
}

/// The length that a prefix announces, refused when it is over `limit`.
pub(super) fn announced(prefix: [u8; PREFIX], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > limit { Err(FrameError::TooLong { length, limit }) } else { Ok(length) }
}

/// Reads one frame; `None` when the other end closed between two frames.
pub(super) async fn read<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
    patience: Patience,
) -> Result<Option<M>, FrameError> {
    let mut prefix = [0; PREFIX];
    if timeout(patience.first, read_or_end(stream, &mut prefix)).await?? == 0 {
        return Ok(None);
    }
    let length = announced(prefix, limit)?;
    let mut body = Vec::new();
    // `take` grows the buffer with what comes, not with what was announced.
    let coming = stream.take(length as u64);
    tokio::pin!(coming);
    timeout(patience.rest, coming.read_to_end(&mut body)).await??;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(M::decode(body.as_slice())?))
}

/// Writes one frame and flushes it within `patience`.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
    limit: usize,
    patience: Duration,
) -> Result<(), FrameError> {
    let bytes = encode(message, limit)?;
    timeout(patience, async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    })
    .await??;
    Ok(())
}

/// Fills `buffer`, or returns 0 when the stream ended before its first byte.
async fn read_or_end(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> io::Result<usize> {
    match stream.read(buffer).await? {
        0 => Ok(0),
        n => {
            stream.read_exact(&mut buffer[n..]).await?;
            Ok(buffer.len())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kiln_proto::pb::{TransferRequest, TransferResponse, transfer_request::Subject};
    use proptest::prelude::*;

    use super::*;

    const SOON: Patience = Patience { first: Duration::from_secs(5), rest: Duration::from_secs(5) };

    fn read_all<M: Message + Default>(bytes: &[u8], limit: usize) -> Result<Option<M>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(read(&mut &*bytes, limit, SOON))
    }

    fn any_request() -> impl Strategy<Value = TransferRequest> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..100);
        (bytes, any::<u64>(), any::<bool>()).prop_map(|(bytes, offset, by_key)| TransferRequest {
            subject: Some(match by_key {
                true => Subject::Key(bytes.into()),
                false => Subject::Digest(bytes.into()),
            }),
            offset,
            node: offset / 7,
            trace: "x".repeat((offset % 60) as usize),
            look: offset % 2 == 0,
            namespace: "n".repeat((offset % 65) as usize),
            token: "t".repeat((offset % 90) as usize),
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(request in any_request()) {
            let bytes = encode(&request, MAX_REQUEST).unwrap();
            let read = read_all::<TransferRequest>(&bytes, MAX_REQUEST).unwrap();
            prop_assert_eq!(read, Some(request));
        }

        #[test]
        fn a_truncated_frame_is_an_error(request in any_request(), cut in any::<proptest::sample::Index>()) {
            let bytes = encode(&request, MAX_REQUEST).unwrap();
            let cut = cut.index(bytes.len());
            let read = read_all::<TransferRequest>(&bytes[..cut], MAX_REQUEST);
            match cut {
                0 => prop_assert!(matches!(read, Ok(None))),
                _ => prop_assert!(matches!(read, Err(FrameError::Connection(_)))),
            }
        }

        #[test]
        fn garbage_never_panics_and_never_reads_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let read = read_all::<TransferResponse>(&bytes, 256);
            if let Ok(Some(response)) = read {
                prop_assert!(response.encoded_len() <= 256 + 16);
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_length_alone() {
        let bytes = (MAX_REQUEST as u32 + 1).to_be_bytes();
        let refused = read_all::<TransferRequest>(&bytes, MAX_REQUEST).unwrap_err();
        assert!(matches!(refused, FrameError::TooLong { limit: MAX_REQUEST, .. }));
        let long = TransferResponse { message: "x".repeat(100), ..Default::default() };
        assert!(matches!(encode(&long, 99), Err(FrameError::TooLong { .. })));
    }
}
