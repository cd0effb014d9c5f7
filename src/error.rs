//! What the manager tells its callers, and the one place where that becomes a
//! gRPC status.
//!
//! Invariant: a variant answers "what should the caller do?"; a failure keeps
//! its code C001 to C005 all the way to the client, in the metadata
//! [`CODE`] and [`KIND`], with what to do about it in [`ADVICE`].

use std::time::Duration;

use kiln_cluster::ClusterError;
use kiln_proto::{ArtifactKey, Digest, Failure, FailureKind, ManifestError, convert::InvalidField};
use tonic::{Code, Status};

use crate::{
    access::Denied,
    cache::{BlobError, NoRoom, TierError},
};

/// Metadata key of the stable code.
pub const CODE: &str = "kiln-code";
/// Metadata key of the failure's kind.
pub const KIND: &str = "kiln-kind";
/// Metadata key of what to do about a failure, for people: see `kiln_proto::CLASSES`.
pub const ADVICE: &str = "kiln-advice";
/// Metadata key of the seconds after which to ask again.
pub const RETRY_AFTER: &str = "retry-after";
/// The kind of the refusal of a client that asks for too much.
pub const LIMITED: &str = "limited";
/// The kind of every refusal of a node that left its cluster.
pub const LEFT: &str = "left";
/// The kind of what a node refuses that leaves its cluster: another node takes it.
pub const LEAVING: &str = "leaving";
/// The kind of the refusal to leave with what no other place has.
pub const ONLY_HERE: &str = "only_here";

/// What to do about [`UNAUTHENTICATED`].
pub const SHOW_A_TOKEN: &str = "ask an admin of the cluster for a token (kiln token create), and \
                                name its file in KILN_TOKEN_FILE";
/// What to do about a node that is not let in ([`NOT_ADMITTED`]).
pub const SHOW_A_JOIN_TOKEN: &str = "ask an admin of the cluster for a join token (kiln token create \
                                     --role join), and name its file in start.join_token_file";
/// The kind of the refusal to let a node in.
pub const NOT_ADMITTED: &str = "not_admitted";
/// What to do about [`NOT_ALLOWED`].
pub const ASK_ANOTHER: &str = "ask an admin of the cluster for a token of a larger role, or of \
                               that namespace (kiln token list shows what there is)";
/// The code of every refusal of a caller that is not known.
pub const UNAUTHENTICATED: &str = "A001";
/// The code of every refusal of a caller that is known, and may not.
pub const NOT_ALLOWED: &str = "A002";

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The compile failed, or cannot be: mend the request or the node named.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// What was compiled is wrong, or its check ended badly, on the node named: another
    /// node may do better, and the request itself is sound.
    #[error("{0}")]
    Unsound(Failure),
    /// Nothing is stored under this key.
    #[error("no artifact is stored under {0}")]
    NotFound(ArtifactKey),
    /// The request itself is malformed: mend it.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The lease behind this token is over: acquire again.
    #[error("the lease is over: its token is stale; acquire the key again")]
    StaleToken,
    /// No quorum or no leader: retry later, hits are still served.
    #[error("the cluster cannot commit now ({0}); what is stored is still served, retry later")]
    Unavailable(String),
    /// The bytes may be on a node, or in the object store, that does not answer now:
    /// retry later, or compile.
    #[error("the artifact's bytes cannot be reached now, retry later: {0}")]
    Unreachable(String),
    /// A piece of the artifact cannot be had: compile the piece again, or retry later.
    #[error("{0}")]
    MissingPiece(MissingPiece),
    /// The bytes are not durable where `publish.copies` wants them, and nothing was
    /// acknowledged: make room, or retry.
    #[error("the artifact is not stored: {0}")]
    NotStored(String),
    /// A piece went while its whole was put together: ask again.
    #[error("piece {0} went while its whole was put together: ask again")]
    PieceGone(ArtifactKey),
    /// A later write of the same key took this one's place: nothing to do.
    #[error("a later write of the key took the place of this one")]
    Superseded,
    /// This node is no member any more: ask another one.
    #[error("this node left the cluster: ask another node")]
    Left,
    /// This node is about to leave, and takes no more: ask another one.
    #[error("this node leaves the cluster and takes nothing new: ask another node")]
    Leaving,
    /// This node has what no other place took over: make room there, or give it up.
    #[error(
        "the node stays, and takes writes again: {packs} packs ({bytes} bytes) that the index names \
         are only here, and {publications} publications are under way; neither the object store nor \
         another node's disk took them within {within:?}. See that one of them does and ask again, \
         or lose them: kiln cluster leave --force"
    )]
    OnlyHere {
        /// Packs.
        packs: u64,
        /// Of these packs.
        bytes: u64,
        /// Publications, and copies of other nodes' publications.
        publications: u64,
        /// What they were given.
        within: std::time::Duration,
    },
    /// Who asks may not, or did not say who it is: ask with a token that may.
    #[error("{0}")]
    Denied(#[from] Denied),
    /// The node's own storage failed: look at its log.
    #[error("the node's storage failed: {0}")]
    Storage(String),
}

