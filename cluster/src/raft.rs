//! The Raft library's types as used here.

use std::io;

use openraft::{BasicNode, LogId, alias};

use crate::{
    command::{Command, Response},
    store::Machine,
};

openraft::declare_raft_types!(
    /// Kiln's commands over openraft's default types.
    pub(crate) Types:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = BasicNode,
);

pub(crate) type Raft = openraft::Raft<Types, Machine>;
pub(crate) type Entry = alias::EntryOf<Types>;
pub(crate) type Vote = alias::VoteOf<Types>;
pub(crate) type Committed = alias::CommittedLeaderIdOf<Types>;
pub(crate) type RaftLogId = LogId<Committed>;
pub(crate) type Membership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(crate) type Metrics = openraft::RaftMetrics<Types>;

/// An error of storage, in the one form that the library takes.
pub(crate) fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}
