//! Several members in one process, over real loopback connections.
//!
//! Tests of more than one node end with the state machines compared at the same
//! applied index.

#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

mod failover;
mod harness;
mod index;
mod joining;
mod killed;
mod leases;
mod membership;
mod pieces;
mod thin;
mod versions;
mod wholes;
