//! How a node finds its cluster, and when members give each other up.
//!
//! Invariant: what passes the checks lets a healthy cluster keep its leader and its leases through
//! one lost heartbeat.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::Config;

/// With a shorter log, every node that restarts would need a snapshot.
const LEAST_LOG: u64 = 64;

/// How an empty node finds its cluster; ignored once it has an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StartConfig {
    /// Found a cluster of this many voters: 1, 3 or 5. Default: 1.
    pub expect: usize,
    /// Members' ports of the founding voters, this node's own may be among
    /// them: `host:port`, or `dns:NAME:PORT` for all addresses of a name.
    pub peers: Vec<String>,
    /// Instead: join the cluster that one of these belongs to.
    pub join: Vec<String>,
    /// File with the token with which this node is let in (`kiln token create --role join`),
    /// where the cluster asks for one. Read when it joins, and not after. Default: none.
    pub join_token_file: Option<PathBuf>,
}

/// Cluster timings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Between two heartbeats of the leader. Default: 150 ms.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A follower that hears nothing stands for election after at least this. Default: 600 ms.
    #[serde(with = "humantime_serde")]
    pub election_min: Duration,
    /// And after at most this, which is also the leader's lease. Default: 1.2 s.
    #[serde(with = "humantime_serde")]
    pub election_max: Duration,
    /// Whether this node may vote. One that may not follows as a learner, with a full
    /// replica, and is never promoted: for nodes that come and go. Default: true.
    pub voter: bool,
    /// A compile lease whose holder is silent for this long expires. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    /// A voter that is silent for this long counts as dead: a learner that keeps up gets its
    /// vote. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub dead_after: Duration,
    /// The log of changes is shortened after so many; a node that missed more than half of
    /// them gets a snapshot of the index instead. Default: 20000.
    pub log_entries: u64,
    /// Whether new nodes need a token to join. Told to a cluster that nobody has told yet;
    /// after that `kiln cluster joining` says so. Its founders need none, and members none
    /// to come back. Default: false.
    pub join_needs_token: bool,
}

impl Default for StartConfig {
    fn default() -> Self {
        Self { expect: 1, peers: Vec::new(), join: Vec::new(), join_token_file: None }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(1200),
            voter: true,
            lease_ttl: Duration::from_secs(10),
            dead_after: Duration::from_secs(30),
            log_entries: kiln_cluster::LOG_ENTRIES,
            join_needs_token: false,
        }
    }
}

impl Config {
    pub(super) fn check_start(&self, wrong: &mut Vec<String>) {
        let start = &self.start;
        if !matches!(start.expect, 1 | 3 | 5) {
            wrong.push(format!("start.expect is {}: a cluster has 1, 3 or 5 voters", start.expect));
        }
        if start.expect > 1 && !start.join.is_empty() {
            wrong.push("start.expect founds a cluster, start.join joins one: set only one".into());
        }
        if !self.cluster.voter && start.join.is_empty() {
            wrong.push(
                "cluster.voter is false: such a node founds nothing, so name members in start.join"
                    .into(),
            );
        }
        let resolved_later = start.peers.iter().any(|peer| peer.starts_with("dns:"));
        if start.expect > 1 && !resolved_later && start.peers.len() + 1 < start.expect {
            wrong.push(format!(
                "start.expect is {0}, start.peers names {1}: name the members' ports of all {0}, \
                 or a DNS name as dns:NAME:PORT",
                start.expect,
                start.peers.len()
            ));
        }
        for peer in start.peers.iter().chain(&start.join) {
            let address = peer.strip_prefix("dns:").unwrap_or(peer);
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none() {
                wrong.push(format!("{peer:?} is no peer: write HOST:PORT or dns:NAME:PORT"));
            }
        }
    }

    pub(super) fn check_timings(&self, wrong: &mut Vec<String>) {
        let cluster = &self.cluster;
        if cluster.heartbeat < Duration::from_millis(10) {
            wrong.push("cluster.heartbeat is below 10ms".into());
        }
        if cluster.election_min < cluster.heartbeat * 2 {
            wrong.push("cluster.election_min is less than two heartbeats: raise it".into());
        }
        if cluster.election_max <= cluster.election_min {
            wrong.push("cluster.election_max must be above cluster.election_min".into());
        }
        if cluster.log_entries < LEAST_LOG {
            wrong.push(format!("cluster.log_entries is below {LEAST_LOG}"));
        }
        if cluster.lease_ttl <= cluster.election_max {
            wrong.push(
                "cluster.lease_ttl must be above cluster.election_max: a change of leader would \
                 cost every lease"
                    .into(),
            );
        }
        if cluster.dead_after < cluster.election_max * 2 {
            wrong.push(
                "cluster.dead_after is less than twice cluster.election_max: who merely \
                 misses an election would lose its vote"
                    .into(),
            );
        }
    }
}
