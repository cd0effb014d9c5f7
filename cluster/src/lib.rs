//! The replicated index: which artifact answers which key, and who may compile.
//!
//! Knows keys and manifests, never artifact bytes. Read in this order: `command`
//! (what can change), `state` (what it means), `store` (where it is kept),
//! `leader` and `route` (how a change gets there), `leases` and `held` (time),
//! `bootstrap` and `membership` (who takes part), `index` and `cluster` (the API).
//!
//! Invariant: all mutation is a command in Raft's log, applied in one place.

mod bootstrap;
mod cluster;
mod codec;
mod command;
mod core;
mod entry;
mod error;
mod held;
mod housekeeping;
mod identity;
mod index;
mod leader;
mod leases;
mod membership;
mod network;
mod peers;
mod put;
mod raft;
mod route;
mod service;
mod settings;
mod standing;
mod state;
mod store;
mod table;
mod watch;
mod writes;

pub use crate::{
    cluster::{Cluster, ClusterStatus, NodeStatus, Role},
    command::{AccessReport, Asked, NodeFacts},
    entry::{Acquired, Entry, PackState, Published, Put, PutMode, Retired},
    error::ClusterError,
    held::Lease,
    index::Index,
    settings::{Settings, Start, Timings},
    watch::{IndexEvent, NodeInfo},
    writes::Turn,
};

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod pb {
    tonic::include_proto!("kiln.cluster.v1");
}
