//! What the page, `kiln top` and `/api/v1/state` show: one shape for all three.
//!
//! Invariant: plain data, bounded in every list; a field that exists is never renamed or
//! dropped, and one that an older node does not tell is empty.

mod parts;

use std::collections::BTreeMap;

use kiln_proto::{Fingerprint, NodeId};
use serde::{Deserialize, Serialize};

pub use self::parts::{
    AlertView, DecisionView, FlightView, LeaseView, LeasesView, MissView, TierView, TopArtifact,
    TopView, WantedView,
};
use super::sample::{Counts, Sample};

/// The cluster as one node sees it, with what the others told it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    /// When it was put together, by the clock of the node that was asked.
    pub at_unix_ms: u64,
    /// That node.
    pub answered_by: NodeId,
    /// What all nodes share.
    pub cluster: ClusterView,
    /// Every member, by id.
    pub nodes: Vec<NodeView>,
    /// The sums over all nodes that answer, since each began to run.
    pub totals: BTreeMap<String, u64>,
    /// Load and latency over time, the oldest first; of all nodes that answer.
    pub history: Vec<Point>,
    /// Keys that nodes compile or wait for now, the oldest first.
    pub flights: Vec<FlightView>,
    /// Who may compile what, by the index.
    pub leases: LeasesView,
    /// What compiles in pieces wait for.
    pub wanted: Vec<WantedView>,
    /// The artifacts that saved most.
    pub top: TopView,
    /// What was missed lately, the latest first.
    pub misses: Vec<MissView>,
    /// What a person should look at.
    pub alerts: Vec<AlertView>,
    /// What the optimizer did or recommends.
    pub decisions: Vec<DecisionView>,
}

impl View {
    /// Whether every node is known to be up or gone, and the artifacts were looked at.
    pub(super) fn is_settled(&self) -> bool {
        let known = |node: &NodeView| node.state != NodeState::Unknown;
        self.nodes.iter().all(known) && self.top.at_unix_ms > 0
    }
}

/// What all nodes share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterView {
    /// The leader that the asked node knows of.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Whether writes are possible.
    pub quorum: bool,
    /// Keys with an artifact.
    pub entries: u64,
    /// Publications with other bytes than the committed ones.
    pub differing: u64,
    /// The highest log index that a node has applied.
    pub applied: u64,
}

/// Whether a node answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It does.
    Up,
    /// It does not.
    Gone,
    /// It was not asked for long enough to say.
    #[default]
    Unknown,
}

/// One member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Whether it answers.
    pub state: NodeState,
    /// For how many milliseconds it is silent; `None`: it never answered.
    pub silent_ms: Option<u64>,
    /// Why nothing is known of it, where that is so.
    pub note: String,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads, by the asked node's word.
    pub leader: bool,
    /// Advertised addresses.
    pub grpc: String,
    /// Of its own page.
    pub http: String,
    /// Log entries that it has yet to apply.
    pub lag: Option<u64>,
    /// What it told; `None` unless it is up and told it.
    pub figures: Option<Figures>,
}

/// What a node tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Its id.
    pub node: NodeId,
    /// Its program's version.
    pub version: String,
    /// Its role: `leader`, `follower`, `learner`, `candidate`, `removed`.
    pub role: String,
    /// Seconds since its services began.
    pub uptime_seconds: f64,
    /// Raft's term as it knows it.
    pub term: u64,
    /// The log index up to which it has applied.
    pub applied: u64,
    /// Counters since it began to run, as in `kiln status`.
    pub counters: BTreeMap<String, u64>,
    /// Its share of each tier.
    pub tiers: Vec<TierView>,
    /// The compilers that it can run.
    pub compilers: Vec<Fingerprint>,
    /// What it compiles or waits for.
    pub flights: Vec<FlightView>,
    /// What it missed.
    pub misses: Vec<MissView>,
    /// Its alerts.
    pub alerts: Vec<AlertView>,
    /// Its optimizer's decisions.
    pub decisions: Vec<DecisionView>,
    /// What it sampled since the time that was asked for; in no [`View`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

/// Load and latency in one span of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// When the span began.
    pub at_unix_ms: u64,
    /// Nodes that are in it.
    pub nodes: u64,
    /// Requests in the span, by how they ended.
    #[serde(flatten)]
    pub counts: Counts,
    /// Milliseconds in which 50, 95 and 99 % of the hits were answered; `None`: no hits.
    pub hit_ms: Option<[f64; 3]>,
    /// The same of requests that compiled or waited for a compile.
    pub compile_ms: Option<[f64; 3]>,
    /// Flights that compiled at the end of the span.
    pub compiling: u64,
    /// Flights that waited for another node's compile.
    pub waiting: u64,
    /// Bytes in memory tiers.
    pub memory_bytes: u64,
    /// Bytes in disk tiers.
    pub disk_bytes: u64,
}
