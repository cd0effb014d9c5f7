//! Raft and leases of one node, in figures.
//!
//! Invariant: reads only what this node knows already; what only a leader knows is empty
//! on every other node.

use std::collections::BTreeMap;

use kiln_proto::NodeId;
use openraft::ServerState;

use crate::{leases::Leases, member::Member, replica::Replica, store::Store};

/// Raft and leases of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Entries in its log.
    pub log_entries: u64,
    /// About the bytes of the log, in memory and on disk.
    pub log_bytes: u64,
    /// At the leader: entries that each other node has not acknowledged.
    pub lag: BTreeMap<NodeId, u64>,
    /// Leases that this node holds.
    pub leases_held: usize,
    /// Leases of all nodes that its replica knows.
    pub leases_live: usize,
}

/// What the parts of a node know as of now.
pub(crate) fn figures(
    member: &Member,
    replica: &Replica,
    leases: &Leases,
    store: &Store,
) -> Figures {
    let mut figures = Figures {
        log_bytes: store.log_bytes(),
        leases_held: leases.count(),
        leases_live: replica.deadlines().live(),
        ..Figures::default()
    };
    let Some(raft) = member.metrics() else { return figures };
    let last = raft.last_log_index.map_or(0, |last| last + 1);
    let first = raft.purged.map_or(0, |purged| purged.index + 1);
    figures.log_entries = last.saturating_sub(first);
    if raft.state == ServerState::Leader {
        let others = raft.replication.iter().flatten().filter(|(id, _)| **id != raft.id);
        figures.lag = others
            .map(|(id, matched)| {
                (*id, last.saturating_sub(matched.map_or(0, |matched| matched.index + 1)))
            })
            .collect();
    }
    figures
}
