//! The rows of a view's lists.
//!
//! Invariant: a row says which node told it.

use kiln_proto::{Difference, NodeId};
use serde::{Deserialize, Serialize};

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
