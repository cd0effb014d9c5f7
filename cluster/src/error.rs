//! What can go wrong, by what the caller should do about it.

use kiln_proto::ArtifactKey;
use serde::{Deserialize, Serialize};

use crate::admission::NotAdmitted;

/// The outcome of anything asked of the cluster, when it is not the wanted one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ClusterError {
    /// No leader, no quorum or no connection: serve from what is here, retry later.
    #[error("the cluster cannot be reached: {0}")]
    Unavailable(String),
    /// The caller's deadline passed. Nothing is known about the outcome.
    #[error("the deadline passed")]
    Deadline,
    /// The lease ended: drop the result, or acquire again.
    #[error("the lease is no longer held")]
    StaleToken,
    /// The request can never succeed: fix it.
    #[error("refused: {0}")]
    Invalid(String),
    /// This node's disk failed or its data is damaged: stop the node.
    #[error("the index's storage failed: {0}")]
    Storage(String),
    /// A whole cannot be committed, since this piece of it has no artifact, or not of the
    /// pack that the whole was made with: compile it again, and stitch again.
    #[error("piece {0} has no artifact of the pack that the whole was made with")]
    NoPiece(ArtifactKey),
    /// This disk is not let into the cluster: show another join token.
    #[error("not let in: {0}")]
    NotAdmitted(NotAdmitted),
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err, which gives the error away")]
impl ClusterError {
    /// Whether the same call may succeed later with nothing else changed.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Deadline)
    }

    pub(crate) fn unavailable(why: impl ToString) -> Self {
        Self::Unavailable(why.to_string())
    }

    pub(crate) fn invalid(why: impl ToString) -> Self {
        Self::Invalid(why.to_string())
    }

    /// An answer of another kind than the request has.
    pub(crate) fn unexpected(answer: &impl std::fmt::Debug) -> Self {
        Self::Invalid(format!("unexpected answer {answer:?}: is the leader of another version?"))
    }

    pub(crate) fn storage(why: impl ToString) -> Self {
        Self::Storage(why.to_string())
    }
}

impl From<crate::codec::Malformed> for ClusterError {
    fn from(e: crate::codec::Malformed) -> Self {
        Self::storage(e)
    }
}

impl From<crate::table::StateError> for ClusterError {
    fn from(e: crate::table::StateError) -> Self {
        Self::storage(e)
    }
}

impl From<tokio::time::error::Elapsed> for ClusterError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Deadline
    }
}

/// An error of storage, in the one form that the Raft library takes.
pub(crate) fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}
