//! Why bytes did not come.
//!
//! Invariant: a peer's own refusal, which says what it has, is never confused with a
//! connection that failed, which says nothing.

use std::io;

use kiln_proto::pb::{self, TransferCode};

use super::frame::FrameError;
use crate::cache::BlobError;

/// Why a fetch did not give its bytes, by what the caller should do.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The other end does not have it: ask another.
    #[error("not found")]
    NotFound,
    /// Another node answers at the address: nothing is known about the one that was meant.
    #[error("another node answers there")]
    WrongNode,
    /// The other end has too much to do: ask another, or later.
    #[error("busy")]
    Busy,
    /// Who asks may not: show a token that may.
    #[error("{0}")]
    Denied(String),
    /// The other end has it and cannot give it: ask another.
    #[error("the other end failed: {0}")]
    Failed(String),
    /// Nobody answers at the address: ask another, and this one not for a while.
    #[error("{address} is unreachable")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The connection ended in the middle: ask anybody for the rest.
    #[error("broken after {at} bytes")]
    Broken {
        /// Bytes that came, counted from the blob's first: where to resume.
        at: u64,
        /// What the system says.
        source: io::Error,
    },
    /// The other end speaks something else, or offers something else than was
    /// asked for: do not ask it again.
    #[error("not understood: {0}")]
    Protocol(String),
    /// This process has no memory for the bytes, or cannot map them.
    #[error("memory for the bytes: {0}")]
    Memory(io::Error),
}

impl TransferError {
    /// Whether the other end answered, and may answer otherwise for other bytes.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NotFound | Self::Busy | Self::Failed(_))
    }
}

impl From<BlobError> for TransferError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Memory(source) => Self::Memory(source),
            BlobError::NoRoom(why) => Self::Memory(io::Error::other(why)),
            BlobError::Corrupt { .. } | BlobError::Length { .. } => {
                Self::Protocol(error.to_string())
            }
        }
    }
}

/// What became of a request whose answer did not come.
pub(super) enum NoAnswer {
    /// The connection ended or stayed silent before the answer was whole.
    Lost(io::Error),
    /// What came is no answer.
    Nonsense(String),
}

impl From<FrameError> for NoAnswer {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Connection(source) => Self::Lost(source),
            FrameError::Silent(_) => Self::Lost(io::ErrorKind::TimedOut.into()),
            FrameError::TooLong { .. } | FrameError::Malformed(_) => {
                Self::Nonsense(error.to_string())
            }
        }
    }
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl NoAnswer {
    /// For a transfer that would have started at byte `at`.
    pub(super) fn at(self, at: u64) -> TransferError {
        match self {
            Self::Lost(source) => TransferError::Broken { at, source },
            Self::Nonsense(why) => TransferError::Protocol(why),
        }
    }
}

/// The answer, if it is one that bytes follow.
pub(super) fn accepted(
    response: pb::TransferResponse,
) -> Result<pb::TransferResponse, TransferError> {
    match response.code() {
        TransferCode::Ok => Ok(response),
        TransferCode::NotFound => Err(TransferError::NotFound),
        TransferCode::WrongNode => Err(TransferError::WrongNode),
        TransferCode::Busy => Err(TransferError::Busy),
        TransferCode::Denied => Err(TransferError::Denied(response.message)),
        TransferCode::Failed => Err(TransferError::Failed(response.message)),
        TransferCode::BadRequest => Err(TransferError::Protocol(response.message)),
        TransferCode::Unspecified => {
            Err(TransferError::Protocol(format!("answer code {}", response.code)))
        }
    }
}
