//! The metrics of this node: those that its parts record as they go, and those that are
//! measured when somebody looks: its cluster and its Raft.
//!
//! Invariant: reads what this node knows already and asks nobody; figures of a leader are 0
//! once it leads no more.

use std::{collections::BTreeSet, sync::Arc};

use kiln_cluster::{Cluster, Figures, Role};
use kiln_proto::NodeId;
use parking_lot::Mutex;

use crate::telemetry::{Recorder, exposition::Family};

/// Reads the metrics of this node.
#[derive(Clone)]
pub struct Meters {
    recorder: Recorder,
    /// Nodes whose lag was told: it is set to 0 when they or the leadership are gone.
    followed: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Meters {
    /// Reads what `recorder` keeps.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder, followed: Arc::default() }
    }

    /// As Prometheus reads them; without a cluster, what the node did so far.
    pub(super) fn page(&self, cluster: Option<&Cluster>) -> String {
        cluster.into_iter().for_each(|cluster| self.measure(cluster));
        self.recorder.render()
    }

    /// As data.
    pub(super) fn families(&self, cluster: &Cluster) -> Vec<Family> {
        self.measure(cluster);
        self.recorder.families()
    }

    fn measure(&self, cluster: &Cluster) {
        let status = cluster.status();
        let voters = status.nodes.iter().filter(|node| node.voter);
        let reachable = voters.clone().filter(|node| node.reachable == Some(true)).count();
        let flag = |flag: bool| if flag { 1.0 } else { 0.0 };
        metrics::gauge!("kiln_cluster_quorum").set(flag(status.quorum));
        metrics::gauge!("kiln_cluster_leader").set(flag(status.role == Role::Leader));
        metrics::gauge!("kiln_cluster_voters").set(voters.count() as f64);
        // Known to the leader alone; others see themselves and, with a quorum, the leader.
        metrics::gauge!("kiln_cluster_voters_reachable").set(reachable as f64);
        metrics::gauge!("kiln_cluster_applied_index").set(status.applied as f64);
        metrics::gauge!("kiln_cluster_log_index").set(status.logged as f64);
        metrics::gauge!("kiln_cluster_term").set(status.term as f64);
        metrics::gauge!("kiln_index_entries").set(status.entries as f64);
        self.measure_raft(&cluster.figures());
    }

    fn measure_raft(&self, figures: &Figures) {
        metrics::gauge!("kiln_raft_log_entries").set(figures.log_entries as f64);
        metrics::gauge!("kiln_raft_log_bytes").set(figures.log_bytes as f64);
        metrics::gauge!("kiln_leases_held").set(figures.leases_held as f64);
        metrics::gauge!("kiln_leases_live").set(figures.leases_live as f64);
        let mut followed = self.followed.lock();
        for gone in followed.extract_if(.., |node| !figures.lag.contains_key(node)) {
            set_lag(gone, 0);
        }
        for (node, entries) in &figures.lag {
            followed.insert(*node);
            set_lag(*node, *entries);
        }
    }
}

fn set_lag(node: NodeId, entries: u64) {
    metrics::gauge!("kiln_raft_replication_lag_entries", "node" => node.to_string())
        .set(entries as f64);
}
