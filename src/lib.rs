//! Kiln: a cluster-wide cache of compiled GPU code.
//!
//! A map of the code, in the order in which a newcomer reads it. Layers point
//! one way: what stands higher here uses what stands lower, never the reverse.
//!
//! | module | what it is |
//! |---|---|
//! | [`node`] | everything that exists in a node, in the order it is built |
//! | [`monitor`] | watches the node, tunes it within bounds, tells of what is wrong |
//! | [`service`] | gRPC and HTTP: translate, bound, ask the manager |
//! | [`dashboard`] | what the cluster is about, for people: a page, and `kiln top` |
//! | [`resp`] | the port for Redis clients: values of other tools, single flight |
//! | [`manager`] | lookup, lease, compile, publish: the one place that joins the rest |
//! | [`access`] | who asks, and what they may do |
//! | [`audit`] | who did what, in a chain of lines |
//! | [`prewarm`] | what is fetched, and compiled again, before anybody asks |
//! | [`transfer`] | bytes between nodes, descriptors to clients of this machine |
//! | [`net`] | what every port shares: accepting connections, TLS, their least speed |
//! | [`compiler`] | sources to files, in child processes |
//! | [`cache`] | memory, disk and object tier |
//! | [`scan`] | reads every entry of the index, in pages |
//! | [`check`] | whether an artifact computes what its program does, in a child process |
//! | [`exec`] | runs a compiled graph, on a GPU or by the interpreter |
//! | [`attest`] | what an artifact is, in the form of other tools |
//! | [`artifact`] | files to packs and back |
//! | [`telemetry`] | the table of metrics, traces to a collector |
//! | [`clock`] | the time of day |
//! | [`gate`] | whether this node takes what it would have to keep |
//! | [`emergency`] | what this node does without while it does not work |
//! | `kiln_cluster` | the Raft-replicated index, leases, membership |
//! | `kiln_proto` | the shared vocabulary and the wire format |
//!
//! Architecture invariants: `cache` and `compiler` never import each other, nor
//! the cluster; the daemon never loads CUDA; only `main` and the command line
//! use `anyhow`.

/// What this program calls itself; a build may be given a name of its own.
pub const VERSION: &str = match option_env!("KILN_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// The commit that it was built from, where the build was told.
pub const COMMIT: Option<&str> = option_env!("KILN_COMMIT");

pub mod access;
pub mod artifact;
pub mod attest;
pub mod audit;
pub mod cache;
pub mod check;
pub mod clock;
pub mod compiler;
pub mod config;
pub mod counters;
#[cfg(feature = "crash-points")]
pub mod crash;
pub mod dashboard;
pub mod emergency;
pub mod error;
pub mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gate;
pub mod identity;
pub mod manager;
pub mod monitor;
#[cfg(test)]
mod mutation_tests;
pub mod net;
pub mod node;
pub mod prewarm;
pub mod resp;
pub mod scan;
pub mod service;
pub mod telemetry;
pub mod transfer;
mod unfinished;
