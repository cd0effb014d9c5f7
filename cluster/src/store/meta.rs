//! What the `meta` column family holds: its keys, and what stands under them.
//!
//! Invariant: a key is written by one file alone; an absent key means an empty disk.

use kiln_proto::NodeId;
use serde::{Deserialize, Serialize};

use crate::raft::{Membership, RaftLogId};

/// The column family's name.
pub(super) const META: &str = "meta";

pub(super) const VOTE: &str = "vote";
pub(super) const PURGED: &str = "purged";
pub(super) const APPLIED: &str = "applied";
pub(super) const OWNER: &str = "owner";
pub(super) const FOUNDERS: &str = "founders";
pub(super) const INSTALLING: &str = "installing";

/// Which node of which cluster the data belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub cluster: u64,
    pub node: NodeId,
}

/// How far the state has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub last: Option<RaftLogId>,
    pub membership: Membership,
}