/// The code of a refusal that does not pass by itself, and its kind.
pub const fn code_of(denied: Denied) -> (&'static str, &'static str) {
    match denied.is_known() {
        true => (NOT_ALLOWED, "not_allowed"),
        false => (UNAUTHENTICATED, "unauthenticated"),
    }
}

/// A piece without which its whole is of no use, and which this node cannot have now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("piece {index} of the artifact, key {key}, {why}")]
pub struct MissingPiece {
    /// Its position in the whole's manifest.
    pub index: usize,
    /// Its key.
    pub key: ArtifactKey,
    /// Its pack, as the whole names it.
    pub pack: Digest,
    /// What is known of it.
    pub why: NoPiece,
}

/// Why there is no piece.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPiece {
    /// Proven: the index has no such artifact any more. Compile the piece again.
    #[error("is no more: compile it again")]
    Absent,
    /// Some place that may have it does not answer, which proves nothing: retry later,
    /// or compile the piece again.
    #[error("cannot be reached now, retry later: {0}")]
    Unreachable(String),
}

impl Error {
    /// The caller's deadline passed while `doing`.
    pub fn deadline(doing: &str) -> Self {
        Failure::new(FailureKind::Timeout, format!("the deadline passed while {doing}")).into()
    }

    /// As a failure, for what knows no other errors: what is not one of a compile is
    /// one of the node.
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Failed(failure) | Self::Unsound(failure) => failure,
            other => Failure::new(FailureKind::Crashed, other.to_string()),
        }
    }
}

impl From<ClusterError> for Error {
    fn from(e: ClusterError) -> Self {
        match e {
            ClusterError::Deadline => Self::deadline("waiting for the cluster"),
            ClusterError::StaleToken => Self::StaleToken,
            ClusterError::NoPiece(key) => Self::PieceGone(key),
            ClusterError::Invalid(why) => Self::Invalid(why),
            ClusterError::Unavailable(why) => Self::Unavailable(why),
            other => Self::Storage(other.to_string()),
        }
    }
}

impl From<InvalidField> for Error {
    fn from(e: InvalidField) -> Self {
        Self::Invalid(e.to_string())
    }
}

impl From<ManifestError> for Error {
    fn from(e: ManifestError) -> Self {
        Failure::new(FailureKind::Corrupt, e.to_string()).into()
    }
}

impl From<BlobError> for Error {
    fn from(e: BlobError) -> Self {
        match e {
            BlobError::Memory(e) => Self::Storage(e.to_string()),
            BlobError::NoRoom(e @ NoRoom::Busy { .. }) => {
                Failure::new(FailureKind::Busy, e.to_string()).into()
            }
            BlobError::NoRoom(e @ NoRoom::TooLarge { .. }) => Self::NotStored(e.to_string()),
            other => Failure::new(FailureKind::Corrupt, other.to_string()).into(),
        }
    }
}

impl From<TierError> for Error {
    fn from(e: TierError) -> Self {
        Self::Storage(e.to_string())
    }
}

