//! What a member is started with.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    admission::Witness, caller::RefusalWitness, command::NodeFacts, deadlines::Lifetimes,
    transport::Dial,
};

/// Everything that [`crate::Cluster::open`] needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Holds the index and the identity; an empty folder makes a new node.
    pub data_dir: PathBuf,
    /// How a new node finds its cluster. Ignored by a node that has one, but for
    /// `peers`, which help it to find nodes whose addresses changed.
    pub start: Start,
    /// What the node tells about itself; its members' port must reach the served routes.
    pub facts: NodeFacts,
    /// Whether it may vote. One that may not is a learner for as long as it says so.
    pub voter: bool,
    /// The log is shortened after so many applied entries; half of them are kept for
    /// members that were away for a moment, the others get a snapshot.
    pub log_entries: u64,
    /// Time-outs.
    pub timings: Timings,
    /// The trace of the call under way, as W3C's `traceparent`, for what is asked of peers.
    pub context: fn() -> Option<String>,
    /// How other members are connected to; `None`: in plain text.
    pub dial: Option<Arc<dyn Dial>>,
    /// What a new node joins with.
    pub joining: Joining,
}

/// What joining takes, of a node that joins and of one that is asked.
#[derive(Debug, Clone, Default)]
pub struct Joining {
    /// File with the token that a new node shows to be let in. Read when it asks.
    pub token_file: Option<PathBuf>,
    /// Whether a cluster that was not told yet lets nobody in without a token.
    pub needs_token: bool,
    /// Whether a node that this one has not heard of is refused where it cannot prove that it was
    /// let in; otherwise it is counted, and served.
    pub needs_proof: bool,
    /// Is told of those that ask this node.
    pub witness: Option<Witness>,
    /// Is told of those that this node refuses for their certificates.
    pub refusals: Option<RefusalWitness>,
}

/// Usual [`Settings::log_entries`].
pub const LOG_ENTRIES: u64 = 20_000;

/// How a new node finds its cluster. A peer is `host:port`, or `dns:NAME:PORT`
/// for every address that the name resolves to.
#[derive(Debug, Clone)]
pub enum Start {
    /// Found a cluster once `voters` candidates see each other, or join the one
    /// that a peer belongs to. `voters` must be over half of the peers.
    Expect {
        /// Nodes that found the cluster together.
        voters: usize,
        /// Where they are; this node may be among them.
        peers: Vec<String>,
    },
    /// Join the cluster of any of these.
    Join {
        /// Members.
        peers: Vec<String>,
    },
}

impl Start {
    pub(crate) fn peers(&self) -> &[String] {
        match self {
            Self::Expect { peers, .. } | Self::Join { peers } => peers,
        }
    }
}

/// Time-outs of a member. All members should have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// Least time without a leader before an election.
    pub election_min: Duration,
    /// Most time without a leader before an election; also the leader's lease.
    pub election_max: Duration,
    /// A compile lease whose holder is silent for this long ends.
    pub lease_ttl: Duration,
    /// How long a failure that follows from the request is remembered.
    pub failure_ttl: Duration,
    /// The same for failures for want of time or memory.
    pub resource_failure_ttl: Duration,
    /// A voter that is silent for this long is replaced by a learner.
    pub dead_after: Duration,
    /// How long a call waits for a leader, counted from the last contact with one.
    pub patience: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(1200),
            lease_ttl: Duration::from_secs(10),
            failure_ttl: Duration::from_secs(600),
            resource_failure_ttl: Duration::from_secs(120),
            dead_after: Duration::from_secs(30),
            patience: Duration::from_secs(8),
        }
    }
}

impl Timings {
    pub(crate) fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            lease: self.lease_ttl,
            failure: self.failure_ttl,
            resource_failure: self.resource_failure_ttl,
        }
    }
}
