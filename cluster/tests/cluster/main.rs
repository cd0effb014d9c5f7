//! Several members in one process, over real loopback connections.
//!
//! Every test ends with the state machines compared at the same applied index.

#![allow(clippy::unwrap_used)]

mod harness;
mod thin;