impl From<Error> for Status {
    fn from(e: Error) -> Self {
        let code = match &e {
            Error::Failed(failure) | Error::Unsound(failure) => grpc_code(failure.kind),
            Error::NotFound(_) => Code::NotFound,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::StaleToken | Error::Left | Error::OnlyHere { .. } => Code::FailedPrecondition,
            Error::Superseded => Code::Aborted,
            Error::Unavailable(_)
            | Error::Unreachable(_)
            | Error::Leaving
            | Error::PieceGone(_) => Code::Unavailable,
            Error::MissingPiece(piece) => match piece.why {
                NoPiece::Absent => Code::NotFound,
                NoPiece::Unreachable(_) => Code::Unavailable,
            },
            Error::Denied(Denied::Limit(..)) => Code::ResourceExhausted,
            Error::Denied(denied) if denied.is_passing() => Code::Unavailable,
            Error::Denied(denied) if denied.is_known() => Code::PermissionDenied,
            Error::Denied(_) => Code::Unauthenticated,
            Error::NotStored(_) => Code::ResourceExhausted,
            Error::Storage(_) => Code::Internal,
        };
        let mut status = Status::new(code, bounded(e.to_string()));
        let mut put = |name, text: &'static str| {
            status.metadata_mut().insert(name, tonic::metadata::MetadataValue::from_static(text));
        };
        match &e {
            Error::Failed(failure) | Error::Unsound(failure) => {
                put(CODE, failure.kind.code());
                put(KIND, failure.kind.name());
                put(ADVICE, failure.kind.advice());
            }
            Error::Denied(Denied::Limit(..)) => put(KIND, LIMITED),
            Error::Denied(denied) if denied.is_passing() => {}
            Error::Denied(denied) => {
                let (code, kind) = code_of(*denied);
                put(CODE, code);
                put(KIND, kind);
                put(ADVICE, if denied.is_known() { ASK_ANOTHER } else { SHOW_A_TOKEN });
            }
            // Tells it apart from other refusals: only here another node would serve.
            Error::Left => put(KIND, LEFT),
            Error::Leaving => put(KIND, LEAVING),
            Error::OnlyHere { .. } => put(KIND, ONLY_HERE),
            _ => {}
        }
        if let Error::Denied(denied) = &e
            && let Some(after) = denied.retry_after()
        {
            status.metadata_mut().insert(RETRY_AFTER, whole_seconds(after).into());
        }
        status
    }
}

/// As `retry-after` says it: never sooner, and never at once.
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
}

const fn grpc_code(kind: FailureKind) -> Code {
    match kind {
        FailureKind::CompileError | FailureKind::InvalidInput => Code::InvalidArgument,
        FailureKind::UnsupportedOp => Code::Unimplemented,
        FailureKind::Corrupt | FailureKind::WrongOutput => Code::DataLoss,
        FailureKind::Incompatible | FailureKind::ToolchainMissing => Code::FailedPrecondition,
        FailureKind::Timeout => Code::DeadlineExceeded,
        FailureKind::OutOfMemory | FailureKind::Busy => Code::ResourceExhausted,
        FailureKind::Crashed => Code::Aborted,
    }
}

/// A status travels in HTTP/2 headers, which peers bound: a compiler's log must fit.
fn bounded(mut text: String) -> String {
    const MOST: usize = 4096;
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" … (cut)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_keeps_its_code() {
        for kind in FailureKind::ALL {
            let status = Status::from(Error::from(Failure::new(kind, "x")));
            assert_eq!(status.metadata().get(CODE).unwrap(), kind.code());
            assert_eq!(status.metadata().get(KIND).unwrap(), kind.name());
            assert_eq!(status.metadata().get(ADVICE).unwrap(), kind.advice());
        }
    }

    #[test]
    fn a_long_log_is_cut_at_a_character() {
        let failure = Failure::new(FailureKind::CompileError, "ü".repeat(9000));
        assert!(Status::from(Error::from(failure)).message().len() < 4200);
    }
}
