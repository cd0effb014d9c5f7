//! What the `meta` column family holds: its keys, and what stands under them.
//!
//! Invariant: a key is written by one file alone; an absent key means an empty disk.

use kiln_proto::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    raft::{Membership, RaftLogId},
    table::Table,
};

/// The column family's name.
pub(super) const META: &str = "meta";

pub(super) const VOTE: &str = "vote";
pub(super) const PURGED: &str = "purged";
pub(super) const APPLIED: &str = "applied";
pub(super) const OWNER: &str = "owner";
pub(super) const FOUNDERS: &str = "founders";
/// What this node was given as it was let in.
pub(super) const ADMITTED: &str = "admitted";
/// The earliest version of Kiln that reads this index; absent: any does.
pub(super) const NEEDS: &str = "needs";
/// The version of the last program that opened it.
pub(super) const OPENED_BY: &str = "opened-by";
/// The [`Set`] that the state is in.
pub(super) const LIVE: &str = "live";
/// Written by builds that installed in place: a file with a snapshot, half of which
/// may be in the tables of [`Set::A`].
pub(super) const INSTALLING: &str = "installing";

/// One of the two sets of column families that can hold the state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Set {
    #[default]
    A,
    B,
}

impl Set {
    /// The set that is not this one.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The name of `table`'s column family in this set.
    pub(super) const fn family(self, table: Table) -> &'static str {
        match (self, table) {
            (Self::A, _) => table.name(),
            (Self::B, Table::Entries) => "entries.b",
            (Self::B, Table::Epochs) => "epochs.b",
            (Self::B, Table::Blobs) => "blobs.b",
            (Self::B, Table::Leases) => "leases.b",
            (Self::B, Table::Failures) => "failures.b",
            (Self::B, Table::Nodes) => "nodes.b",
            (Self::B, Table::Counters) => "counters.b",
            (Self::B, Table::Objects) => "objects.b",
            (Self::B, Table::Sessions) => "sessions.b",
            (Self::B, Table::Wanted) => "wanted.b",
            (Self::B, Table::Pieces) => "pieces.b",
            (Self::B, Table::References) => "references.b",
            (Self::B, Table::Uses) => "uses.b",
            (Self::B, Table::Revocations) => "revocations.b",
            (Self::B, Table::Tokens) => "tokens.b",
            (Self::B, Table::AuditHeads) => "audit_heads.b",
            (Self::B, Table::Admissions) => "admissions.b",
            (Self::B, Table::Roots) => "roots.b",
            (Self::B, Table::Certificates) => "certificates.b",
            (Self::B, Table::SigningKeys) => "signing_keys.b",
            (Self::B, Table::Published) => "published.b",
            (Self::B, Table::NextRoots) => "next_roots.b",
            (Self::B, Table::NextCertificates) => "next_certificates.b",
        }
    }
}

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
