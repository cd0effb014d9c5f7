//! The inner protocol: every request between nodes, with the type of its reply.
//!
//! Invariant: a reply is typed by its request ([`Ask::Reply`]), on the wire and in
//! this process alike, so an answer to something else cannot be taken for one.

use std::collections::BTreeSet;

use kiln_proto::{ArtifactKey, Failure, NodeId, Token};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    admission::Word,
    command::{Candidate, Command, NewNode, Response},
    entry::Entry,
    error::ClusterError,
    store::Owner,
    table::StateError,
};

/// What came of asking a node for something that only the leader does.
pub(crate) type Answer<T> = Result<T, Unanswered>;

/// Why the leader's answer is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unanswered {
    /// The node that was asked does not lead: ask the leader, when there is one.
    NotLeader,
    Refused(ClusterError),
}

impl Unanswered {
    /// What another node said, as this one should take it: that one's disk is not this
    /// one's, and there will be another leader.
    pub(crate) fn of_another_node(self) -> Self {
        match self {
            Self::Refused(ClusterError::Storage(why)) => {
                ClusterError::unavailable(format!("the leader's storage failed: {why}")).into()
            }
            other => other,
        }
    }
}

impl From<ClusterError> for Unanswered {
    fn from(error: ClusterError) -> Self {
        Self::Refused(error)
    }
}

impl From<StateError> for Unanswered {
    fn from(error: StateError) -> Self {
        Self::Refused(error.into())
    }
}

/// A request that only the leader answers.
pub(crate) trait Ask: Clone + Into<Request> + Send + Sync {
    type Reply: Serialize + DeserializeOwned + Send;
}

macro_rules! requests {
    ($($name:ident => $reply:ty,)*) => {
        /// Any request for the leader, as it is sent.
        #[derive(Debug, Clone, Serialize, Deserialize)]
        pub(crate) enum Request {
            $($name($name),)*
        }

        $(
            impl From<$name> for Request {
                fn from(request: $name) -> Self {
                    Self::$name(request)
                }
            }

            impl Ask for $name {
                type Reply = $reply;
            }
        )*
    };
}

requests! {
    Write => Written,
    Fail => Failed,
    Renew => Vec<bool>,
    ReadIndex => u64,
    Join => Owner,
    Add => Owner,
    Remove => (),
    TryAcquire => Option<Outcome>,
    Admit => Owner,
}

/// Propose a command, once it is found valid.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Write(pub Command);

/// A command was applied by the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Written {
    /// Its log index.
    pub index: u64,
    pub response: Response,
}

/// End a lease with a failure, remembered for as long as its kind deserves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fail {
    pub key: ArtifactKey,
    pub token: Token,
    pub failure: Failure,
}

/// What came of a [`Fail`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failed {
    /// The lease is over.
    Ended,
    /// The token was not the live one.
    Stale,
}

/// Heartbeats of one node's leases; the reply says of each whether it is live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Renew(pub Vec<(ArtifactKey, Token)>);

/// An index that covers everything acknowledged before this call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ReadIndex;

/// Register a new node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Join {
    pub node: NewNode,
    /// It asks for no vote.
    pub abstains: bool,
}

/// [`Join`] by the word of whoever made a token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Admit {
    pub join: Join,
    pub by: Word,
}

/// Admit the candidate at an address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Add(pub String);

/// Remove a node for good; the reply comes when it is out of the membership.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Remove(pub NodeId);

/// A call that waits at the leader for a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Acquire {
    pub key: ArtifactKey,
    pub node: NodeId,
    /// Names this call, so that a retry finds the lease that it was granted.
    pub request: u64,
    /// The epoch whose artifact the caller cannot reach: that one is no answer.
    pub instead_of: Option<u64>,
    /// Milliseconds that the caller waits.
    pub wait_ms: u64,
}

/// The lease of a key if it can be had at once; no reply: another's is live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TryAcquire {
    pub key: ArtifactKey,
    pub node: NodeId,
    /// Names this call, as that of an [`Acquire`].
    pub request: u64,
}

/// How an [`Acquire`] ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Ready(Box<Entry>),
    Granted(Token),
    Failed(Failure),
}

/// One message of the stream that answers an [`Acquire`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// Another node holds the lease: the call stays open.
    Waiting,
    Ended(Answer<Outcome>),
}

/// How a node answers to `Hello`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Greeting {
    pub node: NewNode,
    /// Its id and cluster, once it has them.
    pub owner: Option<Owner>,
    /// The candidates that it saw, itself included.
    pub sees: BTreeSet<Candidate>,
    /// Whether it asks for no vote: sent in the metadata, beside the body, whose
    /// bytes older members read too.
    #[serde(skip)]
    pub abstains: bool,
    /// What the node that answers has of the one that asks: sent in the metadata.
    #[serde(skip)]
    pub of_you: Option<OfYou>,
}

/// Why a node is no member any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OfYou {
    /// It left, or was removed, for good.
    Left,
    /// It was away, and comes back by saying where it is.
    Away,
}

/// What a candidate is told to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub candidate: Candidate,
    pub owner: Owner,
}
