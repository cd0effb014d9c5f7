//! The Raft library's types as used here.
//!
//! Invariant: declarations only; this file uses nothing of the crate but commands.

use openraft::{BasicNode, LogId, alias};

use crate::command::{Command, Response};

openraft::declare_raft_types!(
    /// Kiln's commands over openraft's default types.
    pub(crate) Types:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = BasicNode,
);

pub(crate) type Entry = alias::EntryOf<Types>;
pub(crate) type Vote = alias::VoteOf<Types>;
pub(crate) type Committed = alias::CommittedLeaderIdOf<Types>;
pub(crate) type RaftLogId = LogId<Committed>;
pub(crate) type Membership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(crate) type Metrics = openraft::RaftMetrics<Types>;
/// The library's channel that tells who leads.
pub(crate) type Leadership =
    alias::WatchReceiverOf<Types, openraft::metrics::RaftServerMetrics<Types>>;
/// The library's channel of everything that it tells.
pub(crate) type MetricsReceiver = alias::WatchReceiverOf<Types, Metrics>;
