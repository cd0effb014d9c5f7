//! What an operator of Raft asks.
//!
//! Invariant: what only a leader knows is 0 on every other node.

use crate::telemetry::metric::{DISK, Metric, bytes, bytes_total, counter, gauge, seconds};

pub(super) const METRICS: &[Metric] = &[
    gauge("kiln_cluster_quorum", &[], "1: a leader with a quorum was heard of lately."),
    gauge("kiln_cluster_leader", &[], "1: this node leads."),
    gauge("kiln_cluster_voters", &[], "Voters that this node knows of."),
    gauge(
        "kiln_cluster_voters_reachable",
        &[],
        "Voters that answer; a node that does not lead knows of itself and the leader alone.",
    ),
    gauge("kiln_cluster_term", &[], "Raft's term: each election begins one."),
    gauge("kiln_cluster_log_index", &[], "Index of the last entry of this node's log."),
    gauge("kiln_cluster_applied_index", &[], "Index of the last entry that is applied here."),
    gauge("kiln_index_entries", &[], "Keys with an artifact."),
    seconds(
        "kiln_raft_commit_seconds",
        DISK,
        &[],
        "At the leader: from a proposal until a quorum has it on disk and it is applied here.",
    ),
    seconds("kiln_raft_fsync_seconds", DISK, &[], "One fsync of the log, for all that waited."),
    seconds("kiln_raft_apply_seconds", DISK, &[], "One batch of commands applied and written."),
    gauge(
        "kiln_raft_replication_lag_entries",
        &["node"],
        "At the leader: entries of its log that a node has not acknowledged.",
    ),
    gauge("kiln_raft_log_entries", &[], "Entries in this node's log."),
    bytes("kiln_raft_log_bytes", &[], "About the bytes of this node's log, memory and disk."),
    counter("kiln_raft_elections_won_total", &[], "Terms in which this node became the leader."),
    counter("kiln_raft_snapshots_total", &["direction"], "Snapshots begun: sent or received."),
    gauge("kiln_raft_snapshots_active", &["direction"], "Snapshots under way."),
    bytes_total("kiln_raft_snapshot_bytes_total", &["direction"], "Bytes of snapshots so far."),
    gauge("kiln_leases_held", &[], "Compile leases that this node holds."),
    gauge("kiln_leases_live", &[], "Compile leases of all nodes, as this replica knows them."),
    gauge("kiln_lease_waiters", &[], "At the leader: calls that wait for another's lease."),
    counter("kiln_lease_expiries_total", &[], "At the leader: leases whose holder fell silent."),
    counter(
        "kiln_index_failures_lifted_total",
        &[],
        "At the leader: remembered failures whose time was over.",
    ),
    counter(
        "kiln_index_failures_dropped_total",
        &[],
        "Remembered failures that made room for others.",
    ),
];
