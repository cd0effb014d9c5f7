//! What the page, `kiln top` and `/api/v1/state` show: one shape for all three.
//!
//! Invariant: plain data, bounded in every list; a field that exists is never renamed or
//! dropped, and one that an older node does not tell is empty.

use std::collections::BTreeMap;

use kiln_proto::{Difference, Fingerprint, NodeId};
use serde::{Deserialize, Serialize};

use super::samples::Counts;

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
    pub samples: Vec<super::samples::Sample>,
}

/// One tier of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierView {
    /// `memory`, `disk` or `object`.
    pub name: String,
    /// Bytes held.
    pub bytes: u64,
    /// Packs held.
    pub entries: u64,
    /// Most bytes; 0: no bound of its own.
    pub capacity_bytes: u64,
    /// Whether it works.
    pub healthy: bool,
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

/// A key that a node compiles or waits for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlightView {
    /// Where.
    pub node: NodeId,
    /// What.
    pub key: String,
    /// A name to show.
    pub label: String,
    /// Who compiles it.
    pub compiler: String,
    /// `acquiring`, `waiting` or `compiling`.
    pub stage: String,
    /// For how long.
    pub seconds: f64,
    /// Pieces that are over.
    pub pieces_over: u64,
    /// Its pieces; 0: none, or not known yet.
    pub pieces: u64,
}

/// Who may compile what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeasesView {
    /// Leases that live.
    pub held: u64,
    /// Some of them.
    pub some: Vec<LeaseView>,
}

/// The right to compile one key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseView {
    /// Of what.
    pub key: String,
    /// Who has it.
    pub node: NodeId,
    /// The fencing number.
    pub token: u64,
}

/// The pieces that one compile waits for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WantedView {
    /// The key of the whole.
    pub whole: String,
    /// The node that puts it together.
    pub node: NodeId,
    /// Its compiler.
    pub compiler: String,
    /// Pieces that it asked others for.
    pub pieces: u64,
    /// What they are thought to take, together.
    pub seconds: f64,
}

/// The artifacts that saved most.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopView {
    /// The best first.
    pub artifacts: Vec<TopArtifact>,
    /// Seconds that hits saved, over all entries that were looked at.
    pub seconds_saved: f64,
    /// Seconds that compiles took, over the same.
    pub compile_seconds: f64,
    /// Bytes of their packs.
    pub bytes: u64,
    /// Entries that were looked at.
    pub looked_at: u64,
    /// Whether that was all of them.
    pub complete: bool,
    /// When they were looked at.
    pub at_unix_ms: u64,
}

/// An artifact and what it saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopArtifact {
    /// Its key.
    pub key: String,
    /// A name to show.
    pub label: String,
    /// Its tenant.
    pub namespace: String,
    /// Who made it.
    pub compiler: String,
    /// Reported hits.
    pub hits: u64,
    /// What one hit saves.
    pub compile_seconds: f64,
    /// The product.
    pub seconds_saved: f64,
    /// Of its pack.
    pub bytes: u64,
}

/// A request that the cache could not answer, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MissView {
    /// Where.
    pub node: NodeId,
    /// Counts the misses of that node.
    pub number: u64,
    /// By its clock.
    pub at_unix_ms: u64,
    /// Of what.
    pub key: String,
    /// A name to show.
    pub label: String,
    /// A compiler, or `redis`.
    pub maker: String,
    /// For people; empty: nobody looked yet.
    pub reason: String,
    /// The nearest entry that was there before.
    pub nearest: Option<String>,
    /// The fields that keep the two apart, at most a few.
    pub differences: Vec<Difference>,
}

/// What a person should look at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlertView {
    /// Who says so.
    pub node: NodeId,
    /// Which alert.
    pub name: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// Since when.
    pub since_unix_ms: u64,
    /// For people.
    pub summary: String,
}

/// What the optimizer did or recommends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecisionView {
    /// Whose optimizer.
    pub node: NodeId,
    /// To undo it by.
    pub id: String,
    /// When.
    pub at_unix_ms: u64,
    /// What was changed, or should be.
    pub action: String,
    /// Why.
    pub evidence: String,
    /// `recommended`, `applied`, `kept`, `undone`.
    pub state: String,
}
