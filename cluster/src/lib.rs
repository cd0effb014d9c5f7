//! The replicated index: which artifact answers which key, and who may compile.
//!
//! Knows keys and manifests, never artifact bytes. Read in this order, each file using
//! only those before it: `wanted` (what a compile in pieces asks for), `tokens` and
//! `admission` (who may ask, and who may join), `command` (what can change), `state` (what it means), `store` (where it is kept), `replica` (what is read
//! here), `rpc` and `peers` (what nodes ask each other), `endorsement` and `endorser` (how a node proves
//! that it was let in), `member` (Raft's handle, who
//! leads), `leader` and `membership` (what a leader does), `versions`, `trust` (what the root says), `requests` and `router` (how a
//! request gets there), `leases` (time), `writes` and `writer` (order), `bootstrap` and
//! `announce` (how a node takes part), `index` and `cluster` (the API).
//! `environment`, `transport` and `blocking` are all that it has of the machine: `sim`, in
//! the tests, makes up another.
//!
//! Invariant: all mutation is a command in Raft's log, applied in one place.

pub mod admission;
mod announce;
mod append;
mod authorize;
mod blocking;
mod bootstrap;
mod caller;
mod cluster;
mod codec;
mod command;
mod deadlines;
mod endorsement;
mod endorser;
mod entry;
mod environment;
mod error;
mod figures;
mod finish;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod housekeeping;
mod identity;
mod index;
mod leader;
mod leases;
mod member;
mod membership;
mod network;
mod peers;
mod quorum;
mod raft;
mod replica;
mod requests;
mod router;
mod rpc;
mod secret;
mod service;
mod settings;
pub mod signing;
#[cfg(test)]
mod sim;
mod state;
mod status;
mod step;
mod store;
mod table;
pub mod tokens;
mod transport;
pub mod trust;
mod unproved;
mod versions;
mod wanted;
mod watch;
mod writer;
mod writes;

pub use crate::{
    caller::{Caller, RefusalWitness, RefusedPeer},
    cluster::Cluster,
    command::{AccessReport, Asked, NodeFacts},
    entry::{Entry, PackState, Published, Put, PutMode, Retired, Usage},
    error::ClusterError,
    figures::Figures,
    index::Index,
    leases::{Acquired, Lease, Tried},
    settings::{Joining, LOG_ENTRIES, Settings, Start, Timings},
    status::{ClusterStatus, NodeStatus, Role},
    transport::{Dial, Dialing, Io, channel},
    unproved::tell_of_unproved,
    wanted::{Wanted, WantedPiece},
    watch::{IndexEvent, NodeInfo, Revoked},
    writes::Turn,
};

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod pb {
    tonic::include_proto!("kiln.cluster.v1");
}
