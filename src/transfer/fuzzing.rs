//! What a fuzzer feeds to the byte path.

use std::time::Duration;

use kiln_proto::pb::{TransferRequest, TransferResponse};
use prost::Message;

use super::frame::{self, FrameError, MAX_REQUEST, MAX_RESPONSE, Patience};

const AT_ONCE: Patience = Patience { first: Duration::from_secs(5), rest: Duration::from_secs(5) };

/// Frames one after the other, of a node that asks (first byte even) or that answers.
pub(crate) fn frames(data: &[u8]) {
    let Some((side, bytes)) = data.split_first() else { return };
    match side % 2 {
        0 => read_all::<TransferRequest>(bytes, MAX_REQUEST),
        _ => read_all::<TransferResponse>(bytes, MAX_RESPONSE),
    }
}

fn read_all<M: Message + Default>(mut bytes: &[u8], limit: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        loop {
            match frame::read::<M>(&mut bytes, limit, AT_ONCE).await {
                Ok(Some(message)) => assert!(message.encoded_len() <= 2 * limit),
                Ok(None) | Err(FrameError::Connection(_) | FrameError::Malformed(_)) => return,
                Err(FrameError::TooLong { length, limit }) => {
                    assert!(length > limit);
                    return;
                }
                Err(FrameError::Silent(_)) => unreachable!("all is there"),
            }
        }
    });
}
